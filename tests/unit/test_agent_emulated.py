# SPDX-License-Identifier: MIT
from __future__ import annotations

import mmap
import struct
import threading
import time
from pathlib import Path

import pytest

from harness.agent.counters import emulated
from harness.agent.faults import AgentError

pytestmark = pytest.mark.unit

_HEAD = struct.Struct("<7Q")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The counters' file of an emulator that never begins by itself."""
    monkeypatch.setattr(emulated, "_DEVICES", tmp_path)
    for name, device in (("0000:00:01.0", "0x1000"), ("0000:00:02.0", "0x1110")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text("0x1af4\n")
        (tmp_path / name / "device").write_text(f"{device}\n")
    found = tmp_path / "0000:00:02.0" / "resource2"
    head = _HEAD.pack(emulated._MAGIC, 0, 0, 0, 32768, 8, 64)
    found.write_bytes(head.ljust(4096, b"\0"))
    return found


def _put(device: Path, offset: int, *words: int) -> None:
    with device.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as page:
        page[offset : offset + 8 * len(words)] = struct.pack(f"<{len(words)}Q", *words)


def _wanted(device: Path) -> int:
    return int(_HEAD.unpack_from(device.read_bytes())[1])


def _do_what_is_wanted(device: Path) -> None:
    for before in (0, 2):
        while _wanted(device) == before:
            time.sleep(0.005)
        _put(device, 16, _wanted(device))


@pytest.mark.parametrize("uncounted", [0, 3])
def test_what_is_counted_between_two_moments(device: Path, uncounted: int) -> None:
    threading.Thread(target=_do_what_is_wanted, args=(device,), daemon=True).start()
    with emulated.Emulated().over(1) as watch:
        assert _wanted(device) == 2
        _put(device, 56, 1000, 10)
        watch.open()
        _put(device, 56, 5000, 30)
        _put(device, 24, uncounted)
        watch.close()
        read = watch.read()
    assert _wanted(device) == 0
    counts = {name: one["count"] for name, one in read["counts"].items()}
    if uncounted:
        assert (counts, set(read["absent"])) == ({}, {"instructions", "L1-icache-load-misses"})
    else:
        assert counts == {"instructions": 4000, "L1-icache-load-misses": 20}
    assert read["icache"] == {"octets": 32768, "ways": 8, "line_octets": 64}


def test_an_emulator_that_does_not_begin(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "_SWITCH_S", 0.05)
    with pytest.raises(AgentError, match="does not start counting"), emulated.Emulated().over(0):
        pass
    assert _wanted(device) == 0


def test_a_host_without_such_counters(device: Path) -> None:
    _put(device, 0, 1)
    with (
        pytest.raises(AgentError, match="does not run in an emulator"),
        emulated.Emulated().over(0),
    ):
        pass


def test_addresses_lie_in_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kallsyms = tmp_path / "kallsyms"
    kallsyms.write_text(
        "ffffffff81000100 T ip_rcv\n"
        "ffffffff81000000 T _stext\n"
        "ffffffff81000180 d some_data\n"
        "ffffffffc0000000 t efx_poll\t[sfc]\n"
    )
    monkeypatch.setattr(emulated, "_KALLSYMS", kallsyms)
    kernel = 0xFFFFFFFF81000000
    asked = [kernel + 0x100, kernel + 0x190, 0xFFFFFFFFC0000010, 0x401000]
    assert emulated.symbols(asked) == [
        ("ip_rcv", 0),
        ("ip_rcv", 0x90),
        ("efx_poll", 0x10),
        ("(user)", 1),
    ]
