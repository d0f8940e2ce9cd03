# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ConfigurationError, InfrastructureError
from harness.results.samples import (
    Boot,
    ResultDirectory,
    read_boot,
    read_campaign,
    write_atomic,
    write_boot,
)
from harness.trials.timed import TimedTrial
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return make_campaign(tmp_path, effects={"0": 1.0, "8": 1.1}, blocks=2, trials=1)


def _boot_files(root: Path) -> list[Path]:
    return sorted(root.glob("boots/*/boot.json"))


def test_what_was_written_is_read(result: Path) -> None:
    opened = ResultDirectory.open(result)
    boots = list(opened.boots())
    assert [(boot.block, boot.position) for boot in boots] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert opened.problems == []
    timed = boots[0].trials[1]
    assert isinstance(timed, TimedTrial)
    assert timed.window is not None
    assert timed.window.start.nic["port_rx_packets"] > 0


def test_fields_of_a_newer_harness_are_passed_over(result: Path) -> None:
    path = _boot_files(result)[0]
    data = json.loads(path.read_text())
    data["new_in_version_1_1"] = {"a": [1, 2]}
    data["trials"][1]["window"]["start"]["pmu"] = {"cycles": 5}
    path.write_text(json.dumps(data))
    write_boot(result, read_boot(path))
    again = json.loads(path.read_text())
    assert "new_in_version_1_1" not in again
    assert (
        again["trials"][1]["window"]["start"]["nic"] == data["trials"][1]["window"]["start"]["nic"]
    )
    assert again["schema"] == "receive-batching/boot"


def test_an_error_keeps_its_class(tmp_path: Path) -> None:
    boot = Boot.model_validate(
        {
            "block": 1,
            "position": 1,
            "step": "0",
            "outcome": "failed",
            "error": {"class": "KernelError", "message": "panic"},
        }
    )
    path = write_boot(tmp_path, boot)
    assert json.loads(path.read_text())["error"]["class"] == "KernelError"
    assert read_boot(path) == boot


def test_a_missing_boot_makes_it_incomplete(result: Path) -> None:
    _boot_files(result)[2].unlink()
    opened = ResultDirectory.open(result)
    assert len(list(opened.boots())) == 3
    assert len(opened.problems) == 1
    assert "not finished" in opened.problems[0]


def test_a_cut_off_boot_is_a_problem_and_the_others_are_read(result: Path) -> None:
    path = _boot_files(result)[1]
    path.write_bytes(path.read_bytes()[:1000])
    opened = ResultDirectory.open(result)
    assert len(list(opened.boots())) == 3
    assert "not valid JSON" in opened.problems[0]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", InfrastructureError, "not valid JSON"),
        (b'{"schema": "receive-batching/campai', InfrastructureError, "not valid JSON"),
        (b"\xff\xfe", InfrastructureError, "not valid JSON"),
        (b"[]", ConfigurationError, "has schema None"),
        (b'{"schema": "other", "version": 1}', ConfigurationError, "has schema 'other'"),
        (
            b'{"schema": "receive-batching/campaign", "version": 2}',
            ConfigurationError,
            "has version 2",
        ),
        (
            b'{"schema": "receive-batching/campaign", "version": 1}',
            InfrastructureError,
            "Field required",
        ),
    ],
)
def test_damaged_and_foreign_campaigns(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / "campaign.json").write_bytes(content)
    with pytest.raises(error, match=message):
        read_campaign(tmp_path)


def test_no_campaign_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no campaign"):
        read_campaign(tmp_path / "nowhere")


def test_a_boot_of_another_version_is_refused(result: Path) -> None:
    path = _boot_files(result)[0]
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"version": 9}))
    with pytest.raises(ConfigurationError, match="has version 9"):
        list(ResultDirectory.open(result).boots())


def test_a_boot_in_anothers_place_is_refused(result: Path) -> None:
    first, second = _boot_files(result)[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(ConfigurationError, match="not of"):
        list(ResultDirectory.open(result).boots())


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = write_atomic(tmp_path / "boot.json", b"before")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif failing == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(InfrastructureError, match="No space left") as caught:
        write_atomic(path, b"after")
    assert caught.value.hint
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["boot.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is missing")
    with pytest.raises(InfrastructureError, match="was not written"):
        write_atomic(Path("/dev/full/boot.json"), b"x")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InfrastructureError, match="was not written"):
        write_atomic(tmp_path / "file" / "boot.json", b"x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**12) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
heads = st.fixed_dictionaries(
    {},
    optional={
        "schema": st.sampled_from(["receive-batching/boot", "x", None]),
        "version": st.sampled_from([1, 2, "1", None]),
        "trials": json_values,
        "block": json_values,
        "outcome": json_values,
    },
)


@given(content=st.binary(max_size=50) | (json_values | heads).map(lambda v: json.dumps(v).encode()))
def test_no_content_is_a_bug(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "boot.json"
    path.write_bytes(content)
    with pytest.raises((ConfigurationError, InfrastructureError)):
        read_boot(path)
