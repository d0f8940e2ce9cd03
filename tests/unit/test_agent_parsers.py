# SPDX-License-Identifier: MIT
"""The agent's parsers on text that real kernels and a real netperf wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.agent import counters, inventory
from harness.agent import load as netperf
from harness.agent import tracing as trace
from harness.agent.faults import AgentError
from harness.agent.tracing import btf, compiler, stages

pytestmark = pytest.mark.unit

SNMP = """\
Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers
Ip: 2 64 1203377 0 0 0 0 17 1203360
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 930121 3 273236 0 273236 0 0 0 0
"""  # noqa: E501

# Linux 6.18: 15 columns, the 13th is the CPU. CPU 0 is offline here.
SOFTNET = """\
0007a740 00000011 00000002 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001 00000000 00000000
"""  # noqa: E501
SOFTNET_4_18 = "0000be5c 00000000 00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000\n"  # noqa: E501

INTERRUPTS = """\
           CPU0       CPU1       
  1:          0          9  IO-APIC   1-edge      i8042
 24:          0    5926812 PCI-MSIX-0000:00:03.0   1-edge      eth1-0
 25:         12          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-input.0, virtio2 other
 26:          4          5     GICv3  27 Level     arch_timer
 27:          0          0  PCI-MSI 49152-edge    
NMI:          0          0   Non-maskable interrupts
ERR:          0
"""  # noqa: W291

STAT = """\
cpu  450 3 2227 90121 800 0 1900 5 0 0
cpu0 400 3 227 45000 700 7 1900 5 0 0
cpu1 50 0 2000 45121 100 0 0 0 0 0
intr 123 0 0
ctxt 99
"""

UDP = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            
  414: 0200000A:A3B1 00000000:0000 07 00000000:00034000 00:00000000 00000000     0        0 20423 2 00000000a1f2c0de 81321        
"""  # noqa: E501, W291

TASK = (
    "4711 (net (server) x) R 1 4711 4711 0 -1 4194560 198 0 0 0 12 34 0 0 20 0 1 0 91 3452928 311 "
    "18446744073709551615 1 1 0 0 0 0 0 4096 16385 0 0 0 17 1 0 0 0 0 0\n"
)

KEYVAL = """\
LOCAL_BYTES_SENT=116850
REMOTE_BYTES_RECVD=90969
ELAPSED_TIME=2.00
LOCAL_SEND_SIZE=1
"""


def test_snmp() -> None:
    groups = counters.parse_snmp(SNMP)
    assert groups["Ip"]["InReceives"] == 1203377
    assert groups["Ip"]["InDelivers"] + groups["Ip"]["InDiscards"] == groups["Ip"]["InReceives"]
    assert groups["Udp"]["RcvbufErrors"] == 273236


def test_softnet_knows_its_cpu_where_the_kernel_says_it() -> None:
    assert counters.parse_softnet(SOFTNET) == [
        {"cpu": 1, "processed": 0x7A740, "dropped": 0x11, "time_squeeze": 2, "received_rps": 0}
    ]
    assert counters.parse_softnet(SOFTNET_4_18 * 2)[1] == {
        "cpu": 1,
        "processed": 0xBE5C,
        "dropped": 0,
        "time_squeeze": 3,
        "received_rps": 0,
    }


def test_interrupts() -> None:
    rows = inventory.parse_interrupts(INTERRUPTS, {24, 25, 26, 27, 99})
    assert rows["24"] == {"name": "eth1-0", "counts": {"0": 0, "1": 5926812}}
    assert rows["25"]["name"] == "virtio2-input.0, virtio2 other"
    assert rows["26"] == {"name": "arch_timer", "counts": {"0": 4, "1": 5}}
    assert rows["27"]["name"] == ""
    assert set(rows) == {"24", "25", "26", "27"}


def test_interrupts_between_two_readings() -> None:
    before = inventory.parse_interrupts(INTERRUPTS, {24, 25})
    after = inventory.parse_interrupts(INTERRUPTS.replace("5926812", "5926819"), {24, 25})
    assert counters.interrupt_deltas(before, after) == {"24": {"1": 7}, "25": {}}


def test_cpu_times_are_nanoseconds() -> None:
    first, second = counters.parse_cpu(STAT)
    tick_ns = counters._NS_PER_TICK
    assert first == {
        "cpu": 0,
        "user_ns": 403 * tick_ns,
        "system_ns": 227 * tick_ns,
        "irq_ns": 7 * tick_ns,
        "softirq_ns": 1900 * tick_ns,
        "idle_ns": 45700 * tick_ns,
        "steal_ns": 5 * tick_ns,
    }
    assert second["cpu"] == 1


def test_udp_sockets() -> None:
    assert counters.parse_udp(UDP) == [
        {"local": "10.0.0.2:41905", "drops": 81321, "queued_bytes": 0x34000}
    ]


def test_a_task_whose_name_looks_like_the_end_of_a_name() -> None:
    assert counters.parse_task(TASK.encode()) == {
        "pid": 4711,
        "name": "net (server) x",
        "last_cpu": 1,
    }


def test_netperf_result() -> None:
    stream = netperf.parse_stream(KEYVAL, message_bytes=1)
    assert stream == {
        "messages_sent": 116850,
        "messages_received": 90969,
        "elapsed_s": 2.0,
        "send_pps": 58425.0,
        "recv_pps": 45484.5,
    }
    assert netperf.parse_stream(KEYVAL, message_bytes=10)["messages_sent"] == 11685


@pytest.mark.parametrize("text", ["", "netperf: remote error 4", "ELAPSED_TIME=\nLOCAL_BYTES=x"])
def test_netperf_that_said_nothing_useful(text: str) -> None:
    assert set(netperf.parse_stream(text, message_bytes=1).values()) == {None}


def _btf() -> bytes:
    """struct other { int x; }; struct skb { int x; union { struct { int next, prev, dev; }; } };"""
    names = b"\0int\0other\0x\0skb\0next\0prev\0dev\0"

    def name(text: str) -> int:
        return names.index(b"\0" + text.encode() + b"\0") + 1 if text else 0

    def kind(text: str, number: int, vlen: int, size: int) -> bytes:
        return struct.pack("III", name(text), number << 24 | vlen, size)

    def member(text: str, of: int, bits: int) -> bytes:
        return struct.pack("III", name(text), of, bits)

    types = b"".join(
        [
            kind("int", 1, 0, 4) + struct.pack("I", 32),  # 1
            kind("other", 4, 1, 4) + member("x", 1, 0),  # 2
            kind("", 13, 2, 0) + struct.pack("IIII", 0, 1, 0, 1),  # 3: a prototype in between
            kind("", 4, 3, 12)
            + member("next", 1, 0)
            + member("prev", 1, 32)
            + member("dev", 1, 64),
            kind("", 5, 1, 12) + member("", 4, 0),  # 5
            kind("skb", 4, 2, 16) + member("x", 1, 0) + member("", 5, 32),  # 6
            kind("other", 7, 0, 0),  # 7: a forward declaration of the same name
        ]
    )
    head = struct.pack("HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return head + types + names


def test_member_offsets_through_anonymous_members() -> None:
    types = btf.Btf(_btf())
    assert types.member_offsets(("skb", "dev"), ("other", "x")) == [12, 0]
    assert types.member_offsets(("skb", "dev"), ("other", "dev")) is None
    assert types.member_offsets(("skb", "no such member")) is None


def test_btf_of_another_byte_order_is_refused() -> None:
    with pytest.raises(ValueError, match="byte order"):
        btf.Btf(_btf()[1::-1] + _btf()[2:])


@pytest.mark.skipif(not btf.VMLINUX.exists(), reason="this kernel has no BTF")
def test_member_offsets_of_the_running_kernel() -> None:
    offsets = btf.Btf(btf.VMLINUX.read_bytes()).member_offsets(
        ("sk_buff", "dev"), ("net_device", "ifindex")
    )
    assert offsets is not None
    assert offsets[0] == 2 * struct.calcsize("P"), "after next and prev"
    assert offsets[1] > 0


def test_every_stage_of_the_probe_has_a_place_of_its_own() -> None:
    source = compiler.probe_source("receive_lists.bpf.c", None)
    found = stages._STAGE.findall(source)
    for handler in ("count_list", "count_skb"):
        numbers = [int(number) for _, name, number, _ in found if name == handler]
        assert numbers == list(range(len(numbers)))
        assert numbers
    assert f"#define LIST_STAGES {sum(name == 'count_list' for _, name, _, _ in found)}\n" in source
    assert len({function for *_, function in found}) == len(found)
    for told_orig_dev in ("__netif_receive_skb_list_ptype", "ip_list_rcv"):
        [number] = [number for *_, number, function in found if function == told_orig_dev]
        assert f"(index) == {number}" in source


def test_drop_reasons_are_those_the_kernel_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACEFS", tmp_path)
    assert trace._drop_reasons() == {}
    event = tmp_path / "events" / "skb" / "kfree_skb"
    event.mkdir(parents=True)
    event.joinpath("format").write_text(
        'print fmt: "skbaddr=%p protocol=%u location=%p", REC->skbaddr, REC->protocol\n'
    )
    assert trace._drop_reasons() == {}
    event.joinpath("format").write_text(
        'print fmt: "location=%pS reason: %s", REC->location, __print_symbolic(REC->reason, '
        '{ 2, "NOT_SPECIFIED" }, { 12, "NETFILTER_DROP" })\n'
    )
    assert trace._drop_reasons() == {2: "NOT_SPECIFIED", 12: "NETFILTER_DROP"}


def test_clones_the_compiler_made_are_probed_under_their_own_name() -> None:
    def located(*probeable: str) -> stages.Stage:
        return stages.located(stages.Stage("ip_sublist_rcv", "count_list", 4), [*probeable])

    assert located("ip_sublist_rcv", "ip_sublist_rcv.isra.0").function == "ip_sublist_rcv"
    assert located("ip_sublist_rcv.constprop.0").function == "ip_sublist_rcv.constprop.0"
    missing = located("ip_sublist_rcv_finish", "ip_sublist_rcv.cold", "ip_sublist_rcv.part.0")
    assert missing.function is None
    assert "no traceable function ip_sublist_rcv" in (missing.why or "")


def test_probes_from_a_directory_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        compiler.probe_source("receive_lists.bpf.c", str(tmp_path))
    assert caught.value.kind == "configuration"
