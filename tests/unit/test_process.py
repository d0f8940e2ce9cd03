# SPDX-License-Identifier: MIT
"""The gateway to other programs: what is missing, fails or does not end."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.base import process
from harness.base.errors import InfrastructureError
from harness.beds.access.ssh import SshTarget

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


def test_of_endless_output_only_the_end_is_kept() -> None:
    script = "import sys; [print(n) for n in range(200_000)]; print('é' * 3, file=sys.stderr)"
    done = process.run([sys.executable, "-c", script], tail_bytes=14)
    assert done.stdout == "199998\n199999\n"
    assert done.stderr == "ééé\n"
    with pytest.raises(InfrastructureError, match="no end after 1 s"):
        process.run(["yes"], tail_bytes=100, timeout_s=1)
    assert process.run(["cat"], stdin="x" * 300_000, tail_bytes=9).stdout == "x" * 9
    assert process.run(["true"], stdin="x" * 300_000, tail_bytes=9).stdout == ""


def test_what_is_left_running_is_not_waited_for() -> None:
    began = time.monotonic()
    done = process.run(["sh", "-c", "echo on; sleep 7 &"], tail_bytes=100, timeout_s=30)
    assert done.stdout == "on\n"
    assert time.monotonic() - began < 5


def test_the_tree_ends_in_whichever_session_it_is(tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & wait"
    with pytest.raises(InfrastructureError, match="no end after 1 s"):
        process.run(["sh", "-c", script], timeout_s=1)
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(int((tmp_path / "pid").read_text()))
        psutil.wait_procs([left], timeout=2)
        assert left.status() == psutil.STATUS_ZOMBIE


def test_an_error_steers_no_terminal() -> None:
    with pytest.raises(InfrastructureError) as caught:
        process.run(["sh", "-c", r"printf '\033[2Jno\007\n' >&2; exit 1"])
    assert caught.value.message.endswith("| no\\x07")
