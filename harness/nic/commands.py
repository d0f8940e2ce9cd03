# SPDX-License-Identifier: MIT
"""The MCDI commands: one dispatch table, with the field names of mcdi_pcol.h.

A command checks its request and then calls the :class:`Function`. The table has every command
that the driver can send: ``phy``, ``nvram`` and ``sensors`` have those of their own, and
``refused`` has those that this model lacks, with the reasons.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from harness.nic import steering
from harness.nic.mcdi import (
    EALREADY,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EPERM,
    Command,
    Layout,
    McdiError,
    McRebooted,
)
from harness.nic.memory import GuestMemory
from harness.nic.nvram import Nvram
from harness.nic.pci import VECTORS
from harness.nic.phy import Phy
from harness.nic.queues import DmaRing
from harness.nic.refused import REFUSED
from harness.nic.sensors import Sensors

TMR_NS_PER_COUNT = 1536
MAX_VIS = 1024
_TMR_MAX_COUNT = 0x3FFF
_PAGE = 4096

# GET_CAPABILITIES_OUT_FLAGS1: only what this model has.
_SET_MAC_ENHANCED, _RX_PREFIX_LEN_14, _MCAST_FILTER_CHAINING = 9, 23, 26
_FLAGS1 = 1 << _SET_MAC_ENHANCED | 1 << _RX_PREFIX_LEN_14 | 1 << _MCAST_FILTER_CHAINING
_WORKAROUND_BUG26807 = 0x40
_FUNC_FLAGS = 0b111  # PRIMARY, LINKCTRL, TRUSTED

# MC_CMD_PRIVILEGE_MASK_IN_GRP_*: all but the reserved one.
_PRIVILEGES = 0x7F7
_CLOCK_MHZ = 200
_AFTER_ASSERTION = 1 << 0
_BOARD_EXT_INFO = 4
_NO_DATA = 0xDA7A1057

_INIT_EVQ = Layout(44, SIZE=0, INSTANCE=4, FLAGS=16, IRQ_NUM=24, DMA_ADDR=(36, 8))
_INIT_DMAQ = Layout(
    36, SIZE=0, TARGET_EVQ=4, LABEL=8, INSTANCE=12, FLAGS=16, DMA_ADDR=(28, 8)
)  # INIT_RXQ and INIT_TXQ agree on these
_INSTANCE = Layout(4, INSTANCE=0)
_FILTER_OP = Layout(12, OP=0, HANDLE=(4, 8))
_FILTER_OP_INSERT = Layout(108, MATCH_FIELDS=16, RX_DEST=20, RX_QUEUE=24, RX_MODE=28, RX_CONTEXT=32)
_FILTER_OP_IN_DST_MAC = slice(52, 58)
_MAC_STATS = Layout(16, DMA_ADDR=(0, 8), CMD=8, DMA_LEN=12)
_DRIVER_EVENT = Layout(12, EVQ=0, DATA=(4, 8))
_SET_MAC = Layout(28, MTU=0, FCNTL=20)
_SET_MAC_EXT = Layout(32, CONTROL=28)
_ALLOC_VIS = Layout(8, MIN_VI_COUNT=0, MAX_VI_COUNT=4)
_RSS_CONTEXT = Layout(4, RSS_CONTEXT_ID=0)
_RSS_ALLOC = Layout(12, TYPE=4, NUM_QUEUES=8)
_WORKAROUND = Layout(8, TYPE=0, ENABLED=4)
_SET_EVQ_TMR = Layout(16, INSTANCE=0, TMR_LOAD_REQ_NS=4, TMR_RELOAD_REQ_NS=8, TMR_MODE=12)
_ATTACH = Layout(12, NEW_STATE=0, UPDATE=4)
_PARSER_DISP_INFO = Layout(4, OP=0)
_TRIGGER = Layout(4, INTR_LEVEL=0)
_PRIVILEGE_MASK = Layout(8, FUNCTION=0, NEW_MASK=4)

_OP_INSERT, _OP_REMOVE, _OP_SUBSCRIBE, _OP_UNSUBSCRIBE, _OP_REPLACE = range(5)


class Function(Protocol):
    """What the commands need of the PCI function they manage."""

    mac: bytes
    memory: GuestMemory
    steering: steering.Steering
    phy: Phy

    @property
    def asserted(self) -> bool: ...
    def entity_reset(self) -> None: ...
    def mc_reboot(self) -> None: ...
    def init_evq(self, instance: int, *, start: int, entries: int, vector: int) -> None: ...
    def init_rxq(self, instance: int, ring: DmaRing, *, scatter: bool) -> None: ...
    def init_txq(self, instance: int, ring: DmaRing, *, ip_csum: bool, l4_csum: bool) -> None: ...
    def fini_queue(self, kind: str, instance: int) -> bool: ...
    def write_evq_timer(self, instance: int, mode: int, holdoff_ns: int) -> None: ...
    def push_event(self, evq: int, event: int) -> bool: ...
    def trigger_interrupt(self, vector: int) -> bool: ...
    def set_max_frame(self, octets: int) -> None: ...
    def mac_stats(self, address: int, qwords: int, *, clear: bool) -> bytes: ...
    def mac_stats_period(self, address: int, qwords: int, period_ms: int) -> None: ...


class Commands:
    """The table of commands, and the state that only MCDI has (attachment, VIs)."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._attached = 0
        self._vis = 0
        self._nvram = Nvram()
        self.table: dict[int, Command] = {
            number: Command(name, run)
            for number, name, run in (
                *_CONSTANT,
                (0x06, "GET_ASSERTS", self._get_asserts),
                (0x08, "GET_VERSION", self._get_version),
                (0x18, "GET_BOARD_CFG", self._get_board_cfg),
                (0x1C, "DRV_ATTACH", self._drv_attach),
                (0x20, "ENTITY_RESET", self._entity_reset),
                (0x2C, "SET_MAC", self._set_mac),
                (0x2E, "MAC_STATS", self._mac_stats),
                (0x3D, "REBOOT", self._reboot),
                (0x4A, "WORKAROUND", self._workaround),
                (0x55, "GET_MAC_ADDRESSES", self._get_mac_addresses),
                (0x59, "GET_WORKAROUNDS", self._get_workarounds),
                (0x5A, "PRIVILEGE_MASK", self._privilege_mask),
                (0x5D, "VADAPTOR_SET_MAC", self._vadaptor_set_mac),
                (0x80, "INIT_EVQ", self._init_evq),
                (0x81, "INIT_RXQ", self._init_rxq),
                (0x82, "INIT_TXQ", self._init_txq),
                (0x83, "FINI_EVQ", self._fini("evq")),
                (0x84, "FINI_RXQ", self._fini("rxq")),
                (0x85, "FINI_TXQ", self._fini("txq")),
                (0x86, "DRIVER_EVENT", self._driver_event),
                (0x8A, "FILTER_OP", self._filter_op),
                (0x8B, "ALLOC_VIS", self._alloc_vis),
                (0x8C, "FREE_VIS", self._free_vis),
                (0x9E, "RSS_CONTEXT_ALLOC", self._rss_alloc),
                (0x9F, "RSS_CONTEXT_FREE", self._rss_free),
                (0xA0, "RSS_CONTEXT_SET_KEY", self._rss_set_key),
                (0xA1, "RSS_CONTEXT_GET_KEY", self._rss_get_key),
                (0xA2, "RSS_CONTEXT_SET_TABLE", self._rss_set_table),
                (0xA3, "RSS_CONTEXT_GET_TABLE", self._rss_get_table),
                (0xBE, "GET_CAPABILITIES", self._get_capabilities),
                (0xE3, "TRIGGER_INTERRUPT", self._trigger_interrupt),
                (0xE4, "GET_PARSER_DISP_INFO", self._get_parser_disp_info),
                (0x120, "SET_EVQ_TMR", self._set_evq_tmr),
                (0x122, "GET_EVQ_TMR_PROPERTIES", self._get_evq_tmr_properties),
            )
        }
        self.table |= function.phy.commands | self._nvram.commands
        self.table |= Sensors(function.memory).commands
        self.table |= {
            command.number: Command(command.name, _refuse(command.code, command.why))
            for command in REFUSED
        }

    def reset(self) -> None:
        self._attached = 0
        self._vis = 0
        self._nvram.reset()

    def _get_asserts(self, _: bytes) -> bytes:
        """No failure, or a thread-level assertion; its registers have no data."""
        if not self._function.asserted:
            return struct.pack("<I136x", 1)
        return struct.pack("<34I4x", 3, 0x1000, *[_NO_DATA] * 31, 0x2000)

    def _get_version(self, payload: bytes) -> bytes:
        version = struct.pack("<II16x4H", 0xB0070001, 1, 1, 0, 0, 1)
        if len(payload) < 4:
            return version
        # V2: of the extra information only that of the board.
        flags = 1 << _BOARD_EXT_INFO
        serial = self._function.mac.hex().encode()
        return version + struct.pack("<16xI168x16sI64s", flags, b"virtual", 1, serial)

    def _drv_attach(self, payload: bytes) -> bytes:
        wanted = _ATTACH.unpack(payload)
        old = self._attached
        if wanted["UPDATE"]:
            self._attached = wanted["NEW_STATE"] & 1
        return struct.pack("<II", old, _FUNC_FLAGS)

    def _entity_reset(self, _: bytes) -> bytes:
        self._vis = 0
        self._function.entity_reset()
        return b""

    def _reboot(self, payload: bytes) -> bytes:
        flags = int.from_bytes(payload[:4], "little")
        if flags & _AFTER_ASSERTION and not self._function.asserted:
            return b""
        self._function.mc_reboot()
        raise McRebooted

    def _get_capabilities(self, _: bytes) -> bytes:
        # V2: FLAGS1, RX and TX DPCPU firmware ids, …; FLAGS2 and PIO stay 0.
        return struct.pack("<IHH64x", _FLAGS1, 1, 1)

    def _get_mac_addresses(self, _: bytes) -> bytes:
        return struct.pack("<6s2xII", self._function.mac, 1, 1)

    def _get_board_cfg(self, _: bytes) -> bytes:
        mac = self._function.mac
        # Type, name, capabilities, base address, count and stride of two ports; firmware.
        return struct.pack("<I32s8x6s6x4I24x", 0, b"virtual", mac, 1, 0, 1, 0)

    def _privilege_mask(self, payload: bytes) -> bytes:
        if _PRIVILEGE_MASK.unpack(payload)["NEW_MASK"] >> 31:  # DO_CHANGE
            raise McdiError(EPERM, "privileges cannot be changed")
        return struct.pack("<I", _PRIVILEGES)

    def _vadaptor_set_mac(self, payload: bytes) -> bytes:
        if len(payload) < 10:
            raise McdiError(EINVAL, "too short")
        return b""  # the driver's next filters have the address

    def _get_workarounds(self, _: bytes) -> bytes:
        return struct.pack("<II", _WORKAROUND_BUG26807, _WORKAROUND_BUG26807)

    def _workaround(self, payload: bytes) -> bytes:
        _WORKAROUND.unpack(payload)
        raise McdiError(ENOSYS, "no workaround can be switched")

    def _get_evq_tmr_properties(self, _: bytes) -> bytes:
        return struct.pack(
            "<9I", 0, TMR_NS_PER_COUNT, _TMR_MAX_COUNT, 1,
            _TMR_MAX_COUNT * TMR_NS_PER_COUNT, TMR_NS_PER_COUNT,
            TMR_NS_PER_COUNT, _TMR_MAX_COUNT, 1,
        )  # fmt: skip

    def _set_evq_tmr(self, payload: bytes) -> bytes:
        asked = _SET_EVQ_TMR.unpack(payload)
        self._function.write_evq_timer(
            asked["INSTANCE"], asked["TMR_MODE"], asked["TMR_LOAD_REQ_NS"]
        )
        return struct.pack("<II", asked["TMR_LOAD_REQ_NS"], asked["TMR_RELOAD_REQ_NS"])

    def _alloc_vis(self, payload: bytes) -> bytes:
        asked = _ALLOC_VIS.unpack(payload)
        if self._vis:
            raise McdiError(EALREADY, "VIs are allocated")
        if asked["MIN_VI_COUNT"] > MAX_VIS:
            raise McdiError(ENOSPC, f"more than {MAX_VIS} VIs")
        self._vis = min(asked["MAX_VI_COUNT"], MAX_VIS)
        return struct.pack("<II", self._vis, 0)

    def _free_vis(self, _: bytes) -> bytes:
        if not self._vis:
            raise McdiError(EALREADY, "no VIs are allocated")
        self._vis = 0
        return b""

    def _set_mac(self, payload: bytes) -> bytes:
        asked = _SET_MAC.unpack(payload)
        control = 0x1F
        if len(payload) >= _SET_MAC_EXT.minimum:
            control = _SET_MAC_EXT.unpack(payload)["CONTROL"] or control
        if control & 1:
            self._function.set_max_frame(asked["MTU"])
        if control & 8:
            self._function.phy.set_fcntl(asked["FCNTL"])
        return b""

    def _mac_stats(self, payload: bytes) -> bytes:
        asked = _MAC_STATS.unpack(payload)
        command = asked["CMD"]
        dma, clear, change, enable = (bool(command >> bit & 1) for bit in range(4))
        qwords = asked["DMA_LEN"] // 8
        if (dma or (change and enable)) and not 2 <= qwords <= _PAGE // 8:
            raise McdiError(EINVAL, "no room for the statistics")
        if change:
            period_ms = (command >> 16) if enable else 0
            self._function.mac_stats_period(asked["DMA_ADDR"], qwords, period_ms)
        if dma or clear:
            self._function.mac_stats(asked["DMA_ADDR"], qwords if dma else 0, clear=clear)
        return b""

    def _init_evq(self, payload: bytes) -> bytes:
        asked = _INIT_EVQ.unpack(payload)
        self._check_ring(asked["SIZE"], asked["INSTANCE"], payload, 36)
        self._function.init_evq(
            asked["INSTANCE"],
            start=asked["DMA_ADDR"],
            entries=asked["SIZE"],
            vector=asked["IRQ_NUM"],
        )
        return struct.pack("<I", asked["IRQ_NUM"])

    def _init_rxq(self, payload: bytes) -> bytes:
        instance, ring, flags = self._dmaq(payload)
        self._function.init_rxq(instance, ring, scatter=not flags >> 9 & 1)
        return b""

    def _init_txq(self, payload: bytes) -> bytes:
        instance, ring, flags = self._dmaq(payload)
        self._function.init_txq(
            instance, ring, ip_csum=not flags >> 1 & 1, l4_csum=not flags >> 2 & 1
        )
        return b""

    def _dmaq(self, payload: bytes) -> tuple[int, DmaRing, int]:
        """Instance, ring and flags of INIT_RXQ or INIT_TXQ."""
        asked = _INIT_DMAQ.unpack(payload)
        self._check_ring(asked["SIZE"], asked["INSTANCE"], payload, 28)
        ring = DmaRing(asked["DMA_ADDR"], asked["SIZE"], asked["TARGET_EVQ"], asked["LABEL"])
        return asked["INSTANCE"], ring, asked["FLAGS"]

    def _check_ring(self, entries: int, instance: int, payload: bytes, at: int) -> None:
        """A ring must be a power of two of qwords in consecutive pages.

        The driver allocates its rings in one piece. The interface also allows scattered
        pages; these are refused.
        """
        if entries & (entries - 1) or not 64 <= entries <= 32768:
            raise McdiError(EINVAL, f"{entries} entries")
        if instance >= MAX_VIS:
            raise McdiError(EINVAL, f"instance {instance}")
        pages = -(-entries * 8 // _PAGE)
        listed = [value for (value,) in struct.iter_unpack("<Q", _whole(payload[at:]))][:pages]
        if listed[0] % _PAGE or listed[0] >> 48:
            raise McdiError(EINVAL, f"a ring at {listed[0]:#x}")
        if any(page != listed[0] + _PAGE * index for index, page in enumerate(listed)):
            raise McdiError(EINVAL, "a ring in scattered pages")

    def _fini(self, kind: str) -> Callable[[bytes], bytes]:
        def fini(payload: bytes) -> bytes:
            if not self._function.fini_queue(kind, _INSTANCE.unpack(payload)["INSTANCE"]):
                raise McdiError(EALREADY, f"no such {kind}")
            return b""

        return fini

    def _driver_event(self, payload: bytes) -> bytes:
        asked = _DRIVER_EVENT.unpack(payload)
        if not self._function.push_event(asked["EVQ"], asked["DATA"]):
            raise McdiError(ENOENT, "no such event queue")
        return b""

    def _trigger_interrupt(self, payload: bytes) -> bytes:
        if not self._function.trigger_interrupt(_TRIGGER.unpack(payload)["INTR_LEVEL"]):
            raise McdiError(EINVAL, "no such vector")
        return b""

    def _filter_op(self, payload: bytes) -> bytes:
        asked = _FILTER_OP.unpack(payload)
        table = self._function.steering
        operation, handle = asked["OP"], asked["HANDLE"]
        if operation in (_OP_REMOVE, _OP_UNSUBSCRIBE, _OP_REPLACE) and handle not in table.filters:
            raise McdiError(ENOENT, "no such filter")
        if operation in (_OP_REMOVE, _OP_UNSUBSCRIBE):
            del table.filters[handle]
        elif operation in (_OP_INSERT, _OP_SUBSCRIBE, _OP_REPLACE):
            asked = _FILTER_OP_INSERT.unpack(payload)
            match = asked["MATCH_FIELDS"]
            mac = int.from_bytes(payload[_FILTER_OP_IN_DST_MAC], "big")
            if operation == _OP_REPLACE:
                match, mac = table.filters[handle].match, table.filters[handle].mac
            elif match not in steering.SUPPORTED_MATCHES:
                raise McdiError(EINVAL, f"match {match:#x}")
            if asked["RX_DEST"] > 1:
                raise McdiError(EINVAL, f"destination {asked['RX_DEST']}")
            context = None
            if asked["RX_MODE"] == steering.RX_MODE_RSS:
                context = asked["RX_CONTEXT"]
                self._rss(context)
            queue = asked["RX_QUEUE"] if asked["RX_DEST"] == 1 else steering.DROP
            if queue >= MAX_VIS:
                raise McdiError(EINVAL, f"queue {queue}")
            new = steering.Filter(match, mac, queue, context)
            if operation == _OP_REPLACE:
                table.filters[handle] = new
            else:
                inserted = table.insert(new)
                if inserted is None:
                    raise McdiError(ENOSPC, "the filter table is full")
                handle = inserted
        else:
            raise McdiError(EINVAL, f"operation {operation}")
        return struct.pack("<IQ", operation, handle)

    def _get_parser_disp_info(self, payload: bytes) -> bytes:
        operation = _PARSER_DISP_INFO.unpack(payload)["OP"]
        if operation != 1:  # GET_SUPPORTED_RX_MATCHES
            raise McdiError(ENOSYS, f"operation {operation}")
        matches = steering.SUPPORTED_MATCHES
        return struct.pack(f"<{2 + len(matches)}I", operation, len(matches), *matches)

    def _rss(self, handle: int) -> steering.RssContext:
        context = self._function.steering.contexts.get(handle)
        if context is None:
            raise McdiError(ENOENT, "no such RSS context")
        return context

    def _rss_alloc(self, payload: bytes) -> bytes:
        asked = _RSS_ALLOC.unpack(payload)
        handle = self._function.steering.allocate_context(min(asked["NUM_QUEUES"], 128))
        if handle is None:
            raise McdiError(ENOSPC, "no RSS context left")
        return struct.pack("<I", handle)

    def _rss_free(self, payload: bytes) -> bytes:
        handle = _RSS_CONTEXT.unpack(payload)["RSS_CONTEXT_ID"]
        self._rss(handle)
        del self._function.steering.contexts[handle]
        return b""

    def _rss_set_key(self, payload: bytes) -> bytes:
        context = self._rss(_RSS_CONTEXT.unpack(payload)["RSS_CONTEXT_ID"])
        if len(payload) < 44:
            raise McdiError(EINVAL, "a short key")
        context.key = payload[4:44]
        return b""

    def _rss_get_key(self, payload: bytes) -> bytes:
        return bytes(4) + self._rss(_RSS_CONTEXT.unpack(payload)["RSS_CONTEXT_ID"]).key

    def _rss_set_table(self, payload: bytes) -> bytes:
        context = self._rss(_RSS_CONTEXT.unpack(payload)["RSS_CONTEXT_ID"])
        if len(payload) < 132:
            raise McdiError(EINVAL, "a short table")
        context.set_table(list(payload[4:132]))
        return b""

    def _rss_get_table(self, payload: bytes) -> bytes:
        context = self._rss(_RSS_CONTEXT.unpack(payload)["RSS_CONTEXT_ID"])
        return bytes(4) + bytes(context.table.astype("u1"))


def _whole(data: bytes) -> bytes:
    return data[: len(data) // 8 * 8]


def _nothing(_: bytes) -> bytes:
    return b""


def _refuse(code: int, why: str) -> Callable[[bytes], bytes]:
    def refuse(_: bytes) -> bytes:
        raise McdiError(code, why)

    return refuse


_CONSTANT: tuple[tuple[int, str, Callable[[bytes], bytes]], ...] = (
    (0x07, "LOG_CTRL", _nothing),
    # VALUE and STATUS: nothing answers, because an SFP+ module is no PHY.
    (0x10, "MDIO_READ", lambda _: struct.pack("<II", 0xFFFF, 0)),
    (0x11, "MDIO_WRITE", lambda _: bytes(4)),
    # PORT_FLAGS, VADAPTOR_FLAGS, NUM_AVAILABLE_VLAN_TAGS.
    (0x61, "VADAPTOR_QUERY", lambda _: struct.pack("<III", 0, 0, 0)),
    (0x98, "VADAPTOR_ALLOC", _nothing),
    (0x99, "VADAPTOR_FREE", _nothing),
    (0xAC, "GET_CLOCK", lambda _: struct.pack("<II", _CLOCK_MHZ, _CLOCK_MHZ)),
    (0xB6, "GET_PF_COUNT", lambda _: b"\x01"),
    (0xB8, "GET_PORT_ASSIGNMENT", lambda _: bytes(4)),
    (0xBF, "GET_VECTOR_CFG", lambda _: struct.pack("<III", 0, VECTORS, 0)),
    (0xE2, "RSS_CONTEXT_GET_FLAGS", lambda _: struct.pack("<4xI", 0xF)),
    (0xEC, "GET_FUNCTION_INFO", lambda _: struct.pack("<II", 0, 0xFFFFFFFF)),
)
"""Commands whose answers do not depend on the state."""
