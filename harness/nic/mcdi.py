# SPDX-License-Identifier: MIT
"""MCDI: requests from the driver to the management CPU, and their responses.

Hides the doorbell pair, the request headers (versions 1 and 2), the order in
which a response is written, and errors. ``commands`` has the commands. Source:
mcdi.c, and the MCDI_HEADER_* fields of mcdi_pcol.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.nic.injection import Injector, Mishap
from harness.nic.journal import Journal, log
from harness.nic.memory import GuestAccessError, GuestMemory
from harness.nic.registers import Field

MCDI_HEADER_CODE = Field(0, 7)
MCDI_HEADER_DATALEN = Field(8, 8)
MCDI_HEADER_SEQ = Field(16, 4)
MCDI_HEADER_ERROR = Field(22, 1)
MCDI_HEADER_RESPONSE = Field(23, 1)
MCDI_HEADER_XFLAGS_EVREQ = Field(24, 1)
MC_CMD_V2_EXTN = 0x7F
V2_EXTN_IN_EXTENDED_CMD = Field(0, 15)
V2_EXTN_IN_ACTUAL_LEN = Field(16, 10)

# MC_CMD_ERR_*
EPERM, ENOENT, EINTR, EIO, EACCES, EINVAL, ENOSPC, ENOSYS = 1, 2, 4, 5, 13, 22, 28, 38
EPROTO, EALREADY = 71, 114

_ECHOED = MCDI_HEADER_CODE.put(-1) | MCDI_HEADER_SEQ.put(-1) | (0x3F << 24) | (1 << 7)


class McdiError(Exception):
    """A command fails with an MC_CMD_ERR_* code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class McRebooted(Exception):  # noqa: N818
    """The management CPU restarted; the request ends with an error without a code."""


class Layout:
    """The fields of a request, by name.

    Args:
        minimum: shortest request; a shorter one fails with EINVAL.
        fields: name → offset of a little-endian dword, or (offset, octets).
    """

    def __init__(self, minimum: int, **fields: int | tuple[int, int]) -> None:
        self.minimum = minimum
        self._fields = {name: (at, 4) if isinstance(at, int) else at for name, at in fields.items()}

    def unpack(self, payload: bytes) -> Mapping[str, int]:
        if len(payload) < self.minimum:
            raise McdiError(EINVAL, f"{len(payload)} octets where {self.minimum} are needed")
        return {
            name: int.from_bytes(payload[at : at + octets], "little")
            for name, (at, octets) in self._fields.items()
        }


@dataclass(frozen=True, slots=True)
class Command:
    """One entry of the dispatch table: ``run`` turns a request into a response."""

    name: str
    run: Callable[[bytes], bytes]


class Mcdi:
    """The mailbox.

    Args:
        commands: the dispatch table, by command number.
        completed: called with (sequence number, response length, error) after the
            response to a request that asked for an event.
        injector: may have something happen to a request.
    """

    def __init__(
        self,
        memory: GuestMemory,
        journal: Journal,
        commands: Mapping[int, Command],
        completed: Callable[[int, int, int], None],
        injector: Injector,
    ) -> None:
        self._memory = memory
        self._journal = journal
        self._commands = commands
        self._completed = completed
        self._injector = injector
        self._high = 0
        self._epoch = 0

    def reset(self) -> None:
        """Forget a half-written doorbell, and answers that are late."""
        self._high = 0
        self._epoch += 1

    def write_high(self, value: int) -> None:
        self._high = value

    def doorbell(self, low: int) -> None:
        """Run the request at the doorbell's address and answer it in place.

        Requests are dword aligned. The low bits would cancel a running request; here a
        request never outlasts its doorbell.
        """
        if low & 3:
            return
        address = (self._high << 32) | low
        self._high = 0
        try:
            header0, header1 = struct.unpack("<II", self._memory.read(address, 8))
            number = MCDI_HEADER_CODE.of(header0)
            if number == MC_CMD_V2_EXTN:
                number = V2_EXTN_IN_EXTENDED_CMD.of(header1)
                offset, length = 8, V2_EXTN_IN_ACTUAL_LEN.of(header1)
            else:
                offset, length = 4, MCDI_HEADER_DATALEN.of(header0)
            payload = self._memory.read(address + offset, length)
        except GuestAccessError as error:
            self._journal.note("mcdi_bad_address", "request at %#x: %s", address, error)
            return
        self._journal.count("mcdi_requests")
        mishap, late_ms = self._injector.mishap(number) or (None, 0)
        if mishap is Mishap.STUCK:
            return
        if mishap is Mishap.REBOOT:
            failed, answer = EIO, b""
        elif mishap is Mishap.DEAD:
            failed, answer = EINTR, struct.pack("<II", EINTR, 0)
        else:
            failed, answer = self._run(number, payload)
        events = {Mishap.SILENT: 0, Mishap.REBOOT: 0, Mishap.TWICE: 2}.get(mishap, 1)  # type: ignore[arg-type]
        epoch = self._epoch

        def finish() -> None:
            if epoch == self._epoch:
                self._finish(address, header0, header1, failed, answer, events)

        if mishap is Mishap.LATE:
            self._injector.after(late_ms, finish)
        else:
            finish()

    def _finish(
        self, address: int, header0: int, header1: int, failed: int, answer: bytes, events: int
    ) -> None:
        """Answer a request, and send its event, or several."""
        try:
            self._respond(address, header0, header1, failed, answer)
        except GuestAccessError as error:
            self._journal.note("mcdi_bad_address", "response at %#x: %s", address, error)
            return
        if MCDI_HEADER_XFLAGS_EVREQ.of(header0):
            for _ in range(events):
                self._completed(MCDI_HEADER_SEQ.of(header0), len(answer), failed)

    def _run(self, number: int, payload: bytes) -> tuple[int, bytes]:
        command = self._commands.get(number)
        if command is None:
            self._journal.note("mcdi_unknown", "command %#x, %d octets", number, len(payload))
            return ENOSYS, struct.pack("<II", ENOSYS, 0)
        try:
            answer = command.run(payload)
        except McdiError as error:
            log.debug("MCDI %s fails: %d, %s", command.name, error.code, error)
            return error.code, struct.pack("<II", error.code, 0)
        except McRebooted:
            return EIO, b""
        except Exception as error:  # noqa: BLE001 - without an answer the driver waits 10 s
            self._journal.mistake(error)
            return EPROTO, struct.pack("<II", EPROTO, 0)
        log.debug("MCDI %s(%s) → %d octets", command.name, payload[:32].hex(), len(answer))
        return 0, answer

    def _respond(
        self, address: int, header0: int, header1: int, failed: int, answer: bytes
    ) -> None:
        header0 = header0 & _ECHOED | MCDI_HEADER_RESPONSE.put(1)
        header0 |= MCDI_HEADER_ERROR.put(bool(failed))
        padded = answer + bytes(-len(answer) % 4)
        if MCDI_HEADER_CODE.of(header0) == MC_CMD_V2_EXTN:
            self._memory.write(address + 8, padded)
            header1 = V2_EXTN_IN_EXTENDED_CMD.put(header1) | V2_EXTN_IN_ACTUAL_LEN.put(len(answer))
            self._memory.write(address + 4, struct.pack("<I", header1))
        else:
            header0 |= MCDI_HEADER_DATALEN.put(len(answer))
            self._memory.write(address + 4, padded)
        # The driver polls this dword.
        self._memory.write(address, struct.pack("<I", header0))
