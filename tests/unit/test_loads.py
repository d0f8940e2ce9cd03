# SPDX-License-Identifier: MIT
"""The loads: how one is named, what both hosts are asked for it, and what must add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from harness import config
from harness.agent import counters
from harness.base.errors import ConfigurationError
from harness.beds.registry import profile
from harness.commands.load import beds_for, profile_for
from harness.report import document
from harness.report.text import head_lines, table
from harness.results.analysis import analyse
from harness.results.compare import compare
from harness.results.samples import Campaign, ResultDirectory, read_campaign
from harness.trials import loads
from harness.trials.kind import Told
from tests.unit import simulated_lab
from tests.unit.simulated_lab import Lab
from tests.unit.synthetic import Flow, Host, judged, make_campaign, trial

pytestmark = pytest.mark.unit
lab = simulated_lab.lab

Json = dict[str, Any]
SNMP6 = """\
Ip6InReceives                   \t1203377
Ip6InDiscards                   \t17
Icmp6InMsgs                     \t4
Icmp6InType135                  \t4
Udp6InDatagrams                 \t930121
Udp6RcvbufErrors                \t273236
UdpLite6InDatagrams             \t5
"""
UDP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  371: 02000120000000000000000002000A0A:A3B1 00000000000000000000000000000000:0000 07 00000000:00034000 00:00000000 00000000     0        0 20423 2 00000000a1f2c0de 81321
"""  # noqa: E501


def hosts(tmp_path: Path, **bed: str) -> config.HostsFile:
    more = "".join(f", {name}: {value}" for name, value in bed.items() if name != "prefix")
    path = tmp_path / "hosts.yaml"
    path.write_text(
        f"""\
version: 1
default_bed: rack
load: {{streams: 4}}
beds:
  rack: {{dut: rx, generator: tx{more}}}
hosts:
  rx: {{kind: ssh, hostname: rx, interface: eth1, address: 198.18.0.2/{bed.get("prefix", 24)}}}
  tx: {{kind: ssh, hostname: tx, interface: eth7, address: 198.18.0.1/{bed.get("prefix", 24)}}}
"""
    )
    return config.load(path)


# Its name


def test_every_kind_in_hosts_yaml_is_a_load() -> None:
    kinds = get_args(config.Load.model_fields["kind"].annotation)
    assert kinds == tuple(load.name for load in loads.LOADS)


def test_a_load_of_the_command_line_replaces_what_it_names(tmp_path: Path) -> None:
    of_file = hosts(tmp_path)
    assert config.with_load(of_file, None) is of_file
    assert config.with_load(of_file, "udp6").load == config.Load(kind="udp6", streams=4)
    named = config.with_load(of_file, "udp,streams=2,message_bytes=64").load
    assert named == config.Load(streams=2, message_bytes=64)
    assert config.with_load(of_file, "streams=9").load == config.Load(streams=9)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("udp7", "no load is named 'udp7'; expected udp, udp6, forward, tcp", "did you mean udp"),
        ("udp,stream=2", "no key of a load is named 'stream'", "did you mean streams?"),
        ("udp,udp6", "no key of a load is named 'udp6'", "for example"),
        ("udp,bytes=64", "expected streams, message_bytes", "did you mean message_bytes?"),
        ("udp,streams", "streams has no value", "streams=NUMBER"),
        ("udp,streams=1,streams=2", "streams is named twice", "once"),
        ("udp,streams=0", "streams=0 is not usable; expected greater", "netperf processes"),
        ("udp,streams=ten", "streams=ten is not usable; expected a valid whole number", "netperf"),
        ("udp,message_bytes=65508", "message_bytes=65508 is not usable", "payload"),
        ("udp,test=TCP_RR", "no key of a load is named 'test'", "for example"),
    ],
)
def test_what_is_unknown_is_refused_with_the_fix(
    tmp_path: Path, text: str, said: str, hint: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config.with_load(hosts(tmp_path), text)
    assert said in refused.value.message
    assert hint in str(refused.value.hint)


@pytest.mark.parametrize(
    ("name", "bed", "said"),
    [
        ("udp6", {"steering": "ntuple"}, "UDP over IPv4 only"),
        ("forward", {"prefix": "30"}, "no third address"),
        ("forward", {"prefix": "29"}, None),
    ],
)
def test_a_bed_that_cannot_have_it_is_refused(
    tmp_path: Path, name: str, bed: dict[str, str], said: str | None
) -> None:
    of_file = config.with_load(hosts(tmp_path, **bed), name)
    if said is None:
        beds_for(of_file.load, [config.bed(of_file)])
        return
    with pytest.raises(ConfigurationError, match=said):
        beds_for(of_file.load, [config.bed(of_file)])


def test_a_load_without_a_rate_is_not_paced(tmp_path: Path) -> None:
    of_file = config.with_load(hosts(tmp_path), "tcp")
    with pytest.raises(ConfigurationError, match="--also cpu limits the packets"):
        beds_for(of_file.load, [config.bed(of_file)], ["cpu"])
    assert beds_for(of_file.load, [config.bed(of_file)], ["latency"])


def test_tcp_has_longer_messages_and_a_wire_that_repeats_nothing(tmp_path: Path) -> None:
    shipped = config.load(config.locate(Path("hosts.yaml")))
    of_file = config.with_load(shipped, "tcp")
    assert of_file.load.message_bytes == 16384
    assert config.with_load(shipped, "tcp,message_bytes=9").load.message_bytes == 9
    assert of_file.load.record()["test"] == "TCP_STREAM"
    usual = profile("quick", bed_kind="native")
    for name, asked, slice_s in (("udp", "auto", usual.slice_s), ("tcp", 1, 0.0)):
        kind = config.with_load(shipped, name).load
        [bed] = beds_for(kind, [config.bed(shipped, "native")])
        assert isinstance(bed.dut, config.UmlHost)
        assert bed.dut.wire.repeat == asked
        assert profile_for(kind, usual) == replace(usual, slice_s=slice_s)


# What the hosts are asked


def test_a_campaign_over_ipv6_asks_for_it_and_says_so(lab: Lab) -> None:
    assert lab.run("--profile", "smoke", "--load", "udp6,streams=2").exit_code == 0
    applied = [line for line in lab.calls("settings_apply") if " address=" in line]
    for line in applied:
        own, peer = ("2", "1") if " dut " in line else ("1", "2")
        assert f" address6=2001:2::c612:{own}/64" in line
        assert f'"also":["2001:2::c612:{peer}"]' in line
    assert {line.split(" port=")[0][14:] for line in lab.calls("netserver_start")} == {
        "netserver_start address=2001:2::c612:2"
    }
    assert all("target=2001:2::c612:2" in line for line in lab.calls("netperf_start"))
    assert all("streams=2" in line for line in lab.calls("netperf_start"))
    kept = read_campaign(lab.out)
    assert (kept.load_kind, kept.load["streams"]) == ("udp6", 2)
    assert "load udp6: 2 streams of 1 byte" in head_lines(lab.report())[0]


def test_a_campaign_is_resumed_with_its_load_and_no_other(lab: Lab) -> None:
    assert lab.run("--profile", "smoke", "--load", "udp6").exit_code == 0
    assert lab.run("--resume").exit_code == 0
    done = lab.run("--resume", "--load", "udp")
    assert "its load has changed" in str(done.exception)


def test_a_campaign_that_forwards_sends_beyond_the_dut(lab: Lab) -> None:
    lab.run("--profile", "smoke", "--load", "forward")
    dut, generator = (line for line in lab.calls("settings_apply")[:2])
    assert " forwarding=true" in dut
    assert " forwarding=" not in generator
    assert all('"also":["198.18.0.254"]' in line for line in (dut, generator))
    for line in lab.calls("netperf_start"):
        assert "target=198.18.0.2 " in line
        assert " data_to=198.18.0.254" in line


def test_the_usual_load_is_recorded_as_ever_and_not_mentioned(tmp_path: Path) -> None:
    assert config.Load().record() == {"test": "UDP_STREAM", "streams": 10, "message_bytes": 1}
    root = make_campaign(
        tmp_path, effects={"0": 1.0}, blocks=1, about={"load": config.Load().record()}
    )
    report = document(analyse(ResultDirectory.open(root)))
    assert "load" not in head_lines(report)[0]


def test_what_a_plain_load_asks_has_no_trace_of_others(tmp_path: Path) -> None:
    bed = config.bed(hosts(tmp_path))
    for name in ("udp", "udp6", "forward"):
        kind = loads.named(name)
        asked = json.dumps([kind.settings(bed), kind.also(bed), kind.target(bed)])
        assert ("2001:2::" in asked) == (name == "udp6")
        assert ("forwarding" in asked) == (name == "forward")


def test_campaigns_of_two_loads_are_not_compared(tmp_path: Path) -> None:
    sides = []
    for name, load in (("1", {}), ("2", {"kind": "udp6"})):
        root = make_campaign(
            tmp_path / name,
            effects={"0": 1.0, "8": 1.2},
            blocks=6,
            about={"load": {"streams": 2, "message_bytes": 1} | load},
            edit=over_ipv6 if load else lambda boot, *_: boot,
        )
        sides.append(analyse(ResultDirectory.open(root)))
    with pytest.raises(ConfigurationError, match=r"load\.kind: udp and udp6"):
        compare(*sides)
    same = [replace(side, campaign=sides[0].campaign) for side in sides]
    assert compare(*same)["steps"]


# Counters


def test_counters_of_ipv6_are_read_as_groups() -> None:
    assert counters.parse_snmp6(SNMP6) == {
        "Ip6": {"InReceives": 1203377, "InDiscards": 17},
        "Icmp6": {"InMsgs": 4, "InType135": 4},
        "Udp6": {"InDatagrams": 930121, "RcvbufErrors": 273236},
    }
    [socket] = counters.parse_udp(UDP6)
    assert socket == {
        "local": "[2001:2::a0a:2]:41905",
        "drops": 81321,
        "queued_bytes": 0x34000,
    }


# What must add up


def snapshots(made: Json) -> list[Json]:
    """Each reading of a trial, in the order of time."""
    inner: Json = made["window"] or made["trace"]
    return [made["whole"]["before"], inner["start"], inner["end"], made["whole"]["after"]]


def to_ipv6(snapshot: Json) -> None:
    """What UDP and IP counted, over IPv6; the control connections stay where they are."""
    snmp = snapshot["snmp"]
    control = snmp["Tcp"]["InSegs"]
    snmp["Udp6"], snmp["Udp"] = snmp["Udp"], dict.fromkeys(snmp["Udp"], 0)
    ip = snmp["Ip"]
    snmp["Ip6"] = {name: count for name, count in ip.items() if name != "ForwDatagrams"}
    snmp["Ip6"]["InReceives"] -= control
    snmp["Ip6"]["InDelivers"] -= control
    snmp["Ip"] = ip | {"InReceives": control, "InDelivers": control}
    snmp["Icmp6"] = {"InMsgs": 0}


def over_ipv6(boot: Json, *_: object) -> Json:
    for made in boot["trials"]:
        for snapshot in snapshots(made):
            to_ipv6(snapshot)
    return boot


def to_forwarding(snapshot: Json) -> None:
    """All datagrams are forwarded; one in eight is dropped before the interface."""
    snmp = snapshot["snmp"]
    control = snmp["Tcp"]["InSegs"]
    forwarded = snmp["Ip"]["InReceives"] - control
    snmp["Ip"] |= {"ForwDatagrams": forwarded, "InDelivers": control, "OutRequests": control,
                   "OutDiscards": 0, "OutNoRoutes": 0, "FragFails": 0}  # fmt: skip
    snmp["Udp"] = dict.fromkeys(snmp["Udp"], 0)
    snapshot["qdisc_dropped"] = forwarded // 8
    snapshot["link"] |= {"tx_packets": forwarded - forwarded // 8 + control, "tx_dropped": 0}


SEGMENT = 52 + 1448


def to_segments(snapshot: Json) -> None:
    """All datagrams are segments, ten of which GRO merges into one packet."""
    snmp = snapshot["snmp"]
    control = snmp["Tcp"]["InSegs"]
    segments = snmp["Ip"]["InReceives"] - control
    merged = segments // 10
    snmp["Ip"] |= {"InReceives": merged + control, "InDelivers": merged + control}
    snmp["Tcp"]["InSegs"] = merged + control
    snmp["Udp"] = dict.fromkeys(snmp["Udp"], 0)
    octets = segments * 1448 + 52 * (merged + control)
    snapshot["netstat"]["IpExt"]["InOctets"] = octets
    snapshot["netstat"]["TcpExt"] |= {"TCPDSACKOldSent": 0, "TCPDSACKOfoSent": 0}


LOADED: dict[str, Callable[[Json], None]] = {
    "udp6": to_ipv6,
    "forward": to_forwarding,
    "tcp": to_segments,
}


def measured(
    name: str, tmp_path: Path, edit: Callable[[Json], None], *, idle: bool = False
) -> Told:
    """A timed trial of the load ``name``, whose readings after the load are edited."""
    root = make_campaign(tmp_path, effects={"0": 1.0}, blocks=1, trials=1)
    campaign: Campaign = read_campaign(root).model_copy(update={"load": {"kind": name}})
    host = Host()
    host.run(3.0, Flow(packets=12345))
    made = trial(host, "timed", 0, 100_000, 4.0, 0)
    for snapshot in snapshots(made):
        LOADED[name](snapshot)
    if name == "forward":
        for stream in made["netperf"]:
            stream["messages_received"] = 0
    if name == "tcp":
        ends = [made["whole"][end]["netstat"]["IpExt"]["InOctets"] for end in ("before", "after")]
        packets = [made["whole"][end]["snmp"]["Ip"]["InReceives"] for end in ("before", "after")]
        octets = ends[1] - ends[0] - 52 * (packets[1] - packets[0])
        for stream in made["netperf"]:
            stream["octets_received"] = octets // 2
    edit(made["whole"]["after"])
    if idle:
        made["window"]["end"]["cpu"][0]["idle_ns"] += 10**9
    return judged(made, campaign)


def lose(table: str, name: str, packets: int = 5000) -> Callable[[Json], None]:
    def edit(snapshot: Json) -> None:
        tables = snapshot | snapshot["netstat"] | snapshot["snmp"]
        group = tables[table]
        group[name] -= packets

    return edit


@pytest.mark.parametrize("name", LOADED)
def test_a_load_that_loses_nothing_counts(tmp_path: Path, name: str) -> None:
    told = measured(name, tmp_path, lambda _: None)
    assert told.void == ()
    entered = {"tcp": 10_000}.get(name, 100_000)
    assert told.values["stack_rx_pps"] == pytest.approx(entered + 10, rel=1e-3)
    delivered = {"udp6": 2_000, "forward": 100_000, "tcp": 10_010}[name]
    assert told.values["delivered_pps"] == pytest.approx(delivered, rel=1e-3)
    assert sum(told.drops.values()) > 0
    if name == "tcp":
        assert told.values["goodput_mbps"] == pytest.approx(100_000 * 1448 * 8 / 1e6, rel=1e-3)
    else:
        assert "goodput_mbps" not in told.values


def test_payload_of_a_receiver_that_was_idle_is_not_judged(tmp_path: Path) -> None:
    told = measured("tcp", tmp_path, lambda _: None, idle=True)
    assert "goodput_mbps" not in told.values
    assert "could take" in told.absent["goodput_mbps"]


@pytest.mark.parametrize(
    ("name", "lost", "rules"),
    [
        ("udp6", lose("nic", "port_rx_packets"), {"nic-conservation"}),
        ("udp6", lose("Ip6", "InReceives"), {"stack-conservation", "ip-conservation"}),
        ("udp6", lose("Udp6", "InErrors"), {"ip-conservation"}),
        ("udp6", lose("Udp6", "InDatagrams", 3000), {"ip-conservation", "delivery-conservation"}),
        ("forward", lose("nic", "port_rx_packets"), {"nic-conservation"}),
        ("forward", lose("Ip", "InReceives"), {"stack-conservation", "forward-conservation"}),
        ("forward", lose("Ip", "ForwDatagrams"), {"forward-conservation", "sent-conservation"}),
        ("forward", lose("link", "tx_packets"), {"sent-conservation"}),
        (
            "forward",
            lambda snapshot: snapshot.update(qdisc_dropped=0),
            {"sent-conservation"},
        ),
        ("tcp", lose("nic", "port_rx_packets"), {"nic-conservation"}),
        ("tcp", lose("Tcp", "InSegs"), {"ip-conservation"}),
        ("tcp", lose("IpExt", "InOctets", 5000 * SEGMENT), {"payload-conservation"}),
        ("tcp", lose("IpExt", "InOctets", -5000 * SEGMENT), {"payload-conservation"}),
    ],
)
def test_a_packet_that_is_lost_on_the_way_voids_the_trial(
    tmp_path: Path, name: str, lost: Callable[[Json], None], rules: set[str]
) -> None:
    told = measured(name, tmp_path, lost)
    assert {void.rule for void in told.void} - {"counter-reset"} == rules


@pytest.mark.parametrize(
    ("name", "table", "counter", "place"),
    [
        ("udp6", "Ip6", "InDiscards", "ip"),
        ("udp6", "Udp6", "NoPorts", "udp_noport"),
        ("forward", "Ip", "InDiscards", "ip"),
        ("forward", "Ip", "InDelivers", None),
    ],
)
def test_what_is_counted_elsewhere_is_no_loss(
    tmp_path: Path, name: str, table: str, counter: str, place: str | None
) -> None:
    def dropped(snapshot: Json) -> None:
        snmp = snapshot["snmp"]
        snmp[table][counter] += 5000
        if name == "udp6":
            snmp["Udp6"]["InErrors"] -= 5000
            snmp["Udp6"]["RcvbufErrors"] -= 5000
        else:
            snmp["Ip"]["ForwDatagrams"] -= 5000
            snapshot["link"]["tx_packets"] -= 5000

    told = measured(name, tmp_path, dropped)
    assert told.void == ()
    assert place is None or told.drops[place] == 5000


def test_lists_of_ipv6_are_not_judged_by_functions_of_ipv4(tmp_path: Path) -> None:
    def traced(boot: Json, *_: object) -> Json:
        over_ipv6(boot)
        for made in boot["trials"]:
            if made["trace"]:
                stages = made["trace"]["stages"]
                made["trace"]["stages"] = [s for s in stages if s["name"] != "ip_list_rcv"]
                made["trace"]["per_skb"]["ip_rcv"] = 0
        return boot

    root = make_campaign(
        tmp_path,
        effects={"0": 1.0, "8": 1.2},
        blocks=1,
        edit=traced,
        about={"load": {"kind": "udp6"}},
    )
    found = analyse(ResultDirectory.open(root))
    assert found.void == ()
    assert [row.ip_rcv_per_packet for row in found.rows] == [None, None]
    assert any("no probe at ipv6_rcv, ipv6_list_rcv" in note for note in found.notes)
    report = document(found)
    assert [row["published_ratio"] for row in report["rows"]] == [None, None]
    assert "published" not in table(report)


def test_what_gro_holds_may_come_up_one_by_one(tmp_path: Path) -> None:
    def singly(boot: Json, *_: object) -> Json:
        for made in boot["trials"]:
            if made["trace"]:
                seen = made["trace"]["per_skb"]["tracepoint_netif_receive_skb"]
                made["trace"]["per_skb"]["ip_rcv"] = seen
        return boot

    void = {}
    for name in ("udp", "tcp"):
        root = make_campaign(
            tmp_path / name,
            effects={"0": 1.0, "8": 1.2},
            blocks=1,
            edit=singly,
            about={"load": {"kind": name}},
        )
        void[name] = {why.rule for one in analyse(ResultDirectory.open(root)).void
                      for why in one.reasons}  # fmt: skip
    assert "list-path" in void["udp"]
    assert "list-path" not in void["tcp"]


def test_payload_is_compared_and_judged(tmp_path: Path) -> None:
    def merged(boot: Json, *_: object) -> Json:
        for made in boot["trials"]:
            for snapshot in snapshots(made):
                to_segments(snapshot)
            made["netperf"] = []
        return boot

    root = make_campaign(
        tmp_path,
        effects={"0": 1.0, "8": 1.2},
        blocks=6,
        edit=merged,
        about={"load": {"kind": "tcp"}},
    )
    report = document(analyse(ResultDirectory.open(root)))
    assert [one for one in report["void"] if not one["rates_only"]] == []
    found = report["rows"][1]["measures"]["goodput_mbps"]
    assert found["ratio_to_step0"] == pytest.approx(1.2, rel=0.05)
    assert found["verdict"]["verdict"] == "higher"
    assert "payload of TCP, Mbit/s" in table(report)
