# SPDX-License-Identifier: MIT
"""The native bed in a container without privileges: no namespace, no capability, no mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from harness import config, images, kernels
from harness.base.progress import Progress
from tests.guest import confined
from tests.guest.test_rootless import NOBODY, as_user, interpreter, keep

pytestmark = [
    pytest.mark.guest,
    pytest.mark.deep,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]

STEPS = ("0", "8")
WITHOUT = ("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")


@dataclass(frozen=True)
class Container:
    """A user whose processes have no right at all, and what is in the user's cache."""

    home: Path
    python: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        filtered = [str(self.python), str(self.home / "confined.py"), *command]
        return as_user(self.home, filtered, *WITHOUT)

    def harness(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.python), "-m", "harness", *words)


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    hosts = config.load(config.locate(None))
    with Progress() as progress:
        built = kernels.Kernels(kernel=hosts.kernel, names=STEPS, arch="um").build(progress)
        disk = images.guest_image(progress)
    home = Path(tempfile.mkdtemp(prefix="r-", dir="/var/tmp"))
    try:
        python = interpreter(home / "p")
        kept = [image.directory for made in built.values() for image in made]
        keep(home / ".cache/receive-batching", [*kept, disk.directory])
        shutil.copy(confined.__file__, home / "confined.py")
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
        yield Container(home, python)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def running(home: Path) -> list[psutil.Process]:
    """The processes whose program or arguments are in ``home``."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if any(str(home) in word for word in one.info["cmdline"] or ())]


@pytest.mark.parametrize(
    "command",
    [
        ["unshare", "--net", "true"],
        ["unshare", "--user", "--map-root-user", "--net", "true"],
        ["mount", "-t", "tmpfs", "x", "/mnt"],
        ["ip", "link", "add", "type", "veth"],
    ],
)
def test_the_container_allows_nothing(container: Container, command: list[str]) -> None:
    assert container.run("true").returncode == 0
    assert container.run(*command).returncode != 0


def test_a_campaign_needs_no_right(container: Container) -> None:
    out = container.home / "out"
    run = ("run", "--bed", "native", "--steps", ",".join(STEPS), "--profile", "smoke")
    done = container.harness(*run, "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[0] for line in done.stdout.splitlines() if line} >= set(STEPS)
    [said] = [line for line in done.stderr.splitlines() if line.startswith("wire: netperf runs")]
    assert "because a network namespace cannot be made: unshare:" in said
    boots = [json.loads(path.read_text()) for path in out.glob("boots/*/boot.json")]
    assert sorted(boot["step"] for boot in boots) == list(STEPS)
    sending = {boot["placement_host"]["generator_kernel"] for boot in boots}
    assert sending == {boot["release"] for boot in boots if boot["step"] == "0"}
    for boot in boots:
        assert boot["outcome"] == "ok"
        assert boot["nic_model"]["rx_delivered"] > 100_000
        assert boot["nic_model"]["internal_errors"] == 0
        assert boot["inventory"]["generator"]["versions"]["netperf"]
    assert not running(container.home)
    assert not [path for path in Path("/tmp").glob("rb-*") if path.stat().st_uid == NOBODY]  # noqa: S108


@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="needs mmdebstrap")
def test_the_image_is_made_there_too(container: Container) -> None:
    shutil.rmtree(container.home / ".cache/receive-batching/guests")
    run = ("run", "--bed", "native", "--steps", "0,8", "--profile", "smoke", "--out", "made")
    done = container.harness(*run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(container.home.glob(".cache/receive-batching/guests/*/guest.ext2"))) == 1


def test_a_virtual_bed_is_refused_with_the_bed_that_works(container: Container) -> None:
    done = container.harness("run", "--bed", "virtual", "--steps", "0", "--out", "virtual")
    assert done.returncode == 3
    assert "a network namespace cannot be made" in done.stderr
    assert "or use the native bed, which needs none (--bed native)" in done.stderr
    assert not (container.home / "virtual/campaign.json").exists()
