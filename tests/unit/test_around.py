# SPDX-License-Identifier: MIT
"""The surroundings of a test interface: its manager, listeners, firewalls, replies."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.agent import programs
from harness.agent.doctor import around
from harness.agent.doctor import firewall as firewalls
from harness.agent.doctor.around import listener, manager, nm_state, paused
from harness.agent.doctor.firewall import filtering, firewall
from harness.agent.faults import AgentError
from harness.agent.interface.ethtool import Ethtool
from harness.agent.load.way import Way
from harness.base.errors import InfrastructureError
from harness.beds.access.channel import Asked
from harness.beds.machine import between
from harness.campaign.prepare import _same_link
from tests.unit.test_agent_process import Agent, in_namespace
from tests.unit.test_machine_first import bed

pytestmark = pytest.mark.unit

NFT = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


# netserver's port


def test_who_holds_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        found = listener(port)
        assert found is not None
        assert found["pid"] == os.getpid()
        assert found["name"]
    assert listener(port) is None


def test_a_port_that_is_taken_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        monkeypatch.setattr(around, "PORT", held.getsockname()[1])
        row = around._port()
        assert not row["ok"]
        assert row["needed"]
        assert f"process {os.getpid()}" in row["detail"]
        assert row["remedy"].startswith(("kill ", "systemctl disable --now "))
    assert around._port()["ok"]


def test_a_service_is_named(tmp_path: Path) -> None:
    of = tmp_path / "proc/812"
    (of / "fd").mkdir(parents=True)
    (of / "fd/3").symlink_to("socket:[9911]")
    (of / "comm").write_text("netserver\n")
    (of / "cgroup").write_text("0::/system.slice/netperf.service\n")
    net = tmp_path / "proc/net"
    net.mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when inode\n"
    net.joinpath("tcp6").write_text(
        head + "   0: 00000000000000000000000000000000:3241 00000000000000000000000000000000:0000 "
        "0A 00000000:00000000 00:00000000 00000000     0        0 9911 1 x 100 0 0 10 0\n"
    )
    assert listener(12865, root=str(tmp_path)) == {
        "pid": 812, "name": "netserver", "unit": "netperf.service"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/netperf.service", "netperf.service"),
        ("1:name=systemd:/system.slice/netserver@1.service\n0::/", "netserver@1.service"),
        ("0::/system.slice/ssh.service", None),
        ("0::/system.slice/sshd@3-x.service", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", None),
        ("0::/user.slice/user-1000.slice/session-3.scope", None),
    ],
)
def test_which_service_comes_back(cgroup: str, unit: str | None) -> None:
    found = around._UNIT.search(cgroup)
    assert (found[1] if found else None) == unit


@given(st.text(max_size=200))
def test_whatever_proc_says_of_sockets(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "proc/net").mkdir(parents=True)
    (root / "proc/net/tcp").write_text(text, encoding="utf-8", errors="replace")
    listener(12865, root=str(root))


# Whoever sets it up


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("100 (connected)\nWired connection 1\n", "connected, Wired connection 1"),
        ("70 (connecting (getting IP configuration))\n\n", "connecting (getting IP configuration"),
        (
            "100 (connected)\nstatic\nexpiry = 1 | ip_address = 10.0.0.7\n",
            "connected, static, by DHCP",
        ),
        ("30 (disconnected)\n\n", "disconnected"),
        ("10 (unmanaged)\n\n", None),
        ("", None),
        ("Error: NetworkManager is not running.\n", None),
    ],
)
def test_networkmanager(said: str, state: str | None) -> None:
    assert nm_state(said) == state


@given(st.text(max_size=80))
def test_whatever_nmcli_says(text: str) -> None:
    state = nm_state(text)
    assert state is None or len(state) < 90


@pytest.mark.parametrize(
    ("text", "by"),
    [
        (
            "# private\nADMIN_STATE=configuring\nOPER_STATE=routable\n",
            "systemd-networkd (configuring)",
        ),
        ("ADMIN_STATE=configured\n", "systemd-networkd (configured)"),
        ("ADMIN_STATE=unmanaged\n", None),
        ("", None),
    ],
)
def test_networkd(
    text: str, by: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(around, "_network_manager", lambda _: None)
    for path, content in {
        "sys/class/net/eth1/ifindex": "7\n",
        "run/systemd/netif/links/7": text,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    found, remedy, dhcp = manager("eth1", root=str(tmp_path))
    assert dhcp is ("configuring" in text)
    (tmp_path / "run/systemd/netif/leases").mkdir()
    (tmp_path / "run/systemd/netif/leases/7").write_text("ADDRESS=10.0.0.7\n")
    assert manager("eth1", root=str(tmp_path))[2] is (by is not None)
    assert found == by
    assert ("Unmanaged=yes" in remedy and "Name=eth1" in remedy) is (by is not None)


def test_networkmanager_is_told_to_leave_it_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "run", lambda *_, **__: "100 (connected)\nWired\n")
    by, remedy, dhcp = manager("lo", root="/nosuch")
    assert not dhcp
    assert by == "NetworkManager (connected, Wired)"
    assert "nmcli device set lo managed no" in remedy
    assert "unmanaged-devices=interface-name:lo" in remedy  # hosts under test reboot often


# A firewall


def nft(*rows: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *rows]})


def chain(name: str = "input", **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "filter", "name": name, "handle": 1,
                      "type": "filter", "hook": "input", "prio": 0, "policy": "accept", **more},
    }  # fmt: skip


RULE = {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 4, "expr": []}}
INPUT = ("inet", "filter", "input")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (nft(chain(policy="drop")), [INPUT]),
        (nft(chain(), RULE), [INPUT]),
        (nft(chain()), []),
        (nft(chain(hook="output", policy="drop")), []),
        (nft(chain(type="nat", hook="prerouting"), RULE), []),
        (nft(chain(policy="drop"), chain("raw", hook="prerouting", policy="drop")),
         [INPUT, ("inet", "filter", "raw")]),
        (nft({"chain": {"family": "inet", "table": "filter", "name": "IN_public"}}), []),
        (nft(chain(name="x; rm -rf /", policy="drop")), []),
        ("", []),
        ("Error: syntax error", []),
        ('{"nftables": 7}', []),
    ],
)  # fmt: skip
def test_which_chains_filter(said: str, found: list[Any]) -> None:
    assert filtering(said) == found


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["nftables", "chain", "rule", "hook", "family", "table", "name", "type",
                         "policy"]), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(JSON.map(json.dumps) | st.text(max_size=60) | st.just("[" * 100_000))
def test_whatever_nft_says(said: str) -> None:
    assert all(len(one) == 3 for one in filtering(said))


@pytest.mark.parametrize(
    ("files", "said", "kind", "opens"),
    [
        ({"proc/9/comm": "firewalld"}, nft(chain(policy="drop")), "firewalld",
         "firewall-cmd --zone=trusted --add-interface=eth1"),
        ({"etc/ufw/ufw.conf": "ENABLED=yes\nLOGLEVEL=low"}, nft(chain(policy="drop")), "ufw",
         "ufw insert 1 allow in on eth1"),
        ({"etc/ufw/ufw.conf": "ENABLED=no"}, nft(chain(policy="drop")), "nftables",
         'nft insert rule inet filter input iifname "eth1" accept'),
        ({"proc/net/ip_tables_names": "nat\nfilter\n"}, "", "iptables",
         "iptables -I INPUT -i eth1 -j ACCEPT"),
        ({}, nft(chain()), None, None),
    ],
)  # fmt: skip
def test_the_command_is_that_of_what_is_at_work(
    files: dict[str, str], said: str, kind: str | None, opens: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(firewalls, "_nft", lambda: said)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert firewall("eth1", root=str(tmp_path)) == {"kind": kind, "opens": opens}


# The way, by packets

PAIR = """
ip link set lo up
ip link add gen type veth peer name dut
ip address add 10.9.9.1/24 dev gen
ip address add 10.9.9.2/24 dev dut
ip link set gen up
ip link set dut up
"""


def test_the_way_over_loopback() -> None:
    one, other = Way(), Way()
    port = _free_port()
    ports = one.listen(address="127.0.0.1", port=port)
    said = other.tried(target="127.0.0.1", source="127.0.0.2", **ports)
    assert said == {"tcp": None, "udp": None}
    assert one.end() == {"tcp": 1, "udp": 1}
    assert other.tried(target="127.0.0.1", source="127.0.0.2", **ports) == {
        "tcp": "Connection refused", "udp": "Connection refused"
    }  # fmt: skip


def test_a_way_that_cannot_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        with pytest.raises(AgentError, match="Address already in use") as caught:
            Way().listen(address="127.0.0.1", port=held.getsockname()[1])
        assert "ss -ltnp" in (caught.value.hint or "")
    for address, port in (("192.0.2.77", 1), ("127.0.0.1", 99999)):
        with pytest.raises(AgentError, match="cannot listen"):
            Way().listen(address=address, port=port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def rules(*lines: str) -> str:
    return "\n".join(f"{NFT} '{line}'" for line in ("add table inet filter", *lines))


INPUT_DROPS = "add chain inet filter input { type filter hook input priority 0; policy drop; }"


@in_namespace
@pytest.mark.skipif(NFT is None, reason="needs nft (nftables)")
@pytest.mark.parametrize(
    ("lines", "closed"),
    [
        ((), set()),
        ((INPUT_DROPS,), {"tcp", "udp"}),
        ((INPUT_DROPS, "add rule inet filter input meta l4proto tcp accept"), {"udp"}),
        ((INPUT_DROPS, "add rule inet filter input meta l4proto udp accept"), {"tcp"}),
    ],
)
def test_a_real_firewall_is_found_and_its_command_opens_it(
    lines: tuple[str, ...], closed: set[str]
) -> None:
    script = f"set -e\n{PAIR}\n{rules(*lines)}\nexec {sys.executable} -m harness.agent"
    agent = Agent(["unshare", "-Urn", "sh", "-c", script])
    try:
        assert tried(agent, lines) == closed
        if closed:
            found = agent.firewall(interface="lo")
            assert found["kind"] == "nftables"
            entered = [
                "nsenter",
                "-t",
                str(agent.process.pid),
                "-U",
                "-n",
                "--preserve-credentials",
            ]
            subprocess.run(
                [*entered, "sh", "-c", found["opens"].replace("nft ", f"{NFT} ")], check=True
            )
            assert tried(agent, lines) == set()
    finally:
        agent.process.kill()
        agent.process.wait()


def tried(agent: Agent, _: object) -> set[str]:
    # Both are this namespace's own: the packets go by lo.
    ports = agent.way_listen(address="10.9.9.2", port=12865)
    said = agent.way_try(target="10.9.9.2", source="10.9.9.1", **ports)
    heard = agent.way_end()
    assert {one for one, count in heard.items() if not count} == {one for one in said if said[one]}
    return {one for one in said if said[one]}


class Said(Asked):
    def __init__(self, **answers: Any) -> None:
        self.answers, self.calls = answers, list[str]()

    def call(self, name: str, arguments: Any, within_s: float) -> Any:
        self.calls.append(name)
        if isinstance(answer := self.answers[name], Exception):
            raise answer
        return answer


PORTS = {"tcp": 12865, "udp": 40000, "word": "w"}
SHUT = {"kind": "ufw", "opens": "ufw insert 1 allow in on enp1s0f0np0"}
OPEN = {"kind": None, "opens": None}


@pytest.mark.parametrize(
    ("said", "heard", "firewall_of", "row", "remedy"),
    [
        ({"tcp": None, "udp": None}, {"tcp": 1, "udp": 1}, {}, None, ""),
        ({"tcp": "No route to host", "udp": None}, {"tcp": 0, "udp": 1}, {"dut": SHUT},
         "control to the dut", "ufw on rx blocks it: sudo ufw insert 1 allow in on"),
        ({"tcp": None, "udp": "no answer"}, {"tcp": 1, "udp": 3}, {"generator": SHUT},
         "data to the dut", "ufw on tx blocks it"),
        ({"tcp": None, "udp": "no answer"}, {"tcp": 1, "udp": 0}, {},
         "data to the dut", "no firewall was found on rx"),
    ],
)  # fmt: skip
def test_which_direction_of_which_port_is_closed(
    said: Any, heard: Any, firewall_of: dict[str, Any], row: str | None, remedy: str
) -> None:
    agents: Any = {
        "dut": Said(way_listen=PORTS, way_end=heard, firewall=firewall_of.get("dut", OPEN)),
        "generator": Said(way_try=said, firewall=firewall_of.get("generator", OPEN)),
    }
    found = list(between.way(bed()[0], agents))
    assert [one.check for one in found if not one.ok] == ([row] if row else [])
    assert all(one.needed for one in found)
    assert all(one.ok is (one.remedy is None) for one in found)
    for one in found:
        if not one.ok:
            assert remedy in (one.remedy or "")


def test_the_listener_ends_though_the_generator_is_lost() -> None:
    dut = Said(way_listen=PORTS, way_end={"tcp": 0, "udp": 0})
    agents: Any = {"dut": dut, "generator": Said(way_try=InfrastructureError("gone"))}
    with pytest.raises(InfrastructureError, match="gone"):
        list(between.way(bed()[0], agents))
    assert dut.calls == ["way_listen", "way_end"]


# A flood


def counted(ns: int, packets: int, read: int = 0, interrupts: int = 0) -> dict[str, Any]:
    return {
        "monotonic_ns": ns, "link": {"tx_packets": packets, "rx_packets": packets},
        "snmp": {"Udp": {"InDatagrams": read}},
        "interrupts": {"30": {"name": "eth1-0", "counts": {"0": interrupts}}},
    }  # fmt: skip


def flood(read: int, *, interrupts: int = 500) -> Any:
    window = {"start": counted(0, 0), "end": counted(2_000_000_000, 9_000_000, read, interrupts)}
    return between.judged_flood(counted(0, 0), counted(2_000_000_000, 10_000_000), window)


def test_a_flood_that_saturates_and_one_that_does_not() -> None:
    full = flood(4_000_000)
    assert full.ok
    assert "offered 5,000,000 packets/s, 4,500,000 at the NIC, 2,000,000 read" in full.detail
    assert "0.0001 interrupts a packet" in full.detail
    assert "60.0% lost: saturated" in full.detail
    # However few interrupts there are.
    idle = flood(10_000_000, interrupts=1)
    assert not idle.ok
    assert not idle.needed
    assert "not saturated" in idle.detail
    still = between.judged_flood(
        counted(0, 0), counted(0, 0), {"start": counted(0, 0), "end": counted(0, 0)}
    )
    assert not still.ok


# Pause frames, links


def test_pause_frames_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ethtool, "pause", lambda _: {"autoneg": True, "rx": True, "tx": False})
    monkeypatch.setattr(Ethtool, "statistics_values", lambda _: b"")
    monkeypatch.setattr(
        Ethtool, "statistics", lambda *_: {"port_tx_pause": 8811, "port_rx_pause": 0, "rx_noskb": 3}
    )
    row = around._pause("lo")
    assert not row["ok"]
    assert row["detail"] == "rx on; since the driver was loaded: port_tx_pause 8811"
    assert "ethtool -A lo autoneg off rx off tx off" in row["remedy"]


@pytest.mark.parametrize(
    "name",
    ["port_tx_pause", "port_rx_pause", "tx_flow_control_xon", "rx_flow_control_xoff",
     "tx_pause_ctrl_phy", "rx_global_pause_duration", "link_xon_tx", "rx_pause_frames"],
)  # fmt: skip
def test_which_counters_are_of_pause_frames(name: str) -> None:
    assert (name in paused({name: 1, "rx_packets": 2})) is ("global" not in name)


def test_loopback_has_no_pause_frames() -> None:
    assert Ethtool("lo").pause() is None
    rows = {row["check"]: row for row in around.checks("lo", "dut")}
    assert rows["pause frames"]["ok"]
    assert {"netserver's port", "link speed", "set up by", "firewall", "connection tracking",
            "clocksource"} <= rows.keys()  # fmt: skip
    assert "what it can send" in {row["check"] for row in around.checks("lo", "generator")}
    assert list(around.checks("nosuch0", "dut")) == []


@pytest.mark.parametrize(("cpus", "ok"), [(4, False), (6, True), (32, True)])
def test_what_a_generator_can_offer(cpus: int, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    row = around._strength()
    assert row["ok"] is ok
    assert not row["needed"]
    assert ok or "about 6 cores" in row["remedy"]


def test_a_link_of_another_speed_is_no_boot_of_the_campaign() -> None:
    running: Any = SimpleNamespace(speeds_mbps={})
    both = {"dut": {"speed_mbps": 40000, "interface": "eth1"}, "generator": {"speed_mbps": None}}
    _same_link(running, both)
    _same_link(running, both)
    slower = both | {"dut": {"speed_mbps": 10000, "interface": "eth1"}}
    with pytest.raises(InfrastructureError, match=r"dut .eth1. came up with 10000.*it had 40000"):
        _same_link(running, slower)
