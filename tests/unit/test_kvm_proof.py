# SPDX-License-Identifier: MIT
"""KVM is used if a kernel boots with it: however slowly, but not if it falls silent."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from harness.base.errors import InfrastructureError
from harness.beds.virtual import qemu
from harness.images import Tools
from harness.kernels import Image

pytestmark = pytest.mark.unit

PANIC = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


class Emulated:
    """In the place of QEMU, a shell ``script`` that writes to the console $1."""

    root = None

    def __init__(self, script: str) -> None:
        self.script = script

    def qemu(self, arguments: Sequence[str]) -> list[str]:
        console = arguments[arguments.index("-serial") + 1].removeprefix("file:")
        return ["sh", "-c", self.script, "sh", console]


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(qemu, "_KVM_SILENT_S", 1.0)
    usable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm" or usable(path, mode))


def chosen(script: str, directory: Path, wanted: str = "auto") -> str:
    image = Image(
        step="0", layout=1, release="6.12", patches=(), source="", compiler="", config_sha256="",
        image_sha256="", directory=directory,
    )  # fmt: skip
    return qemu.accelerator_that_works(wanted, image=image, tools=cast("Tools", Emulated(script)))


def test_a_kernel_that_boots_slowly_proves_kvm(tmp_path: Path) -> None:
    slowly = f'for line in 1 2 3 4; do echo $line >> "$1"; sleep 0.5; done; echo "{PANIC}" >> "$1"'
    assert chosen(slowly, tmp_path) == "kvm"
    assert chosen("exit 1", tmp_path) == "kvm", "the proof is not kept"


@pytest.mark.parametrize(
    "script",
    ["sleep 60", 'echo Linux > "$1"; sleep 60', "echo no such device >&2; exit 1"],
    ids=["silent", "falls silent", "ends"],
)
def test_what_does_not_boot_is_ended_and_not_used(script: str, tmp_path: Path) -> None:
    began = time.monotonic()
    assert chosen(script, tmp_path) == "tcg"
    assert time.monotonic() - began < 10
    with pytest.raises(InfrastructureError, match="no kernel boots with it"):
        chosen(script, tmp_path, "kvm")
