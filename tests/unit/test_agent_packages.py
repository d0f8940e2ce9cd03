# SPDX-License-Identifier: MIT
"""What is to be installed is named as the distribution names it; versions are numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.agent import doctor as on_host
from harness.agent import faults, packages, programs
from harness.agent.boot import BootControl
from harness.agent.boot.kernels import Kernels
from harness.agent.counters import pmu
from harness.agent.inventory import inventory

pytestmark = pytest.mark.unit

DEBIAN = b'NAME="Debian GNU/Linux"\nID=debian\n'
UBUNTU = b"ID=ubuntu\nID_LIKE=debian\n"
MINT = b'ID=linuxmint\nID_LIKE="ubuntu debian"\n'
RHEL = b'ID="rhel"\nID_LIKE="fedora"\n'
ROCKY = b'ID="rocky"\nID_LIKE="rhel centos fedora"\n'
FEDORA = b"ID=fedora\n"
SUSE = b'ID="opensuse-leap"\nID_LIKE="suse opensuse"\n'
ARCH = b"ID=arch\r\n"
LATIN = b'PRETTY_NAME="Caf\xe9 Linux"\nID=debian\n'


@pytest.mark.parametrize(
    ("release", "what", "told"),
    [
        (DEBIAN, "perf", "apt-get install linux-perf"),
        (UBUNTU, "perf", "apt-get install linux-tools-6.8.0-9-generic linux-tools-common"),
        (MINT, "perf", "apt-get install linux-tools-6.8.0-9-generic linux-tools-common"),
        (RHEL, "perf", "dnf install perf"),
        (SUSE, "perf", "zypper install perf"),
        (ARCH, "perf", "pacman -S perf"),
        (DEBIAN, "netperf", "apt-get install netperf (section non-free of the sources)"),
        (UBUNTU, "netperf", "apt-get install netperf (section multiverse of the sources)"),
        (DEBIAN, "bcc", "apt-get install python3-bpfcc"),
        (FEDORA, "bcc", "dnf install python3-bcc"),
        (RHEL, "headers", "dnf install kernel-devel-6.8.0-9-generic"),
        (LATIN, "initramfs", "apt-get install initramfs-tools"),
        (ARCH, "psutil", "pacman -S python-psutil"),
        (b"", "psutil", "install the package python3-psutil"),
        (b"ID=\xff\xfe", "psutil", "install the package python3-psutil"),
        (SUSE, "something", "zypper install something"),
    ],
)
def test_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: bytes, what: str, told: str
) -> None:
    (tmp_path / "os-release").write_bytes(release)
    monkeypatch.setattr(packages, "_OS_RELEASE", (tmp_path / "gone", tmp_path / "os-release"))
    assert packages.install(what, release="6.8.0-9-generic") == told


@pytest.mark.parametrize("release", [RHEL, ROCKY, FEDORA, SUSE, ARCH])
def test_netperf_that_nobody_packages_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: bytes
) -> None:
    (tmp_path / "os-release").write_bytes(release)
    monkeypatch.setattr(packages, "_OS_RELEASE", (tmp_path / "os-release",))
    for told in (packages.install("netperf"), packages.hint("netperf")):
        assert "-fcommon" in told
        assert "source" in told
        assert "dnf" not in told


def test_every_name_is_known_in_every_family() -> None:
    for what, names in packages._NAMES.items():
        assert set(names) == set(packages._INSTALLERS), what
        for family in packages._INSTALLERS:
            assert packages.install(what, of=family)


def test_a_module_that_is_missing_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "os-release").write_bytes(SUSE)
    monkeypatch.setattr(packages, "_OS_RELEASE", (tmp_path / "os-release",))
    with pytest.raises(faults.AgentError) as caught:
        faults.need("nosuchmodule")
    assert "zypper install" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("version", "least", "enough"),
    [
        ("2.10", "2.7", True),
        ("2.10.0", "2.7", True),
        ("2.7", "2.7.0", True),
        ("2.7.0", "2.7", True),
        ("2.7.1~rc1", "2.7", True),
        ("2.6.0", "2.7", False),
        ("10", "2.7", True),
        ("Netperf version 2.7.0", "2.7", True),
        ("unknown", "2.7", False),
        ("", "2.7", False),
        (None, "2.7", False),
        ("9" * 5000, "2.7", True),
    ],
)
def test_versions_are_numbers(version: str | None, least: str, enough: bool) -> None:
    assert packages.at_least(version, least) is enough


def test_the_doctor_knows_that_2_10_is_later_than_2_7(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_netperf(**asked: Any) -> dict[str, Any]:
        found = inventory(**asked)
        return found | {"versions": found["versions"] | {"netperf": "2.10.0"}}

    monkeypatch.setattr(on_host, "inventory", with_netperf)
    rows = on_host.Doctor(BootControl(), Kernels()).examine(interface="lo", role="generator")
    assert next(row for row in rows if row["check"] == "netperf version")["ok"]


def test_the_newest_perf_is_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("6.8.0-9", "6.8.0-10", "6.5.0-99"):
        path = tmp_path / name / "perf"
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setattr(pmu, "_KEPT", (f"{tmp_path}/*/perf",))
    monkeypatch.setattr(programs, "found", lambda *_: None)
    assert pmu._program() == f"{tmp_path}/6.8.0-10/perf"
