# SPDX-License-Identifier: MIT
"""The port: its cable, its transceiver, the driver's link settings, and self-tests.

Hides the link's state and its commands. The link partner accepts any speed that the
driver asks for; the wire is equally fast at each. Field names are those of mcdi_pcol.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from harness.nic.mcdi import EINVAL, Command, Layout, McdiError
from harness.nic.registers import Field

_CAP_1000FDX, _CAP_10000FDX, _CAP_PAUSE, _CAP_ASYM = 6, 7, 8, 9
CAPS = 1 << _CAP_1000FDX | 1 << _CAP_10000FDX | 1 << _CAP_PAUSE | 1 << _CAP_ASYM
# GET_PHY_CFG_OUT_FLAGS: PRESENT, LOWPOWER, POWEROFF, TXDIS, BIST.
_PHY_FLAGS = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6
_MEDIA_SFP_PLUS = 5
_PHY_STATE_OK = 1

_SET_LINK = Layout(16, CAP=0, FLAGS=4, LOOPBACK_MODE=8)
# LOWPOWER, POWEROFF, TXDIS, LINKDOWN: each takes the link down.
_LINK_OFF = 0b1111
_TX_OFF = 0b0100
_LOOPBACK_NONE, _LOOPBACK_DATA = 0, 1
_LINK_UP, _FULL_DUPLEX = 1 << 0, 1 << 1
_FCNTL_BIDIR, _FCNTL_AUTO = 2, 3

LINKCHANGE_LP_CAP, LINKCHANGE_SPEED = Field(0, 16), Field(16, 4)
LINKCHANGE_FCNTL, LINKCHANGE_FLAGS = Field(20, 4), Field(24, 8)
_EVENT_SPEEDS = {0: 0, 1_000: 2, 10_000: 3}

_LED = Layout(4, STATE=0)
_LED_STATES = 3  # off, on, default
_MEDIA_INFO = Layout(4, PAGE=0)
_BIST = Layout(4, TYPE=0)
_PHY_BIST, _MC_MEM_BIST, _REG_BIST = 5, 6, 8
_BIST_PASSED = 2


class Phy:
    """The port's state, and the table of its commands.

    Args:
        changed: called when the link goes up or down or changes.
        quiesce: called before offline tests, to free all queues of the function.
    """

    def __init__(self, changed: Callable[[], None], quiesce: Callable[[], None]) -> None:
        self._changed = changed
        self._quiesce = quiesce
        self._cable = True
        self._caps = CAPS
        self._off = 0
        self._loopback = _LOOPBACK_NONE
        self._wanted_fcntl = 0
        self._offline = False
        self._bist: int | None = None
        self._told = self._state()
        self.commands: dict[int, Command] = {
            number: Command(name, run)
            for number, name, run in (
                (0x24, "GET_PHY_CFG", self._get_phy_cfg),
                (0x25, "START_BIST", self._start_bist),
                (0x26, "POLL_BIST", self._poll_bist),
                (0x28, "GET_LOOPBACK_MODES", self._get_loopback_modes),
                (0x29, "GET_LINK", self._get_link),
                (0x2A, "SET_LINK", self._set_link),
                (0x2B, "SET_ID_LED", self._set_id_led),
                (0x43, "GET_PHY_STATE", lambda _: struct.pack("<I", _PHY_STATE_OK)),
                (0x4B, "GET_PHY_MEDIA_INFO", self._get_phy_media_info),
                (0xED, "ENABLE_OFFLINE_BIST", self._enable_offline_bist),
            )
        }

    def reset(self) -> None:
        """Back to the firmware's defaults; the cable stays as it is."""
        self._caps, self._off, self._loopback = CAPS, 0, _LOOPBACK_NONE
        self._wanted_fcntl = 0
        self._offline, self._bist = False, None
        self._told = self._state()

    @property
    def looped(self) -> bool:
        """The MAC is in loopback and receives nothing from the wire.

        The driver turns the transmitter off meanwhile (__efx_reconfigure_port); loopback in
        the MAC does not need it.
        """
        return self._loopback != _LOOPBACK_NONE and not self._off & ~_TX_OFF

    @property
    def carries(self) -> bool:
        """Frames pass between the MAC and the wire."""
        return self._cable and not self._off and self._loopback == _LOOPBACK_NONE

    @property
    def up(self) -> bool:
        return self.looped or self.carries

    @property
    def speed_mbps(self) -> int:
        """0 when the link is down."""
        if not self.up:
            return 0
        return 10_000 if self._caps >> _CAP_10000FDX & 1 else 1_000

    def plug(self, plugged: bool) -> None:
        """Plug or unplug the cable."""
        self._cable = plugged
        self._tell()

    def set_fcntl(self, fcntl: int) -> None:
        """SET_MAC's flow control. With AUTO both sides pause if both offer it."""
        self._wanted_fcntl = min(fcntl, _FCNTL_AUTO)
        self._tell()

    @property
    def _fcntl(self) -> int:
        """MC_CMD_FCNTL_OFF, RESPOND or BIDIR."""
        if self._wanted_fcntl < _FCNTL_AUTO:
            return self._wanted_fcntl
        return _FCNTL_BIDIR if self._caps >> _CAP_PAUSE & 1 else 0

    def event(self) -> int:
        """The data of a LINKCHANGE event."""
        return (
            LINKCHANGE_LP_CAP.put(CAPS if self.up else 0)
            | LINKCHANGE_SPEED.put(_EVENT_SPEEDS[self.speed_mbps])
            | LINKCHANGE_FCNTL.put(self._fcntl)
            | LINKCHANGE_FLAGS.put(self._flags)
        )

    @property
    def _flags(self) -> int:
        return _FULL_DUPLEX | (_LINK_UP if self.up else 0)

    def _state(self) -> tuple[int, bool, bool, int]:
        return self.speed_mbps, self.carries, self.looped, self._fcntl if self.up else 0

    def _tell(self) -> None:
        state = self._state()
        if state != self._told:
            self._told = state
            self._changed()

    def _get_phy_cfg(self, _: bytes) -> bytes:
        return struct.pack(
            "<6I20sII20s", _PHY_FLAGS, 0, CAPS, 0, 0, 0, b"virtual", _MEDIA_SFP_PLUS, 0, b"1"
        )

    def _get_loopback_modes(self, _: bytes) -> bytes:
        modes = 1 << _LOOPBACK_DATA
        return struct.pack("<5Q", 0, modes, modes, modes, 0)  # 100M, 1G, 10G, SUGGESTED, 40G

    def _get_link(self, _: bytes) -> bytes:
        partner = CAPS if self.up else 0
        return struct.pack(
            "<7I", self._caps, partner, self.speed_mbps, self._loopback, self._flags,
            self._fcntl, 0,
        )  # fmt: skip

    def _set_link(self, payload: bytes) -> bytes:
        asked = _SET_LINK.unpack(payload)
        caps, mode = asked["CAP"], asked["LOOPBACK_MODE"]
        if caps & ~CAPS or not caps & (1 << _CAP_1000FDX | 1 << _CAP_10000FDX):
            raise McdiError(EINVAL, f"capabilities {caps:#x}, of {CAPS:#x}")
        if mode not in (_LOOPBACK_NONE, _LOOPBACK_DATA):
            raise McdiError(EINVAL, f"loopback mode {mode}")
        self._caps, self._off, self._loopback = caps, asked["FLAGS"] & _LINK_OFF, mode
        self._tell()
        return b""

    def _set_id_led(self, payload: bytes) -> bytes:
        if _LED.unpack(payload)["STATE"] >= _LED_STATES:
            raise McdiError(EINVAL, "no such state of the LED")
        return b""

    def _get_phy_media_info(self, payload: bytes) -> bytes:
        page = _MEDIA_INFO.unpack(payload)["PAGE"]
        if page > 1:
            raise McdiError(EINVAL, f"page {page} of a module without diagnostics")
        content = _MODULE if page == 0 else bytes(128)
        return struct.pack("<I", len(content)) + content

    def _enable_offline_bist(self, _: bytes) -> bytes:
        self._quiesce()
        self._offline = True
        return b""

    def _start_bist(self, payload: bytes) -> bytes:
        kind = _BIST.unpack(payload)["TYPE"]
        if kind not in (_PHY_BIST, _MC_MEM_BIST, _REG_BIST):
            raise McdiError(EINVAL, f"no BIST of type {kind}")
        if kind != _PHY_BIST and not self._offline:
            raise McdiError(EINVAL, f"BIST {kind} runs offline only")
        self._bist = kind
        return b""

    def _poll_bist(self, _: bytes) -> bytes:
        """Every test has passed at once: there is no memory and no register that could fail."""
        if self._bist is None:
            raise McdiError(EINVAL, "no BIST was started")
        return struct.pack("<II", _BIST_PASSED, 0)


def _module() -> bytes:
    """The first page of an SFP+ module's EEPROM (SFF-8472): a passive copper cable of 1 m."""
    page = bytearray(128)
    page[0:4] = 3, 4, 0x21, 0  # SFP, identified by this page, copper pigtail
    page[8] = 0x04  # passive cable
    page[11:13] = 6, 103  # 64B/66B, in units of 100 MBd
    page[18] = 1  # metres
    page[20:36] = b"virtual".ljust(16)
    page[40:56] = b"virtual cable".ljust(16)
    page[56:60] = b"1".ljust(4)
    page[63] = sum(page[:63]) & 0xFF
    page[68:84] = b"1".ljust(16)
    page[84:92] = b"260101".ljust(8)
    page[95] = sum(page[64:95]) & 0xFF
    return bytes(page)


_MODULE = _module()
