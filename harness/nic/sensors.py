# SPDX-License-Identifier: MIT
"""The card's sensors: SENSOR_INFO and READ_SENSORS of mcdi_pcol.h, for hwmon.

Hides which sensors there are and what they read. The values do not change; a sensor's state
follows from its limits: outside the first range it warns, outside the second it is fatal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.nic.mcdi import EINVAL, Command, Layout, McdiError
from harness.nic.memory import GuestAccessError, GuestMemory

_INFO = Layout(4, PAGE=0)
_READ = Layout(8, DMA_ADDR=(0, 8))
_READ_EXT = Layout(12, LENGTH=8)
_OK, _WARNING, _FATAL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor of page 0: MC_CMD_SENSOR_*, its value, and the ranges of SENSOR_INFO_ENTRY."""

    number: int
    value: int
    normal: tuple[int, int]
    critical: tuple[int, int]

    @property
    def state(self) -> int:
        if not self.critical[0] <= self.value <= self.critical[1]:
            return _FATAL
        return _OK if self.normal[0] <= self.value <= self.normal[1] else _WARNING


SENSORS = (
    Sensor(0x00, 48, (0, 90), (0, 100)),  # CONTROLLER_TEMP, °C
    Sensor(0x03, 41, (0, 80), (0, 90)),  # PHY0_TEMP, °C
    Sensor(0x0C, 12_050, (11_000, 13_000), (10_800, 13_200)),  # IN_12V0, mV
    Sensor(0x1C, 901, (850, 950), (800, 1000)),  # IN_0V9, mV
)


class Sensors:
    """The table of the sensors' commands; readings are written to ``memory``."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.commands: dict[int, Command] = {
            0x41: Command("SENSOR_INFO", self._info),
            0x42: Command("READ_SENSORS", self._read),
        }

    def _info(self, payload: bytes) -> bytes:
        if payload and _INFO.unpack(payload)["PAGE"]:
            raise McdiError(EINVAL, "there is one page of sensors")
        mask = sum(1 << sensor.number for sensor in SENSORS)
        entries = (struct.pack("<4H", *sensor.normal, *sensor.critical) for sensor in SENSORS)
        return struct.pack("<I", mask) + b"".join(entries)

    def _read(self, payload: bytes) -> bytes:
        values = b"".join(
            struct.pack("<HBB", sensor.value, sensor.state, sensor.number) for sensor in SENSORS
        )
        address = _READ.unpack(payload)["DMA_ADDR"]
        if len(payload) >= _READ_EXT.minimum and _READ_EXT.unpack(payload)["LENGTH"] < len(values):
            raise McdiError(EINVAL, "no room for the readings")
        try:
            self._memory.write(address, values)
        except GuestAccessError as error:
            raise McdiError(EINVAL, str(error)) from error
        return b""
