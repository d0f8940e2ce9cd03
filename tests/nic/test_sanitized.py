# SPDX-License-Identifier: MIT
"""Nothing that a guest writes makes the compiled data path leave its memory.

``python -m tests.bench.nic_fuzz`` does the same for as long as one likes.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from harness.nic.datapath import build
from tests.nic import sanitized

pytestmark = pytest.mark.nic


def test_random_guests_under_sanitizers(tmp_path: Path) -> None:
    try:
        program = sanitized.compile_fuzzer(tmp_path / "fuzz")
    except sanitized.NoSanitizersError as error:
        pytest.skip(str(error))
    assert sanitized.fuzz(program, seed=1, seconds=4) > 10
    assert sanitized.fuzz(program, seed=random.randrange(1 << 30), seconds=8) > 10


@pytest.mark.parametrize(
    ("file", "check", "without"),
    [
        ("guest.c", "octets > found->end - start", "octets > 2 * (found->end - start)"),
        ("receive.c", "if (size > length)", "if (0)"),
        ("transmit.c", "txq->gathered + octets <= MAX_TX_FRAME", "1"),
        ("doorbells.c", "*head >= vq->size", "0"),
        ("classes.c", "octets + l4->at <= length", "octets + l4->at <= length + 9000u"),
    ],
)
def test_a_missing_check_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, check: str, without: str
) -> None:
    """The fuzzer itself: it must find what it is there for."""
    for path in [*build.sources(), *build.HERE.glob("*.h")]:
        text = path.read_text()
        if path.name == file:
            assert text.count(check) == 1
            text = text.replace(check, without)
        (tmp_path / path.name).write_text(text)
    monkeypatch.setattr(build, "HERE", tmp_path)
    try:
        program = sanitized.compile_fuzzer(tmp_path / "fuzz")
    except sanitized.NoSanitizersError as error:
        pytest.skip(str(error))
    except subprocess.CalledProcessError:
        pytest.fail("the changed source does not compile")
    with pytest.raises(AssertionError, match=r"AddressSanitizer|runtime error|does not hold"):
        for seed in range(4):
            sanitized.fuzz(program, seed=seed, seconds=4)
