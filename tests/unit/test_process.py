# SPDX-License-Identifier: MIT
"""The gateway to other programs: what is missing, fails or does not end."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil
import pytest

from harness import process
from harness.errors import InfrastructureError
from harness.hosts.ssh import SshTarget

pytestmark = pytest.mark.unit


def test_output_and_input() -> None:
    assert process.run(["cat"], stdin="a 'b\n").stdout == "a 'b\n"


def test_a_missing_program_is_named_with_the_remedy() -> None:
    with pytest.raises(InfrastructureError, match="no-such-program is not installed") as caught:
        process.run(["no-such-program"], hint="install it")
    assert caught.value.hint == "install it"


def test_a_failure_shows_command_status_and_the_end_of_what_it_said() -> None:
    script = "import sys; [print(n, file=sys.stderr) for n in range(99)]; sys.exit(7)"
    with pytest.raises(InfrastructureError) as caught:
        process.run([sys.executable, "-c", script])
    assert "status 7" in caught.value.message
    assert caught.value.message.endswith("| 98")
    assert "| 12\n" not in caught.value.message


def test_what_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(InfrastructureError, match="no end after 1 s"):
        process.run(["sh", "-c", script], timeout_s=1)
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(int((tmp_path / "pid").read_text()))
        psutil.wait_procs([left], timeout=2)
        assert left.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "words",
    [["echo", "a b"], ["x;reboot", "$(id)"], ["'", '"', "\\", ""], ["-o", "ProxyCommand=x"]],
)
def test_what_ssh_sends_is_read_back_as_the_same_arguments(words: list[str]) -> None:
    sent = SshTarget(hostname="host").argv(
        [sys.executable, "-c", "import sys; print(sys.argv[1:])", *words]
    )
    assert sent[-2] == "host"
    assert sent[-3] == "--"
    assert process.run(["sh", "-c", sent[-1]]).stdout.strip() == str(words)


def test_host_keys_are_always_checked() -> None:
    for target in (SshTarget(hostname="a"), SshTarget(hostname="b", known_hosts=Path("/k"))):
        assert "StrictHostKeyChecking=yes" in target.argv(["true"])
