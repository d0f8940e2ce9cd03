# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.base.errors import HostLostError
from harness.beds.virtual.qemu import free_port
from harness.selftest import machine

pytestmark = pytest.mark.unit


def test_a_machine_without_power_is_told_as_that_and_shows_what_it_wrote(tmp_path: Path) -> None:
    nothing = cast("Any", None)
    off = machine.Machine(
        name="dut", directory=tmp_path, runtime=tmp_path, tools=nothing, accelerator="tcg",
        vcpus=1, memory_mib=1, mac="", namespace=nothing, wire="", starter=nothing,
        ssh=cast("Any", SimpleNamespace(port=free_port())),
    )  # fmt: skip
    off.console_log.write_text("\n".join(f"line {number}" for number in range(40)))
    with pytest.raises(HostLostError) as told:
        off.wait_for_ssh(within_s=0.2)
    assert "no ssh server answers" in told.value.message
    assert "QEMU does not do query-status" in told.value.message
    assert "line 39" in told.value.message
    assert "line 2\n" not in told.value.message
