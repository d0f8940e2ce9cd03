# SPDX-License-Identifier: MIT
"""The QEMU plugin that counts a guest's instructions and icache misses."""

from __future__ import annotations

from pathlib import Path

from harness.base import cache, process
from harness.base.errors import InfrastructureError
from harness.beds.bed import Block

_SOURCE = Path(__file__).with_name("icache.c")
_COMPILE = ["gcc", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
COUNTERS = "icache-counters"
_BLOCKS = "icache-blocks"
_PAGE_BYTES = 4096


def plugin() -> Path:
    """The plugin, from the cache or compiled now.

    Raises:
        InfrastructureError: it does not compile.
    """

    def make(making: Path) -> None:
        compile_ = [*_COMPILE, "-o", str(making / "icache.so"), str(_SOURCE)]
        process.run(compile_, env=process.building(), hint="apt-get install gcc")

    key = cache.digest(_SOURCE.read_text(encoding="utf-8"), *_COMPILE)
    kept = cache.entry(cache.root() / "plugins" / key, make, what="the plugin of QEMU")
    return kept / "icache.so"


def arguments(plugin: Path, directory: Path) -> list[str]:
    """QEMU's arguments to count into files of ``directory``.

    Raises:
        InfrastructureError: the directory cannot be written.
    """
    counters = directory / COUNTERS
    try:
        counters.write_bytes(bytes(_PAGE_BYTES))
    except OSError as error:
        raise InfrastructureError(f"{counters} cannot be written: {error.strerror}") from error
    return [
        "-plugin", f"file={plugin},counters={counters},blocks={directory / _BLOCKS}",
        "-object", f"memory-backend-file,id=icache,mem-path={counters},size={_PAGE_BYTES},share=on",
        "-device", "ivshmem-plain,memdev=icache",
    ]  # fmt: skip


def blocks(directory: Path) -> list[Block]:
    """What was executed in the last counted window.

    Raises:
        InfrastructureError: the emulator wrote no counts.
    """
    try:
        lines = (directory / _BLOCKS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InfrastructureError(
            f"the emulator wrote no instruction counts: {error.strerror}"
        ) from error
    found = []
    for line in lines:
        address, *numbers = line.split()
        runs, each, misses = map(int, numbers)
        found.append(Block(int(address, 16), runs, runs * each, misses))
    return found
