# SPDX-License-Identifier: MIT
"""The NIC as the agent sees it: the function, its receive rules, its rings and offloads."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import Any

import pytest

from harness.agent.drivers import ef10
from harness.agent.interface import nic, ntuple
from harness.agent.interface.ntuple import Ntuple, Rule
from harness.agent.settings import offloads, queues, rules

pytestmark = pytest.mark.unit

IRQS = {30: "enp1s0f0np0-0", 31: "enp1s0f0np0-1", 40: "enp1s0f0np0-tx-2", 50: "enp1s0f0np0 ptp"}


def _described(at: Path, pci_id: str | None = "1924:0a03", driver: str | None = "sfc") -> Any:
    return nic.describe(at, driver=driver, pci_id=pci_id, firmware="7.6.9.1018 rx1 tx1", irqs=IRQS)


def test_an_ef10_function_is_known(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "dev_port").write_text("1\n")
    (tmp_path / "phys_port_name").write_text("p1\n")
    (tmp_path / "device/local_cpulist").write_text("0-7,16-23\n")
    assert _described(tmp_path) == {
        "family": "ef10",
        "chip": "SFC9220",
        "adapters": "8xxx",
        "function": "PF",
        "port": 1,
        "port_name": "p1",
        "local_cpus": "0-7,16-23",
        "firmware": {
            "version": "7.6.9.1018",
            "variant": "low-latency",
            "tx_variant": "low-latency",
        },
        "queue_irqs": {"0": 30, "1": 31},
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("pci_id", "driver", "told"),
    [
        ("1924:0803", "sfc_siena", "no EF10 function of sfc (PCI 1924:0803, driver sfc_siena)"),
        ("10ee:0100", "sfc", "no EF10 function of sfc (PCI 10ee:0100, driver sfc)"),
        ("1924:0b03", "vfio-pci", "EF10 function (SFC9250) under the driver vfio-pci, not sfc"),
        (None, "veth", "no EF10 function of sfc (no PCI function, driver veth)"),
        (None, None, "driver unknown"),
    ],
)
def test_what_is_no_ef10_is_a_warning(
    tmp_path: Path, pci_id: str | None, driver: str | None, told: str
) -> None:
    [warning] = _described(tmp_path, pci_id, driver)["warnings"]
    assert told in warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.2.2.1003 rx0 tx0", ("4.2.2.1003", "full-feature", "full-feature")),
        ("8.0.0.1015 rx1 tx3", ("8.0.0.1015", "low-latency", "high-packet-rate")),
        ("6.2.7.1000 rx10a tx12d", ("6.2.7.1000", "bist", "bist")),
        ("6.2.7.1000 rx77 tx0", ("6.2.7.1000", "unknown (77)", "full-feature")),
        ("3.3.0.1000", ("3.3.0.1000", None, None)),
    ],
)
def test_firmware_variants(text: str, expected: tuple[str | None, ...]) -> None:
    found = ef10.parse_firmware(text)
    assert found is not None
    assert tuple(found.values()) == expected


@pytest.mark.parametrize("text", ["", "N/A", "16.31.1014 (MT_0000000012)"])
def test_firmware_of_other_drivers_is_left_as_it_is(text: str) -> None:
    assert ef10.parse_firmware(text) is None


class Tcpip4Spec(ctypes.Structure):
    """As include/uapi/linux/ethtool.h has it."""

    _fields_ = (
        ("ip4src", ctypes.c_ubyte * 4),
        ("ip4dst", ctypes.c_ubyte * 4),
        ("psrc", ctypes.c_uint16),
        ("pdst", ctypes.c_uint16),
        ("tos", ctypes.c_uint8),
    )


class FlowUnion(ctypes.Union):
    _fields_ = (("tcp_ip4_spec", Tcpip4Spec), ("hdata", ctypes.c_ubyte * 52))


class FlowExt(ctypes.Structure):
    _fields_ = (
        ("padding", ctypes.c_ubyte * 2),
        ("h_dest", ctypes.c_ubyte * 6),
        ("vlan_etype", ctypes.c_uint16),
        ("vlan_tci", ctypes.c_uint16),
        ("data", ctypes.c_uint32 * 2),
    )


class RxFlowSpec(ctypes.Structure):
    _fields_ = (
        ("flow_type", ctypes.c_uint32),
        ("h_u", FlowUnion),
        ("h_ext", FlowExt),
        ("m_u", FlowUnion),
        ("m_ext", FlowExt),
        ("ring_cookie", ctypes.c_uint64),
        ("location", ctypes.c_uint32),
    )


class RxNfc(ctypes.Structure):
    _fields_ = (
        ("cmd", ctypes.c_uint32),
        ("flow_type", ctypes.c_uint32),
        ("data", ctypes.c_uint64),
        ("fs", RxFlowSpec),
        ("rule_cnt", ctypes.c_uint32),
        ("rule_locs", ctypes.c_uint32 * 0),
    )


class Driver:
    """A driver's receive rules, behind the ioctl's structs."""

    def __init__(self, *, special: bool = True, places: int = 8, refuses: int = 0) -> None:
        self.rules: dict[int, RxFlowSpec] = {}
        self._special, self._places, self._refuses = special, places, refuses

    def __call__(self, request: bytes) -> bytes:
        data = bytearray(request)
        nfc = RxNfc.from_buffer(data)
        if nfc.cmd == 0x2E:
            nfc.data = self._places | (0x80000000 if self._special else 0)
            nfc.rule_cnt = len(self.rules)
        elif nfc.cmd == 0x30:
            assert len(data) == ctypes.sizeof(RxNfc) + 4 * nfc.rule_cnt
            nfc.rule_cnt = len(self.rules)
            # The kernel's rule_locs stand right behind rule_cnt, before the padding.
            at = RxNfc.rule_locs.offset
            for number, place in enumerate(self.rules):
                data[at + 4 * number : at + 4 * number + 4] = place.to_bytes(4, "little")
        elif nfc.cmd == 0x2F:
            if nfc.fs.location not in self.rules:
                raise OSError(errno.ENOENT, "no such rule")
            nfc.fs = self.rules[nfc.fs.location]
        elif nfc.cmd == 0x31:
            del self.rules[nfc.fs.location]
        elif nfc.cmd == 0x32:
            if self._refuses and bytes(nfc.fs.m_u.tcp_ip4_spec.ip4dst) != bytes(4):
                raise OSError(self._refuses, "no such filter")
            place = nfc.fs.location
            assert (place == 0xFFFFFFFF) == self._special
            place = len(self.rules) + 1 if self._special else place
            kept = RxFlowSpec.from_buffer_copy(nfc.fs)
            kept.location = place
            self.rules[place] = kept
        return bytes(data)


def test_the_layout_is_the_kernels() -> None:
    assert ntuple._RXNFC.size == ctypes.sizeof(RxNfc)
    assert ntuple._RXNFC.size - 4 == RxNfc.rule_locs.offset


@pytest.mark.parametrize("special", [True, False])
def test_rules_are_added_seen_and_removed(special: bool) -> None:
    driver = Driver(special=special)
    table = Ntuple(driver)
    assert table.rules() == {}
    table.add(Rule("198.18.0.2", 3))
    table.add(Rule(None, 0))
    first, second = table.rules() or {}
    assert table.rules() == {first: Rule("198.18.0.2", 3), second: Rule(None, 0)}
    spec = driver.rules[first]
    assert (spec.flow_type, spec.ring_cookie) == (2, 3)
    assert bytes(spec.h_u.tcp_ip4_spec.ip4dst) == bytes([198, 18, 0, 2])
    assert bytes(spec.m_u.tcp_ip4_spec.ip4dst) == b"\xff" * 4
    assert not any((spec.m_u.tcp_ip4_spec.pdst, spec.m_u.tcp_ip4_spec.psrc, spec.h_u.hdata[12]))
    table.remove(first)
    assert table.rules() == {second: Rule(None, 0)}


def test_rules_of_others_are_not_seen_and_not_touched() -> None:
    driver = Driver()
    for location, (flow, port) in enumerate(((1, 0), (2, 0xFFFF), (0x80000002, 0)), start=1):
        spec = RxFlowSpec(flow_type=flow, location=location)
        spec.m_u.tcp_ip4_spec.pdst = port
        driver.rules[location] = spec
    setting = _setting(driver)
    assert setting.read() == []
    setting.write([{"destination": "198.18.0.2", "queue": 0}])
    setting.write([])
    assert sorted(driver.rules) == [1, 2, 3]


def test_a_full_table_is_told() -> None:
    table = Ntuple(Driver(special=False, places=1))
    table.add(Rule(None, 0))
    with pytest.raises(OSError, match="no free location"):
        table.add(Rule("198.18.0.2", 0))


def test_a_driver_without_rules_has_none() -> None:
    def call(_: bytes) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    assert Ntuple(call).rules() is None
    assert _setting(call).read() is None


def _setting(call: Any) -> Any:
    return rules.of(Ntuple(call))


@pytest.mark.parametrize("refuses", [0, errno.EPROTONOSUPPORT, errno.EINVAL])
def test_udp_is_sent_to_the_first_queue_and_let_go(refuses: int) -> None:
    setting = _setting(Driver(refuses=refuses))
    before = setting.read()
    wanted = rules.with_rule(before, "198.18.0.2")
    setting.write(wanted)
    after = setting.read()
    # A NIC that cannot match on an address alone takes all of UDP.
    assert after == [{"destination": None if refuses else "198.18.0.2", "queue": 0}]
    assert setting.holds(after, wanted)
    assert rules.with_rule(after, "198.18.0.2") == after
    assert not setting.holds(after, before)
    setting.write(before)
    assert setting.holds(setting.read(), before)


def test_another_refusal_is_an_error() -> None:
    setting = _setting(Driver(refuses=errno.EBUSY))
    with pytest.raises(OSError, match="no such filter"):
        setting.write([{"destination": "198.18.0.2", "queue": 0}])


def test_by_the_table_alone_the_queue_count_stays() -> None:
    now = {
        "in_use": 4,
        "queues": 4,
        "channels": {"rx": 0, "combined": 4},
        "indirection": [0, 1, 2, 3],
    }
    alone = queues.with_queues(now, 1, channels=False)
    assert alone is not None
    assert (alone["in_use"], alone["channels"]) == (1, now["channels"])
    both = queues.with_queues(now, 1, channels=True)
    assert both is not None
    assert both["channels"] == {"rx": 0, "combined": 1}
    assert queues.with_queues(now | {"indirection": None}, 1, channels=False) is None


def test_an_offload_that_cannot_be_had_is_none() -> None:
    now = {
        "rx-gro": {"on": True, "fixed": False},
        "rx-lro": {"on": False, "fixed": True},
    }
    assert offloads.with_offload(now, "gro", False) == now | {
        "rx-gro": {"on": False, "fixed": False}
    }
    assert offloads.with_offload(now, "lro", True) is None
    assert offloads.with_offload(now, "lro", False) == now
    assert offloads.with_offload(now, "gro_hw", False) is None
