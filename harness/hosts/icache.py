# SPDX-License-Identifier: MIT
"""The plugin of an emulator that counts a guest's instructions and icache misses."""

from __future__ import annotations

from pathlib import Path

from harness import cache, process
from harness.errors import InfrastructureError

_SOURCE = Path(__file__).with_name("icache.c")
_COMPILE = ["gcc", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
_PAGE_BYTES = 4096


def plugin() -> Path:
    """The plugin, compiled if it is not kept yet.

    Raises:
        InfrastructureError: it cannot be compiled.
    """

    def make(making: Path) -> None:
        process.run([*_COMPILE, "-o", str(making / "icache.so"), str(_SOURCE)])

    key = cache.digest(_SOURCE.read_text(), *_COMPILE)
    kept = cache.entry(cache.root() / "plugins" / key, make, what="the plugin of QEMU")
    return kept / "icache.so"


def arguments(plugin: Path, counters: Path) -> list[str]:
    """Those of a QEMU that counts into the new file ``counters``, which its guest sees as well.

    Raises:
        InfrastructureError: the file cannot be written.
    """
    try:
        counters.write_bytes(bytes(_PAGE_BYTES))
    except OSError as error:
        raise InfrastructureError(f"{counters} cannot be written: {error.strerror}") from error
    return [
        "-plugin", f"file={plugin},counters={counters}",
        "-object", f"memory-backend-file,id=icache,mem-path={counters},size={_PAGE_BYTES},share=on",
        "-device", "ivshmem-plain,memdev=icache",
    ]  # fmt: skip
