# SPDX-License-Identifier: MIT
"""Compiles a probe's C source to a bcc object.

Hides where the source is (checkout, wheel or zipapp) and which kernel headers bcc gets: the few
types in probes/kernel_types.h, which need nothing installed and compile much faster, or the
kernel's own if those do not suffice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.agent.faults import AgentError, need

from .btf import VMLINUX, Btf

_TYPES = "kernel_types.h"
# The headers that bcc includes first; after kernel_types.h they can be empty.
_ASKED_FOR = (
    "include/linux/bpf_common.h",
    "include/linux/log2.h",
    "include/linux/types.h",
    "include/linux/version.h",
    "include/uapi/linux/bpf.h",
    "include/uapi/linux/if_packet.h",
    "arch/x86/include/asm/page.h",
)
_READ_FIRST = "include/linux/kconfig.h"
_READ = {
    "SKB_DEV": ("sk_buff", "dev"),
    "DEV_IFINDEX": ("net_device", "ifindex"),
    "SKB_QUEUE": ("sk_buff", "queue_mapping"),
    "SKB_IIF": ("sk_buff", "skb_iif"),
}
_TREE_VARIABLE = "BCC_KERNEL_SOURCE"
# include/uapi/linux/bpf.h
_PROG_LOAD, _SOCKET_FILTER, _ATTR_BYTES = 5, 1, 48
_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)
_HINT = (
    "without BTF bcc needs the kernel's prepared headers at /lib/modules/RELEASE/build, "
    "or a kernel with CONFIG_IKHEADERS"
)
# Reads a file beside this package, from a directory or from a zipapp.
_LOADER: Any = __spec__.loader


def bcc() -> Any:
    """The module, or an AgentError that names its package."""
    return need("bcc")


def probe_source(name: str, program_dir: str | None) -> str:
    """The text of ``name`` in ``program_dir``, or in the probes that ship with this agent.

    Raises:
        AgentError: the file does not exist.
    """
    package = Path(__file__).parents[2]
    if program_dir is not None:
        places = [Path(program_dir)]
    else:
        places = [package.parent / "probes", package / "data" / "probes"]
    for place in places:
        with contextlib.suppress(OSError):
            return str(_LOADER.get_data(str(place / name)), "utf-8")
    raise AgentError(f"no probe {name} in {places[0]}", kind="configuration")


def compiled(source: str, flags: list[str], *, program_dir: str | None = None) -> Any:
    """A bcc object, with nothing loaded or attached yet.

    Raises:
        AgentError: bcc is missing or the program does not compile on this host.
    """
    offsets = _offsets()
    if offsets and platform.machine() == "x86_64":
        with contextlib.suppress(AgentError):
            types = probe_source(_TYPES, program_dir)
            with _tree(types):
                return _compile(source, [*offsets, _version(), *flags])
    return _compile(source, [*offsets, *flags])


def takes_loops() -> bool:
    """Does the kernel's verifier accept bounded loops (since Linux 5.3)? Found by loading one."""
    loop = b"".join(
        struct.pack("=BBhi", *instruction)
        # r0 = 0; r0 += 1; if r0 < 8 goto -2; exit
        for instruction in ((0xB7, 0, 0, 0), (0x07, 0, 0, 1), (0xA5, 0, -2, 8), (0x95, 0, 0, 0))
    )
    code, license_ = ctypes.create_string_buffer(loop), ctypes.create_string_buffer(b"GPL")
    places = (ctypes.addressof(code), ctypes.addressof(license_))
    asked = ctypes.create_string_buffer(
        struct.pack("=IIQQ", _SOCKET_FILTER, len(loop) // 8, *places), _ATTR_BYTES
    )
    libc = ctypes.CDLL(None, use_errno=True)
    loaded = libc.syscall(_SYS_BPF, _PROG_LOAD, asked, _ATTR_BYTES)
    if loaded >= 0:
        os.close(loaded)
    return bool(loaded >= 0)


def _offsets() -> list[str]:
    """Flags with the offsets of the members that the program reads; empty without BTF."""
    with contextlib.suppress(OSError, ValueError):
        offsets = Btf(VMLINUX.read_bytes()).member_offsets(*_READ.values())
        if offsets is not None:
            return [f"-D{name}={at}" for name, at in zip(_READ, offsets)]
    return []


def _version() -> str:
    # Before 5.0 the kernel accepts a kprobe program only with its own version in it.
    major, minor, patch = (*map(int, re.findall(r"\d+", platform.release())[:3]), 0, 0)[:3]
    return f"-DLINUX_VERSION_CODE={(major << 16) + (minor << 8) + min(patch, 255)}"


@contextlib.contextmanager
def _tree(types: str) -> Iterator[None]:
    """Make bcc use a kernel tree that has only ``types`` as the kernel's headers."""
    with tempfile.TemporaryDirectory(prefix="receive-batching-") as root:
        for name in (*_ASKED_FOR, _READ_FIRST):
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(types if name == _READ_FIRST else "", encoding="utf-8")
        before = os.environ.get(_TREE_VARIABLE)
        os.environ[_TREE_VARIABLE] = root
        try:
            yield
        finally:
            os.environ.pop(_TREE_VARIABLE)
            if before is not None:
                os.environ[_TREE_VARIABLE] = before


def _compile(source: str, flags: list[str]) -> Any:
    bpf = bcc().BPF

    class _Unattached(bpf):  # type: ignore[misc, valid-type]
        def _trace_autoload(self) -> None:
            """bcc would attach every kfunc__ now, and fail at the first missing function."""

    # The compiler writes to file descriptor 2, and bcc does not keep its output.
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            return _Unattached(text=source.encode(), cflags=flags)
        except Exception as error:
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
            first = next((line for line in text.splitlines() if "error:" in line), text[:300])
            raise AgentError(f"the probes do not compile: {first or error}", hint=_HINT) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
