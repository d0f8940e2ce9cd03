# SPDX-License-Identifier: MIT
"""What shares the test interface's wire, and what stands between it and the stack: real links."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.agent.doctor.health import default_routes
from harness.agent.faults import AgentError
from harness.agent.interface import reached, stacked, taps
from harness.base.errors import InfrastructureError
from harness.campaign import prepare
from tests.unit import ways_inside

pytestmark = pytest.mark.unit


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root, for a namespace with /sys of its own"
    command = ["unshare", "--net", "--mount", "ip", "link", "add", "type", "veth"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"needs a namespace and veth: {tried.stderr.strip()}"


WHY_NOT = _missing()
in_namespace = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def _inside(check: str) -> Any:
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "tests.unit.ways_inside", check],
        cwd=Path(ways_inside.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if isinstance(found, list) and found and str(found[0]).startswith("not here: "):
        pytest.skip(str(found[0]))
    return found


@in_namespace
@pytest.mark.parametrize(
    ("check", "wire"),
    [
        ("bridged", ["br0", "dut", "far"]),
        ("deep", ["br0", "br1", "dut", "far", "mv", "v0", "v1"]),
        ("vlan", ["dut", "far", "upper"]),
        ("vlan below", ["dut", "far", "real", "upper"]),
        ("macvlan", ["dut", "far", "upper"]),
        ("macvlan beside", ["dut", "far", "real", "upper"]),
        ("ipvlan", ["dut", "far", "upper"]),
        ("bond", ["dut", "far", "upper"]),
        ("team", ["dut", "far", "upper"]),
        ("vxlan", ["dut", "far", "upper"]),
        ("vrf", ["dut", "far"]),
        ("elsewhere", ["dut"]),
    ],
)
def test_one_wire_to_any_depth(check: str, wire: list[str]) -> None:
    assert _inside(check) == wire


@in_namespace
@pytest.mark.parametrize(
    ("check", "carried", "apart"),
    [
        ("ssh_v4", ["this ssh connection (dut > br0)"], []),
        ("ssh_v6", ["this ssh connection (dut > br0)"], []),
        ("ssh_apart", [], ["this ssh connection"]),
        ("ssh_by_environment", ["this ssh connection (dut > br0)"], []),
    ],
)
def test_the_way_of_ssh_is_found_without_its_variable(
    check: str, carried: list[str], apart: list[str]
) -> None:
    found = _inside(check)
    assert found["carried"] == [carried, None]
    assert found["apart"] == [apart, None]


@in_namespace
def test_a_tunnel_of_this_host_is_told() -> None:
    found = _inside("ssh_loopback")
    assert found["carried"][0] == []
    assert "127.0.0.1, a tunnel" in found["carried"][1]


@in_namespace
def test_the_default_route_over_a_bridge_of_the_interface() -> None:
    bridged = ["the default route (dut > br0)"]
    assert _inside("routes") == {"v4": bridged, "v6": bridged, "apart": []}


@in_namespace
def test_packet_sockets_of_others_are_named() -> None:
    found = _inside("taps")
    assert found["before"] == {"packet_taps": [], "in_the_way": []}
    assert found["same"], "settings and inventory tell the same"
    rows = {row["type"]: row for row in found["found"]}
    assert set(rows) == {"0800", "0806", "ALL"}, "neither the other interface's nor our own"
    dhcp = rows["0800"]
    assert dhcp["processes"] == [{"pid": found["pids"][0], "name": "dhclient"}]
    assert dhcp["in_path"]
    assert "dhclient" in dhcp["detail"]
    assert "on dut" in dhcp["detail"]
    assert dhcp["remedy"] == "dhclient -r dut"
    assert rows["ALL"]["in_path"]
    assert rows["ALL"]["processes"][0]["name"] == "caf\ufffd"
    assert not rows["0806"]["in_path"], "IP packets are not taken off a list for it"


@in_namespace
def test_programs_and_members_are_found_and_gone() -> None:
    found = _inside("programs")
    assert found["nothing"] == found["xdp off"] == []
    [xdp] = found["xdp"]
    assert (xdp["what"], xdp["stops"]) == ("XDP program", True)
    assert "ip link set dev dut xdp off" in xdp["remedy"]
    [clsact] = found["clsact"]
    assert (clsact["what"], clsact["stops"]) == ("tc clsact", False)
    if "filter" in found:
        assert found["filter"][0]["stops"]
    [bridge] = found["bridge"]
    assert bridge["detail"] == "dut belongs to br0 (bridge)"
    [macvlan] = found["macvlan"]
    assert macvlan["what"] == "macvlan above"


def _table(*rows: tuple[int, str, str | None, set[int], int | None]) -> dict[int, Any]:
    return {
        index: stacked.Interface(index, name, kind, frozenset(below), master)
        for index, name, kind, below, master in rows
    }


@pytest.mark.parametrize(
    ("rows", "wire"),
    [
        # bond of two, a VLAN on it, a bridge on that; ssh is on the bridge
        (
            [
                (1, "dut", None, set(), 3),
                (2, "eth1", None, set(), 3),
                (3, "bond0", "bond", {1, 2}, None),
                (4, "bond0.5", "vlan", {3}, 5),
                (5, "br0", "bridge", {4}, None),
                (6, "eth2", None, set(), None),
            ],
            {"dut", "eth1", "bond0", "bond0.5", "br0"},
        ),
        # the test interface is a VLAN, ssh another one of the same card
        (
            [
                (1, "eth0", None, set(), None),
                (2, "dut", "vlan", {1}, None),
                (3, "eth0.7", "vlan", {1}, None),
            ],
            {"dut", "eth0", "eth0.7"},
        ),
        # a VRF routes for both and carries nothing from one to the other
        (
            [
                (1, "dut", None, set(), 3),
                (2, "eth1", None, set(), 3),
                (3, "mgmt", "vrf", {1, 2}, None),
            ],
            {"dut"},
        ),
        # what is below is in another namespace, and its master is not to be seen
        ([(1, "dut", "macvlan", {99}, 98)], {"dut"}),
    ],
)
def test_stacks_that_not_every_kernel_makes(rows: Any, wire: set[str]) -> None:
    assert set(stacked.together(["dut"], _table(*rows))) == wire


TAP = {
    "type": "0800",
    "in_path": True,
    "detail": "dhclient (process 812) has a packet socket on eth1 for IPv4 packets",
    "remedy": "dhclient -r eth1",
}
XDP = {"what": "XDP program", "stops": True, "detail": "on eth1, program 7", "remedy": "xdp off"}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"packet_taps": [TAP], "in_the_way": []}, "dhclient (process 812)"),
        ({"packet_taps": [], "in_the_way": [XDP]}, "program 7"),
        ({"packet_taps": [TAP | {"in_path": False}], "in_the_way": []}, None),
        ({"packet_taps": [], "in_the_way": [XDP | {"stops": False}]}, None),
        ({"packet_taps": None, "in_the_way": None}, None),
        ({}, None),
    ],
)
def test_a_run_is_refused_by_name(settings: dict[str, Any], refused: str | None) -> None:
    bed: Any = SimpleNamespace(dut=SimpleNamespace(host="rx"), generator=SimpleNamespace(host="tx"))
    if refused is None:
        prepare.require_free_way(bed, {"dut": settings, "generator": {}})
        return
    for role, host in (("dut", "rx"), ("generator", "tx")):
        with pytest.raises(InfrastructureError) as caught:
            prepare.require_free_way(bed, {"dut": {}, "generator": {}, role: settings})
        assert caught.value.message.startswith(f"{host}: ")
        assert refused in caught.value.message
        assert caught.value.hint


PTYPE = """\
Type Device      Function
ALL  eth1     tpacket_rcv [af_packet]
ALL           packet_rcv
0800          ip_rcv
8914 eth1     fip_recv [fcoe]
86dd          ipv6_rcv
"""


def test_rows_of_ptype() -> None:
    rows = taps.parse_ptype(PTYPE)
    assert rows[0] == taps.Row("ALL", "eth1", "tpacket_rcv")
    concerns = [row.function for row in rows if taps._concerns(row, "eth1")]
    assert concerns == ["tpacket_rcv", "packet_rcv", "fip_recv"]
    assert [row.function for row in rows if taps._concerns(row, "eth2")] == ["packet_rcv"]


def test_tcp_of_both_families() -> None:
    v6 = "  sl  local_address remote_address st\n   0: B80D01200000000000000000010000 00:0016 x\n"
    with pytest.raises(AgentError, match="/proc/net/tcp"):
        reached.parse_tcp(v6)
    row = (
        "   1: 0000000000000000FFFF0000010200C0:0016 B80D0120000000000000000002000000:C350 01 "
        "00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1\n"
    )
    [found] = reached.parse_tcp("  sl  local\n" + row)
    assert found.connection == reached.Connection("192.0.2.1", "2001:db8::2")
    assert (found.state, found.inode) == (1, 4711)


def test_default_routes_of_ipv6() -> None:
    zero = "0" * 32
    table = (
        f"{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 1 0 00450003     eth0\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200       lo\n"
        f"20010db8{'0' * 24} 40 {zero} 00 {zero} 00000100 1 0 00000001     eth1\n"
    )
    assert default_routes("head\n", table) == {"eth0"}
