# SPDX-License-Identifier: MIT
"""Where namespaces are forbidden: a user-mode kernel that sends, and what is asked of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness import config, images, kernels, needs
from harness.base import namespaces
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.base.progress import Progress
from harness.beds import registry
from harness.beds.local.nic_model import NicModel, Peer
from harness.config.addresses import GENERATOR_MAC
from tests.unit.test_native import hosts
from tests.unit.test_needs import LOGIN, REFUSED, programs, rows

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))


OTHER = {
    "kind": "uml",
    "address": "198.18.0.1/24",
    "nic": {"mac": "02:00:00:00:00:01"},
    "memory_mib": 200,
}


def test_a_kernel_can_be_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(data: dict[str, Any]) -> None:
        data["hosts"]["other"] = OTHER
        data["beds"]["native"]["generator"] = "other"

    found = hosts(tmp_path, change)
    bed = config.bed(found, "native")
    assert isinstance(bed.generator, config.UmlHost)
    assert bed.guest_mib == 456
    # Whatever this machine allows, it is what was asked for.
    for why in (None, "no namespaces"):
        monkeypatch.setattr(namespaces, "refused", lambda why=why: why)
        assert registry.possible(bed) == bed
    with pytest.raises(ConfigurationError, match="which cannot be a generator to a qemu dut"):
        hosts(tmp_path, lambda data: data["hosts"].update(wire=OTHER))


def test_a_kernel_replaces_a_namespace_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_, virtual = (config.bed(hosts(tmp_path), name) for name in ("native", "virtual"))
    monkeypatch.setattr(images, "own_tools", lambda: images.Tools(root=None))
    monkeypatch.setattr(namespaces, "refused", lambda: None)
    assert registry.possible(native_) == native_
    monkeypatch.setattr(namespaces, "refused", lambda: "no namespaces")
    assert registry.possible(virtual) == virtual
    with registry.acquired(native_) as place:
        sends = place.bed.generator
    assert isinstance(sends, config.UmlHost)
    assert isinstance(native_.dut, config.UmlHost)
    assert (sends.address, sends.nic.mac) == (native_.generator.address, GENERATOR_MAC)
    assert sends.memory_mib == native_.dut.memory_mib
    # What is asked of this machine follows from it.
    wanted = kernels.Kernels(kernel=hosts(tmp_path).kernel, names=["0"], arch="um")
    job = needs.of_kernels(wanted, bed=place.bed, together=3)
    assert (job.namespaces, job.guests_mib) == (False, 3 * 512)
    assert needs.of_kernels(wanted, bed=native_).namespaces


def test_the_model_serves_a_peer_without_any_right(tmp_path: Path) -> None:
    peer = Peer(socket=tmp_path / "peer", mac=GENERATOR_MAC)
    model = NicModel(
        None,
        wire=peer,
        mac="02:00:00:00:00:02",
        socket=tmp_path / "nic",
        control=tmp_path / "control",
        log=tmp_path / "log",
        vhost_user=True,
    )
    try:
        assert peer.socket.is_socket()
        assert model.counters()["rx_delivered"] == 0
        model.check()
    finally:
        model.stop()
    assert not peer.socket.exists()
    with pytest.raises(InfrastructureError, match=r"harness\.nic"):
        model.check()


@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        ({"unshare": "exec true"}, None),
        ({"unshare": REFUSED}, "a network namespace cannot be made: unshare: unshare failed"),
        (
            {"unshare": 'case "$*" in *veth) echo no such device >&2; exit 2;; esac'},
            "a veth pair cannot be made: no such device",
        ),
        ({"unshare": "exit 1"}, "a network namespace cannot be made: status 1"),
    ],
)
def test_what_was_refused_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str], said: str | None
) -> None:
    path = programs(tmp_path / "bin", **scripts, ip="", true="")
    monkeypatch.setenv("PATH", f"{path}:{LOGIN}")
    found = namespaces.refused()
    assert found is None if said is None else str(found).startswith(said)


def test_what_is_not_installed_was_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin"))
    assert namespaces.refused() is None


def test_a_bed_of_user_mode_kernels_needs_no_namespace_and_no_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = needs.Job(guests=True, namespaces=False)
    monkeypatch.setattr(images, "lacking", lambda *, tools: ["tools root"] if tools else [])
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)
    only = dict.fromkeys(("env", "prlimit", "setpriv", "sh", "taskset"), "")
    path = programs(tmp_path / "bin", **only, true="", unshare=REFUSED)
    monkeypatch.setenv("PATH", path)
    found = rows(job)
    assert found["programs"].ok, found["programs"].detail
    assert not {"user", "QEMU and netperf", "making images"} & found.keys()
    row = found["network namespace"]
    assert (row.ok, row.needed) == (False, False)
    assert "Operation not permitted; so a second user-mode kernel sends" in row.detail
    with pytest.raises(InfrastructureError, match="network namespace") as caught:
        needs.require(needs.Job(guests=True))
    assert "or use the native bed, which needs none" in str(caught.value)


# ---------------------------------------------------------------- the image

FAKE = """
[ "$1" = --unshare-helper ] && { echo 'W: /etc/subuid is empty' >&2; exit 1; }
root=$(mktemp -d)
mkdir -p $root/etc $root/usr/share/base-passwd $root/usr/share/man $root/usr/bin
echo root:*:0:0:root:/root:/bin/bash: > $root/usr/share/base-passwd/passwd.master
echo root:*:0: > $root/usr/share/base-passwd/group.master
echo read > $root/usr/share/man/page
echo '#!' > $root/usr/bin/sudo; chmod 4755 $root/usr/bin/sudo
ln -s usr/bin $root/bin
for word; do
    echo "$word" >> "$SAID"
    case $word in --extract-hook=*) sh -ec "${word#*=}" exec $root;; esac
done
rm -rf $root
"""


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that allows mmdebstrap nothing; returns the file with its options."""
    path = programs(tmp_path / "bin", mmdebstrap=FAKE, unshare=REFUSED)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setattr(images, "mirror", lambda: None)
    return tmp_path / "said"


@pytest.mark.skipif(
    not all(map(shutil.which, ("genext2fs", "debugfs"))), reason="needs genext2fs and debugfs"
)
def test_an_image_is_unpacked_where_no_more_is_allowed(refused: Path) -> None:
    assert images.lacking(tools=False) == ["guest image"]
    with Progress() as progress:
        made = images.guest_image(progress, by_ssh=False)
        assert images.guest_image(progress, by_ssh=False) == made
    said = refused.read_text().splitlines()
    assert said[:3] == ["--mode=chrootless", "--variant=extract", "--include=?essential"]
    assert any(word.startswith("--include=") and "netperf" in word for word in said)
    assert said.count("--variant=extract") == 1, "the second time it was in the cache"
    assert images.lacking(tools=False) == []
    assert "guest image" in images.lacking(), "a virtual bed cannot boot it"

    def in_disk(command: str) -> str:
        debugfs = ["debugfs", "-R", command, str(made.disk)]
        return subprocess.run(debugfs, capture_output=True, text=True, check=True).stdout

    assert in_disk("cat /etc/passwd").startswith("root:")
    assert in_disk("cat /etc/hostname") == "guest\n"
    assert "man" not in in_disk("ls /usr/share")
    assert "Mode:  04755" in in_disk("stat /usr/bin/sudo")
    assert "User:     0   Group:     0" in in_disk("stat /usr/bin/sudo")
    assert 'Fast link dest: "usr/bin"' in in_disk("stat /bin")


def test_what_is_made_is_told_before(refused: Path) -> None:
    assert not refused.exists()
    whole, unpacked = needs._images(["guest image"]), needs._images(["x"], unpacked=True)
    assert (whole.ok, unpacked.ok) == (False, True)
    assert "its packages are only unpacked, because more is refused: " in unpacked.detail


def test_netperf_that_cannot_be_made_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Path
) -> None:
    monkeypatch.setattr(namespaces, "refused", lambda: None)
    monkeypatch.setattr(images, "own_tools", lambda: None)
    bed = config.bed(hosts(tmp_path), "native")
    assert isinstance(registry.possible(bed).generator, config.UmlHost)
    monkeypatch.setattr(images, "own_tools", lambda: images.Tools(root=None))
    assert registry.possible(bed) == bed
