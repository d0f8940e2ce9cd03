# SPDX-License-Identifier: MIT
"""Makes a machine's first CPU crash or loop, by QEMU's gdb stub."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from harness.base.errors import InfrastructureError

_PATIENCE_S = 20.0
_TRIES = 500
# x86-64: sixteen registers of 8 bytes, then rip of 8, eflags and cs of 4.
_REGISTERS = struct.Struct("<128xQII")
_RIP = 0x10
_INTERRUPTS_ON = 1 << 9
_SELF = b"\xeb\xfe"
"""A jump to itself."""
_PIECE, _PIECES = 0x400, 4096


def oops(debugger: Path) -> None:
    """Make the kernel jump to address 0."""
    _jump(debugger, lambda _line, _rip: 0)


def lock_up(debugger: Path) -> None:
    """Make the kernel loop forever with interrupts on."""
    _jump(debugger, _endless)


def _jump(debugger: Path, chosen: Callable[[socket.socket, int], int]) -> None:
    """Set the CPU's rip to the ``chosen`` address when it is in the kernel with interrupts on.

    Raises:
        InfrastructureError: it was never there, or the stub answered with an error.
    """
    for _ in range(_TRIES):
        # The stub stops the machine while a client is connected.
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_PATIENCE_S)
            line.connect(str(debugger))
            rip, flags, cs = _REGISTERS.unpack_from(bytes.fromhex(_ask(line, "g")))
            if found := cs & 3 == 0 and flags & _INTERRUPTS_ON:
                address = struct.pack("<Q", chosen(line, rip)).hex()
                if _ask(line, f"P{_RIP:x}={address}") != "OK":
                    raise InfrastructureError(f"{debugger} does not set rip")
            _ask(line, "D")
        if found:
            return
        time.sleep(0.02)
    raise InfrastructureError(f"the CPU at {debugger} was never in its kernel in {_TRIES} tries")


def _endless(line: socket.socket, rip: int) -> int:
    """The address of a jump to itself in the kernel's text, which has hundreds by chance."""
    start = rip & ~(_PIECE - 1)
    # Downwards: an idle CPU is near the end of the text.
    for piece in range(start, start - _PIECES * _PIECE, -_PIECE):
        try:
            code = bytes.fromhex(_ask(line, f"m{piece:x},{_PIECE:x}"))
        except ValueError:  # an error code: below the text
            break
        if (at := code.find(_SELF)) >= 0:
            return piece + at
    raise InfrastructureError(f"no jump to itself behind {start:#x}")


def _ask(line: socket.socket, command: str) -> str:
    line.sendall(f"+${command}#{sum(command.encode()) % 256:02x}".encode())
    said = b""
    while True:
        chunk = line.recv(1 << 16)
        if not chunk:
            raise InfrastructureError("the gdb stub closed the connection")
        said += chunk
        start = said.find(b"$")
        end = said.find(b"#", start + 1)
        if start >= 0 and 0 < end <= len(said) - 3:
            line.sendall(b"+")
            answer = said[start + 1 : end].decode("ascii", "replace")
            if not answer.startswith("T"):  # an unsolicited stop report
                return answer
            said = said[end + 3 :]
