# SPDX-License-Identifier: MIT
"""Files of somebody else: of any encoding, carried over unchanged; an install leaves nothing."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from harness.agent import __main__ as agent_main
from harness.agent import foreign, inventory, programs
from harness.agent import load as netperf
from harness.agent.boot import BootControl, cmdline, grub, kernels, record
from harness.agent.boot.kernels import Kernels
from harness.agent.boot.record import Record, changing
from harness.agent.boot.upload import Upload
from harness.agent.faults import AgentError
from tests.unit.fake_machine import (
    RELEASE,
    Machine,
    machine,
    modules_tar,
    path_with,
    systemd_boot,
    tree,
    uploaded,
)

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        shutil.which("grub-editenv", path="/usr/bin:/usr/sbin") is None,
        reason="needs grub-editenv (grub-common)",
    ),
]
UID = os.getuid()
LATIN = b"# caf\xe9, written in 1998\r\nmenuentry 'Gr\xfc\xdfe' {\n\ttrue\n}\n"
OTHER = "6.12.117-rb2"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    root = tmp_path / "root"
    monkeypatch.setenv("PATH", path_with(root))
    monkeypatch.setenv("ROOT", str(root))
    monkeypatch.setattr(programs, "_SYSTEM", "")
    return machine(root)


@pytest.fixture
def files(tmp_path: Path) -> str:
    return uploaded(tmp_path / "upload")


def test_a_custom_cfg_of_another_encoding_is_carried_over(host: Machine, files: str) -> None:
    custom = host.boot / "grub/custom.cfg"
    custom.write_bytes(LATIN)
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=UID)
    ours.install(release=RELEASE, directory=files)
    assert custom.read_bytes().startswith(LATIN)
    assert f"menuentry 'receive-batching {RELEASE}'".encode() in custom.read_bytes()
    BootControl(host).prepare(release=RELEASE, method="one-shot")
    BootControl(host).cancel()
    ours.remove()
    assert tree(host.root) == before


def test_a_blank_custom_cfg_is_somebody_elses(host: Machine, files: str) -> None:
    custom = host.boot / "grub/custom.cfg"
    custom.write_bytes(b"\n\n")
    custom.chmod(0o600)
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=UID)
    ours.install(release=RELEASE, directory=files)
    assert custom.stat().st_mode & 0o777 == 0o600
    ours.remove()
    assert tree(host.root) == before


@pytest.mark.parametrize(
    "path",
    ["boot/grub/grub.cfg", "boot/grub/grubenv", "etc/default/grub", "etc/default/kexec"],
)
def test_every_file_of_the_loader_may_hold_any_byte(host: Machine, files: str, path: str) -> None:
    at = host.root / path
    old = at.read_bytes() if at.exists() else b""
    if path == "boot/grub/grubenv":
        at.write_bytes(b"# GRUB Environment Block\nplace=caf\xe9\n".ljust(1024, b"#"))
    else:
        at.write_bytes(old + b"\n# \xe9\n")
    before = tree(host.root)
    ours, boot = Kernels(host, sudo_uid=UID), BootControl(host)
    ours.install(release=RELEASE, directory=files)
    assert boot.can()["loader"] == "grub"
    assert boot.state()["default_untouched"]
    boot.prepare(release=RELEASE, method="one-shot")
    boot.cancel()
    ours.remove()
    assert tree(host.root) == before


def test_a_command_line_is_given_on_byte_for_byte(host: Machine, files: str) -> None:
    line = b"BOOT_IMAGE=/boot/vmlinuz-6.12.1-amd64 root=LABEL=Gr\xfc\xdfe ro\n"
    (host.root / "proc/cmdline").write_bytes(line)
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=files)
    assert b"root=LABEL=Gr\xfc\xdfe" in (host.boot / "grub/custom.cfg").read_bytes()
    BootControl(host).prepare(release=RELEASE, method="kexec")
    assert b"root=LABEL=Gr\xfc\xdfe ro" in (host.root / "kexec.log").read_bytes()
    # Also when it is read again from the record.
    Kernels(host, sudo_uid=UID).install(release=OTHER, directory=uploaded(Path(files), OTHER))
    assert (host.boot / "grub/custom.cfg").read_bytes().count(b"LABEL=Gr\xfc\xdfe") == 2


def test_loader_conf_of_another_encoding(host: Machine, files: str) -> None:
    systemd_boot(host, "debian-*")
    conf = host.boot / "loader/loader.conf"
    conf.write_bytes(conf.read_bytes() + b"# caf\xe9\n")
    (host.boot / "loader/entries/caf\udce9.conf").write_bytes(b"title caf\xe9\n")
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=UID)
    ours.install(release=RELEASE, directory=files)
    assert BootControl(host).can()["loader"] == "systemd-boot"
    ours.remove()
    assert tree(host.root) == before


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", LATIN, bytes(range(256)), b"a\r\nb"])
def test_what_is_kept_is_given_back(tmp_path: Path, content: bytes) -> None:
    assert foreign.given_back(foreign.kept(content)) == content
    foreign.shown(content).encode()
    foreign.printable(foreign.kept(content)).encode()
    path = tmp_path / "file"
    record.written(path, foreign.kept(content), mode=0o640)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    path = tmp_path / "custom.cfg"
    path.write_text("x")
    os.chown(path, 65534, 65534)
    record.written(path, "y", mode=0o644)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_processes_may_have_any_name() -> None:
    name = b"caf\xe9) R 1"
    script = "import ctypes, sys, time; print(flush=True); sys.stdin.readline()"
    setting = f"import ctypes; ctypes.CDLL(None).prctl(15, {name!r}); "
    with subprocess.Popen(
        [sys.executable, "-c", setting + script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as one:
        assert one.stdout
        one.stdout.readline()
        assert one.pid in netperf.descendants(os.getpid())
        netperf._catches(one.pid, signal.SIGALRM)
        inventory.irqbalance_running()
        one.kill()


def test_an_answer_holds_characters_alone() -> None:
    text = agent_main._NO_CHARACTER.sub(r"\\ufffd", '"caf\\udce9 \\ud83d\\ude00 \\ud83d\\udc80"')
    assert text == '"caf\\ufffd \\ud83d\\ude00 \\ud83d\\udc80"'


class SpoiltError(Exception):
    """Whatever else may be raised."""


PLACES: list[tuple[Any, str]] = [
    (Record, "save"),
    (Upload, "unpack"),
    (Upload, "copy"),
    (programs, "run"),
    (kernels, "synced"),
    (os, "sync"),
    (Kernels, "_initramfs"),
    (Kernels, "_entries"),
    (grub.Grub, "entries"),
    (grub, "written"),
]


@pytest.mark.parametrize(("module", "name"), PLACES, ids=lambda one: getattr(one, "__name__", one))
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(28, "No space left on device"), id="full"),
        pytest.param(UnicodeDecodeError("utf-8", b"", 0, 1, "x"), id="encoding"),
        pytest.param(SpoiltError("x"), id="other"),
        pytest.param(KeyboardInterrupt(), id="interrupt"),
    ],
)
def test_an_install_that_fails_anywhere_leaves_nothing(
    host: Machine,
    files: str,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    nth: int,
    error: BaseException,
) -> None:
    (host.boot / "grub/custom.cfg").write_bytes(LATIN)
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=UID)
    real = getattr(module, name)
    calls: list[int] = []

    def failing(*words: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            raise error
        return real(*words, **more)

    monkeypatch.setattr(module, name, failing)
    raised: BaseException | None = None
    try:
        ours.install(release=RELEASE, directory=files)
    except BaseException as caught:  # noqa: BLE001 - it is judged below
        raised = caught
    monkeypatch.setattr(module, name, real)
    if raised is None:
        assert len(calls) < nth, "it was swallowed"
        ours.remove()
    elif isinstance(error, Exception):
        assert isinstance(raised, AgentError)
    else:
        assert raised is error
    left = ours.installed()
    if left:
        # Told, and the next clean has it.
        assert "could not be removed" in str(raised)
        ours.remove()
    assert tree(host.root) == before


def test_a_removal_goes_on_past_what_fails(
    host: Machine, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=UID)
    ours.install(release=RELEASE, directory=files)
    ours.install(release=OTHER, directory=uploaded(Path(files), OTHER))
    real, stuck = kernels._remove, host.boot / f"config-{RELEASE}"

    def remove(path: Path) -> None:
        if path == stuck:
            raise OSError(5, "Input/output error", str(path))
        real(path)

    monkeypatch.setattr(kernels, "_remove", remove)
    with pytest.raises(AgentError, match=r"not removed: .*Input/output error") as caught:
        ours.remove()
    assert str(stuck) in str(caught.value)
    assert [(row["release"], row["complete"]) for row in ours.installed()] == [(RELEASE, False)]
    assert not (host.modules / RELEASE).exists()
    assert not (host.boot / "grub/custom.cfg").exists()
    monkeypatch.setattr(kernels, "_remove", real)
    assert ours.remove() == {"removed": [RELEASE], "left": []}
    assert tree(host.root) == before


def test_a_copy_for_the_loader_is_whole_or_not_there(
    host: Machine, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd_boot(host, "debian-*")
    esp = host.root / "esp"
    shutil.copytree(host.boot / "loader", esp / "loader")
    bootctl = host.root / "programs/bootctl"
    bootctl.write_text(bootctl.read_text().replace('echo "$ROOT/boot"', 'echo "$ROOT/esp"'))
    ours = Kernels(host, sudo_uid=UID)
    ours.install(release=RELEASE, directory=files)
    kernel = esp / f"receive-batching/{RELEASE}/vmlinuz"
    content = kernel.read_bytes()

    def cut(source: Path, to: Path) -> None:
        Path(to).write_bytes(b"cut")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", cut)
    with pytest.raises(AgentError, match="No space"):
        ours.install(release=RELEASE, directory=files)
    assert kernel.read_bytes() == content
    assert not list(esp.rglob(".*.part"))


@pytest.mark.parametrize("spoil", ["deflate", "twice", "header"])
def test_a_spoilt_archive_is_told_as_one(host: Machine, tmp_path: Path, spoil: str) -> None:
    before = tree(host.root)
    plain = bytearray(gzip.decompress(modules_tar()))
    if spoil == "twice":
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for _ in range(2):
                member = tarfile.TarInfo(f"lib/modules/{RELEASE}/x")
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))
        modules = gzip.compress(packed.getvalue())
    elif spoil == "header":
        plain[124:136] = b"\xff" * 12
        modules = gzip.compress(bytes(plain))
    else:
        packed_ = bytearray(gzip.compress(bytes(plain) + os.urandom(4096)))
        packed_[60:90] = b"\xff" * 30
        modules = bytes(packed_)
    directory = uploaded(tmp_path / "spoilt", modules=modules)
    with pytest.raises(AgentError, match=r"modules\.tar|no room"):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=directory)
    assert tree(host.root) == before


def test_a_record_that_is_no_text(host: Machine) -> None:
    host.state.mkdir(parents=True)
    (host.state / "kernels.json").write_bytes(b"\xff\xfe")
    with pytest.raises(AgentError, match="not a record of this harness"):
        Record(host)
    with changing(Machine(host.root / "elsewhere")) as other:
        assert other.data["kernels"] == {}


def test_words_of_a_command_line_keep_their_bytes() -> None:
    words = cmdline.words(foreign.kept(b'a="caf\xe9 au lait" b\n'))
    assert foreign.given_back(cmdline.for_kernel(words)) == b'"a=caf\xe9 au lait" b'
    assert foreign.given_back(cmdline.for_grub(words)) == b"'a=caf\xe9 au lait' b"
