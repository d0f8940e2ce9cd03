# SPDX-License-Identifier: MIT
"""Every MCDI command that the driver can send is implemented, or refused for a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.base import cache
from harness.nic import mcdi
from harness.nic.refused import REFUSED, Refused
from tests.nic.minidriver import McdiFailedError, MiniDriver

pytestmark = pytest.mark.nic

README = Path(__file__).parents[2] / "harness/nic/README.md"
_SFC = "drivers/net/ethernet/sfc"
# Sources of EF100 cards alone.
_OTHER = re.compile(r"ef100|mae|tc|mcdi_pcol")
# An escape for longer requests; a comment about EF100; its devlink ports.
_NOT_SENT = {"V2_EXTN", "MAE_COUNTERS_STREAM_GIVE_CREDITS", "SET_CLIENT_MAC_ADDRESSES"}
_SENT = """
    GET_ASSERTS=0x06 LOG_CTRL=0x07 GET_VERSION=0x08 PTP=0x0b MDIO_READ=0x10 MDIO_WRITE=0x11
    GET_BOARD_CFG=0x18 DRV_ATTACH=0x1c ENTITY_RESET=0x20 GET_PHY_CFG=0x24 START_BIST=0x25
    POLL_BIST=0x26 FLUSH_RX_QUEUES=0x27 GET_LOOPBACK_MODES=0x28 GET_LINK=0x29 SET_LINK=0x2a
    SET_ID_LED=0x2b SET_MAC=0x2c MAC_STATS=0x2e WOL_FILTER_SET=0x32 WOL_FILTER_REMOVE=0x33
    WOL_FILTER_RESET=0x34 NVRAM_TYPES=0x36 NVRAM_INFO=0x37 NVRAM_UPDATE_START=0x38
    NVRAM_READ=0x39 NVRAM_WRITE=0x3a NVRAM_ERASE=0x3b NVRAM_UPDATE_FINISH=0x3c REBOOT=0x3d
    SENSOR_INFO=0x41 READ_SENSORS=0x42 GET_PHY_STATE=0x43 WOL_FILTER_GET=0x45 WORKAROUND=0x4a
    GET_PHY_MEDIA_INFO=0x4b NVRAM_TEST=0x4c NVRAM_PARTITIONS=0x51 NVRAM_METADATA=0x52
    GET_MAC_ADDRESSES=0x55 GET_WORKAROUNDS=0x59 PRIVILEGE_MASK=0x5a LINK_STATE_MODE=0x5c
    VADAPTOR_SET_MAC=0x5d VADAPTOR_QUERY=0x61 INIT_EVQ=0x80 INIT_RXQ=0x81 INIT_TXQ=0x82
    FINI_EVQ=0x83 FINI_RXQ=0x84 FINI_TXQ=0x85 DRIVER_EVENT=0x86 FILTER_OP=0x8a ALLOC_VIS=0x8b
    FREE_VIS=0x8c ALLOC_PIOBUF=0x8f FREE_PIOBUF=0x90 LINK_PIOBUF=0x92 UNLINK_PIOBUF=0x93
    VSWITCH_ALLOC=0x94 VSWITCH_FREE=0x95 VPORT_ALLOC=0x96 VPORT_FREE=0x97 VADAPTOR_ALLOC=0x98
    VADAPTOR_FREE=0x99 EVB_PORT_ASSIGN=0x9a RSS_CONTEXT_ALLOC=0x9e RSS_CONTEXT_FREE=0x9f
    RSS_CONTEXT_SET_KEY=0xa0 RSS_CONTEXT_GET_KEY=0xa1 RSS_CONTEXT_SET_TABLE=0xa2
    RSS_CONTEXT_GET_TABLE=0xa3 VPORT_ADD_MAC_ADDRESS=0xa8 VPORT_DEL_MAC_ADDRESS=0xa9
    VPORT_GET_MAC_ADDRESSES=0xaa GET_CLOCK=0xac GET_PORT_ASSIGNMENT=0xb8 GET_CAPABILITIES=0xbe
    LICENSING_V3=0xd0 RSS_CONTEXT_SET_FLAGS=0xe1 RSS_CONTEXT_GET_FLAGS=0xe2
    TRIGGER_INTERRUPT=0xe3 GET_PARSER_DISP_INFO=0xe4 GET_FUNCTION_INFO=0xec
    ENABLE_OFFLINE_BIST=0xed SET_TUNNEL_ENCAP_UDP_PORTS=0x117 SET_EVQ_TMR=0x120
    GET_EVQ_TMR_PROPERTIES=0x122
"""
SENT = {name: int(number, 16) for name, number in (word.split("=") for word in _SENT.split())}
"""What the driver of 6.1.192 and that of 6.12.117 send to EF10 cards."""


def sent_by(driver: Path) -> dict[str, int]:
    """The commands that the driver's source names, and their numbers."""
    numbers = {
        found[1]: int(found[2], 16)
        for found in re.finditer(
            r"^/\* MC_CMD_(\w+)$.*?^#define\s+MC_CMD_\1 (0x[0-9a-f]+)\b",
            (driver / "mcdi_pcol.h").read_text(),
            re.MULTILINE | re.DOTALL,
        )
    }
    named = {
        name
        for source in sorted(driver.glob("*.[ch]"))
        if not _OTHER.match(source.name)
        for name in re.findall(r"\bMC_CMD_(\w+)\b", source.read_text())
    }
    return {name: numbers[name] for name in named & set(numbers) - _NOT_SENT}


def table() -> dict[int, str]:
    driver = MiniDriver()
    names = {number: command.name for number, command in driver.nic.commands.items()}
    driver.close()
    return names


@pytest.mark.parametrize("name", SENT)
def test_what_the_driver_sends_is_in_the_table(name: str) -> None:
    assert table()[SENT[name]] == name


def test_the_list_is_that_of_the_driver() -> None:
    """In the sources that a run has unpacked: 6.12 and 6.1, but not the user's own trees."""
    trees = [
        tree
        for tree in cache.root().glob("sources/*/linux")
        if re.search(
            r"^VERSION = 6\nPATCHLEVEL = (1|12)\n", (tree / "Makefile").read_text(), re.MULTILINE
        )
    ]
    if not trees:
        pytest.skip("no kernel source is unpacked in the cache: harness build --steps 0")
    for tree in trees:
        assert sent_by(tree / _SFC) == SENT, tree


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: command.name)
def test_what_is_left_out_is_refused_and_documented(command: Refused) -> None:
    driver = MiniDriver()
    driver.attach()
    driver.probe()
    with pytest.raises(McdiFailedError) as failed:
        driver.mcdi(command.number, bytes(64))
    assert failed.value.code == command.code
    assert driver.nic.counters()["mcdi_unknown"] == 0
    driver.close()
    alike = [other for other in REFUSED if (other.code, other.why) == (command.code, command.why)]
    listed = ", ".join(f"{other.name} {other.number:#x}" for other in alike)
    row = f"| {listed} | {mcdi_error(command.code)} | {command.why} |"
    assert row in README.read_text(), row


def mcdi_error(code: int) -> str:
    return next(name for name, value in vars(mcdi).items() if name[0] == "E" and value == code)


def test_what_nobody_knows_is_refused_and_counted() -> None:
    driver = MiniDriver()
    driver.attach()
    with pytest.raises(McdiFailedError) as failed:
        driver.mcdi(0x1FE)
    assert failed.value.code == mcdi.ENOSYS
    assert driver.nic.counters()["mcdi_unknown"] == 1
    driver.close()
