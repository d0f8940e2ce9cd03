# SPDX-License-Identifier: MIT
"""Kernels of ours on a machine: installed beside its own, booted once, gone without a trace."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.agent import programs
from harness.agent.boot import BootControl, cmdline
from harness.agent.boot.kernels import Kernels
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
ADD = ["panic=10", "console=ttyS0,115200n8"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    root = tmp_path / "root"
    monkeypatch.setenv("PATH", path_with(root))
    monkeypatch.setenv("ROOT", str(root))
    monkeypatch.setattr(programs, "_SYSTEM", "")
    return machine(root)


@pytest.fixture
def upload(tmp_path: Path) -> str:
    return uploaded(tmp_path / "upload")


def grubenv(host: Machine) -> str:
    return subprocess.run(
        ["/usr/bin/grub-editenv", host.boot / "grub/grubenv", "list"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_installed_booted_once_and_gone(host: Machine, upload: str) -> None:
    before = tree(host.root)
    kernels, boot = Kernels(host, sudo_uid=UID), BootControl(host)
    assert boot.can() == {"kexec": True, "kexec_why": None, "loader": "grub", "loader_why": None}
    done = kernels.install(release=RELEASE, directory=upload, cmdline_add=ADD)
    assert done["kept"] is False
    at = host.boot / "receive-batching" / RELEASE
    assert {path.name for path in at.iterdir()} == {"vmlinuz", "initrd.img"}
    assert (host.modules / RELEASE / "kernel/net/sfc.ko").read_text() == "ko\n"
    entry = (host.boot / "grub/custom.cfg").read_text()
    assert f"linux '/boot/receive-batching/{RELEASE}/vmlinuz' root=UUID=abc ro quiet" in entry
    assert (
        f"'dyndbg=file a.c +p' panic=10 console=ttyS0,115200n8 {cmdline.OURS}={RELEASE}\n" in entry
    )
    assert "panic=0" not in entry
    assert "search --no-floppy --fs-uuid --set=root 0a-b1\n" in entry
    assert kernels.install(release=RELEASE, directory=upload, cmdline_add=ADD)["kept"] is True
    assert [row["release"] for row in kernels.installed()] == [RELEASE]

    assert boot.prepare(release=RELEASE, method="one-shot")["release"] == RELEASE
    assert grubenv(host) == f"next_entry=receive-batching-{RELEASE}\n"
    state = boot.state()
    assert (state["one_shot_pending"], state["armed"]["method"]) == (RELEASE, "one-shot")
    assert state["default_untouched"] is True
    boot.cancel()
    assert grubenv(host) == ""
    assert boot.state()["armed"] is None

    assert kernels.remove() == {"removed": [RELEASE], "left": []}
    assert tree(host.root) == before


def test_a_kernel_that_takes_no_initramfs_finds_its_root_by_itself(
    host: Machine, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(upload) / "config").write_text("# CONFIG_BLK_DEV_INITRD is not set\n")
    kernels, boot = Kernels(host, sudo_uid=UID), BootControl(host)
    monkeypatch.setenv("PARTUUID", "")
    with pytest.raises(AgentError, match="takes no initramfs"):
        kernels.install(release=RELEASE, directory=upload, cmdline_add=ADD)
    monkeypatch.setenv("PARTUUID", "0b-01")
    kernels.install(release=RELEASE, directory=upload, cmdline_add=ADD)
    entry = (host.boot / "grub/custom.cfg").read_text()
    assert f"{RELEASE}/vmlinuz' root=PARTUUID=0b-01 rootwait ro quiet" in entry
    assert "initrd" not in entry
    boot.prepare(release=RELEASE, method="kexec")
    assert "--initrd" not in (host.root / "kexec.log").read_text()


def test_kexec_by_file_and_by_the_older_call(
    host: Machine, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload, cmdline_add=ADD)
    boot = BootControl(host)
    boot.prepare(release=RELEASE, method="kexec")
    assert boot.state()["kexec_loaded"] is True
    monkeypatch.setenv("NO_FILE_LOAD", "1")
    boot.prepare(release=RELEASE, method="kexec")
    said = (host.root / "kexec.log").read_text().splitlines()
    assert [line.split()[0] for line in said] == [
        "--kexec-file-syscall",
        "--unload",
        "--kexec-file-syscall",
        "--kexec-syscall",
    ]
    assert (
        f'ro quiet "dyndbg=file a.c +p" panic=10 console=ttyS0,115200n8 {cmdline.OURS}' in said[-1]
    )
    boot.cancel()
    assert boot.state()["kexec_loaded"] is False
    with pytest.raises(AgentError, match="nothing is prepared for kexec"):
        boot.go(method="kexec")


def test_leaving(host: Machine, upload: str) -> None:
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    boot = BootControl(host)
    boot.prepare(release=RELEASE, method="one-shot")
    boot.go(method="one-shot")
    assert boot.state()["left"] is None
    assert not (host.root / "left").exists(), "only after the answer"
    for _ in range(100):
        if (host.root / "left").exists():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert (host.root / "left").read_text() == "rebooted\n"
    # Up again, and it is the machine's own kernel: GRUB has cleared the entry, or has not.
    (host.root / "proc/sys/kernel/random/boot_id").write_text("second\n")
    state = boot.state()
    assert (state["missed"], state["one_shot_pending"]) == (RELEASE, RELEASE)
    with pytest.raises(
        AgentError, match="nothing is prepared for one-shot since this host started"
    ):
        boot.go(method="one-shot")
    assert boot.state()["ours"] is False
    taken = BootControl(replace(host, running=RELEASE))
    assert (taken.state()["missed"], taken.state()["ours"]) == (None, True)
    taken.go(method="known-good")
    assert boot.state()["left"] == {"release": RELEASE, "boot_id": "second"}
    taken.prepare(release=RELEASE, method="one-shot")
    assert boot.state()["left"] is None
    (host.root / "proc/cmdline").write_text(f"ro {cmdline.OURS}={RELEASE}\n")
    assert boot.state()["ours"] is True


def test_kexec_tools_are_kept_from_making_it_a_kexec(host: Machine, upload: str) -> None:
    (host.root / "etc/default/kexec").write_text("LOAD_KEXEC=true\n")
    (host.root / "etc/init.d").mkdir()
    (host.root / "etc/init.d/kexec-load").write_text("NOKEXECFILE=/no-kexec-reboot\n")
    BootControl(host).go(method="known-good")
    assert (host.root / "no-kexec-reboot").exists()


@pytest.mark.parametrize("change", ["saved_entry", "GRUB_DEFAULT", "grub.cfg"])
def test_a_default_that_changed_is_seen(host: Machine, upload: str, change: str) -> None:
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    grub = host.boot / "grub"
    if change == "saved_entry":
        entry = f"saved_entry=receive-batching-{RELEASE}"
        subprocess.run(["/usr/bin/grub-editenv", grub / "grubenv", "set", entry], check=True)
    elif change == "GRUB_DEFAULT":
        (host.root / "etc/default/grub").write_text("GRUB_DEFAULT=3\n")
    else:
        text = (grub / "grub.cfg").read_text()
        (grub / "grub.cfg").write_text(text.replace('default="0"', 'default="3"'))
    assert BootControl(host).state()["default_untouched"] is False


def test_the_users_own_entries_and_one_shot_stay(host: Machine, upload: str) -> None:
    custom = host.boot / "grub/custom.cfg"
    custom.write_text("menuentry mine {\n}")
    custom.chmod(0o600)
    kernels, boot = Kernels(host, sudo_uid=UID), BootControl(host)
    kernels.install(release=RELEASE, directory=upload)
    kernels.install(release="6.12.117-rb2", directory=uploaded(Path(upload), "6.12.117-rb2"))
    assert custom.read_text().startswith("menuentry mine {\n}\n### BEGIN")
    assert custom.read_text().count("\nmenuentry 'receive-batching") == 2
    assert custom.stat().st_mode & 0o777 == 0o600
    environment = host.boot / "grub/grubenv"
    subprocess.run(["/usr/bin/grub-editenv", environment, "set", "next_entry=mine"], check=True)
    with pytest.raises(AgentError, match="set already: 'mine'"):
        boot.prepare(release=RELEASE, method="one-shot")
    boot.cancel()
    kernels.remove(releases=[RELEASE])
    assert custom.read_text().count("\nmenuentry 'receive-batching") == 1
    kernels.remove()
    assert custom.read_text() == "menuentry mine {\n}\n"
    assert grubenv(host) == "next_entry=mine\n"


def test_an_entry_notes_that_it_was_taken(host: Machine, upload: str) -> None:
    kernels, boot = Kernels(host, sudo_uid=UID), BootControl(host)
    kernels.install(release=RELEASE, directory=upload)
    set_, save = "\tset receive_batching_taken=", "\tsave_env receive_batching_taken\n"
    assert f"{set_}'{RELEASE}'\n{save}" in (host.boot / "grub/custom.cfg").read_text()
    edit = ["/usr/bin/grub-editenv", str(host.boot / "grub/grubenv")]
    noted = f"receive_batching_taken={RELEASE}"
    subprocess.run([*edit, "set", noted], check=True)  # as the entry does
    assert boot.state()["one_shot_taken"] == RELEASE
    boot.prepare(release=RELEASE, method="one-shot")
    assert boot.state()["one_shot_taken"] is None
    subprocess.run([*edit, "set", noted], check=True)
    kernels.remove()
    assert grubenv(host) == ""


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda grub: (grub / "grub.cfg").write_text("menuentry x {}"), "next_entry"),
        (
            lambda grub: (grub / "grub.cfg").write_text(
                (grub / "grub.cfg").read_text().replace("custom.cfg", "")
            ),
            "41_custom",
        ),
        (lambda grub: (grub / "grubenv").unlink(), "grub-editenv"),
        (lambda grub: (grub / "grubenv").write_text("short"), "1024 bytes"),
        (lambda _: os.environ.update(FSTYPE="btrfs"), "btrfs"),
        (lambda grub: (grub / "grub.cfg").unlink(), "neither GRUB nor systemd-boot"),
    ],
)
def test_a_grub_that_cannot_boot_once(
    host: Machine,
    upload: str,
    spoil: Callable[[Path], object],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FSTYPE", "ext4")
    spoil(host.boot / "grub")
    found = BootControl(host).can()
    assert found["loader"] is None
    assert why in found["loader_why"]
    before = tree(host.root)
    kernels = Kernels(host, sudo_uid=UID)
    kernels.install(release=RELEASE, directory=upload)
    assert not (host.boot / "grub/custom.cfg").exists()
    with pytest.raises(AgentError, match="one-shot cannot be used"):
        BootControl(host).prepare(release=RELEASE, method="one-shot")
    BootControl(host).prepare(release=RELEASE, method="kexec")
    kernels.remove()
    assert tree(host.root) == before


def test_systemd_boot(host: Machine, upload: str) -> None:
    systemd_boot(host, "debian-*")
    before = tree(host.root)
    kernels, boot = Kernels(host, sudo_uid=UID), BootControl(host)
    assert boot.can()["loader"] == "systemd-boot"
    kernels.install(release=RELEASE, directory=upload, cmdline_add=ADD)
    entry = (host.boot / f"loader/entries/receive-batching-{RELEASE}.conf").read_text()
    assert f"linux /receive-batching/{RELEASE}/vmlinuz\n" in entry
    assert 'options root=UUID=abc ro quiet "dyndbg=file a.c +p" panic=10' in entry
    boot.prepare(release=RELEASE, method="one-shot")
    state = boot.state()
    assert (state["one_shot_pending"], state["default_untouched"]) == (RELEASE, True)
    boot.cancel()
    assert boot.state()["one_shot_pending"] is None
    assert "set-default" not in (host.root / "bootctl.log").read_text()
    kernels.remove()
    assert tree(host.root) == before


def test_a_systemd_boot_without_a_default_is_not_trusted(host: Machine, upload: str) -> None:
    systemd_boot(host, None)
    assert "no default entry is set" in BootControl(host).can()["loader_why"]
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    assert not list((host.boot / "loader/entries").iterdir())


def test_rhel(host: Machine, upload: str) -> None:
    (host.boot / "grub").rename(host.boot / "grub2")
    for debian, its in (("grub-mkrelpath", "grub2-mkrelpath"), ("mkinitramfs", "dracut")):
        (host.root / "programs" / debian).rename(host.root / "programs" / its)
    (host.root / "programs/dracut").write_text(
        '#!/bin/sh\ntest "$1 $2" = "--force --tmpdir" && test -d "$3" && echo "$5" > "$4"\n'
    )
    before = tree(host.root)
    kernels = Kernels(host, sudo_uid=UID)
    kernels.install(release=RELEASE, directory=upload)
    at = host.boot / "receive-batching" / RELEASE
    assert (at / "initrd.img").read_text() == f"{RELEASE}\n"
    assert RELEASE in (host.boot / "grub2/custom.cfg").read_text()
    BootControl(host).prepare(release=RELEASE, method="one-shot")
    kernels.remove()
    assert tree(host.root) == before


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality", "lockdown"),
        ("proc/sys/kernel/kexec_load_disabled", "1", "kexec_load_disabled"),
        ("sys/kernel/kexec_loaded", None, "CONFIG_KEXEC"),
    ],
)
def test_a_kernel_that_refuses_kexec(host: Machine, path: str, text: str | None, why: str) -> None:
    if text is None:
        (host.root / path).unlink()
    else:
        (host.root / path).write_text(text)
    assert why in BootControl(host).can()["kexec_why"]


def test_secure_boot(host: Machine) -> None:
    at = host.root / "sys/firmware/efi/efivars"
    at.mkdir(parents=True)
    (at / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\6\0\0\0\1")
    assert "Secure Boot" in BootControl(host).can()["loader_why"]


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return gzip.compress(packed.getvalue(), mtime=0)


@pytest.mark.parametrize(
    ("modules", "why"),
    [
        (modules_tar("../../../etc/cron.d/x"), "not under"),
        (modules_tar(release="6.12.1-amd64"), "not under"),
        (_link(f"lib/modules/{RELEASE}/x", "/etc"), "not a plain file"),
        (_link(f"lib/modules/{RELEASE}/x", "/etc/shadow", tarfile.LNKTYPE), "not a plain file"),
        (_link(f"lib/modules/{RELEASE}/x", "", tarfile.CHRTYPE), "not a plain file"),
        (_link("/etc/passwd", ""), "not under"),
        (b"\x1b[2J" * 999, "modules.tar"),
        (modules_tar()[:-40], "modules.tar|no room"),
        (modules_tar("large")[:-4] + bytes(4), "more than it says"),
    ],
    ids=[
        "outside",
        "of another",
        "link",
        "hard link",
        "device",
        "absolute",
        "garbage",
        "cut",
        "bomb",
    ],
)
def test_hostile_archives(host: Machine, tmp_path: Path, modules: bytes, why: str) -> None:
    before = tree(host.root)
    upload = uploaded(tmp_path / "u", modules=modules)
    with pytest.raises(AgentError, match=why):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    assert tree(host.root) == before


def test_links_to_where_it_was_built_are_left_out(host: Machine, tmp_path: Path) -> None:
    upload = uploaded(tmp_path / "u", modules=_link(f"lib/modules/{RELEASE}/build", "/home/x"))
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    assert not os.path.lexists(host.modules / RELEASE / "build")


def _symbolic_link(at: Path) -> None:
    (at / "config").unlink()
    (at / "config").symlink_to("/etc/shadow")


def _fifo(at: Path) -> None:
    (at / "config").unlink()
    os.mkfifo(at / "config", 0o600)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda at: (at / "config").unlink(), "No such file"),
        (_symbolic_link, "symbolic links"),
        (_fifo, "not a plain file"),
        (lambda at: (at / "config").chmod(0o666), "others may write"),
        (lambda at: at.chmod(0o777), "others may write"),
        (lambda at: (at / "bzImage").write_bytes(b"MZ" * 999), "not an x86 kernel"),
    ],
)
def test_uploads_that_are_refused(
    host: Machine, upload: str, spoil: Callable[[Path], object], why: str
) -> None:
    spoil(Path(upload))
    with pytest.raises(AgentError, match=why):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)


def test_files_of_somebody_else_are_refused(host: Machine, upload: str) -> None:
    with pytest.raises(AgentError, match=f"belongs to uid {UID}, not to {UID + 1}"):
        Kernels(host, sudo_uid=UID + 1).install(release=RELEASE, directory=upload)


@pytest.mark.parametrize(
    "release", ["", "..", "a/b", "-x", "x" * 65, "a b", "a'b", "$(x)", "a..b", "\n", 7, None]
)
def test_names_that_are_no_release(host: Machine, upload: str, release: str) -> None:
    with pytest.raises(AgentError, match="is not a kernel release"):
        Kernels(host, sudo_uid=UID).install(release=release, directory=upload)


@pytest.mark.parametrize("word", ["a b", 'x="y"', "x='y'", "", "-x", "x;y", "x$y", "x{y}", 3])
def test_parameters_that_are_refused(host: Machine, upload: str, word: str) -> None:
    with pytest.raises(AgentError, match="is not a kernel parameter"):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload, cmdline_add=[word])


def test_nothing_of_the_machine_is_replaced(host: Machine, upload: str) -> None:
    (host.boot / f"config-{RELEASE}").write_text("somebody's")
    before = tree(host.root)
    with pytest.raises(AgentError, match="not of this harness"):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    assert tree(host.root) == before


def test_another_kernel_than_was_said(host: Machine, upload: str) -> None:
    with pytest.raises(AgentError, match=f"version of the bzImage is '{RELEASE}"):
        Kernels(host, sudo_uid=UID).install(release="6.12.117-rb7", directory=upload)


@pytest.mark.parametrize("program", ["depmod", "mkinitramfs"])
def test_what_fails_leaves_nothing(host: Machine, upload: str, program: str) -> None:
    before = tree(host.root)
    (host.root / "programs" / program).write_text("#!/bin/sh\necho out of coffee >&2; exit 1\n")
    with pytest.raises(AgentError, match="out of coffee"):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    assert tree(host.root) == before


def test_no_room(host: Machine, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(host.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1 << 20))
    with pytest.raises(AgentError, match="1 MiB are free"):
        Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    assert tree(host.root) == before


def test_what_a_killed_agent_left_is_removed_by_the_next(host: Machine, upload: str) -> None:
    before = tree(host.root)
    kernels = Kernels(host, sudo_uid=UID)
    kernels.install(release=RELEASE, directory=upload)
    record = host.state / "kernels.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    shutil.rmtree(host.boot / "receive-batching")
    with pytest.raises(AgentError, match="is not installed"):
        BootControl(host).prepare(release=RELEASE, method="kexec")
    assert kernels.install(release=RELEASE, directory=upload)["kept"] is False
    kernels.remove()
    assert tree(host.root) == before


def test_the_running_kernel_stays(host: Machine, upload: str) -> None:
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload)
    ours = Kernels(replace(host, running=RELEASE), sudo_uid=UID)
    with pytest.raises(AgentError, match="is running: it cannot be removed"):
        ours.remove()
    assert ours.installed()


def test_the_command_line_is_that_of_the_known_good_kernel(host: Machine, upload: str) -> None:
    Kernels(host, sudo_uid=UID).install(release=RELEASE, directory=upload, cmdline_add=["a=1"])
    # Booted into ours, where another is installed.
    (host.root / "proc/cmdline").write_text(f"a=1 b=2 {cmdline.OURS}={RELEASE}\n")
    other = "6.12.117-rb2"
    ours = Kernels(replace(host, running=RELEASE), sudo_uid=UID)
    done = ours.install(release=other, directory=uploaded(Path(upload), other), cmdline_add=["a=2"])
    expected = ["root=UUID=abc", "ro", "quiet", "panic=0", "dyndbg=file a.c +p", "a=2"]
    assert done["cmdline"] == [*expected, f"{cmdline.OURS}={other}"]
    (host.state / "kernels.json").unlink()
    with pytest.raises(AgentError, match="no record says which was before"):
        ours.install(release="6.1-x", directory=uploaded(Path(upload), "6.1-x"))


def test_two_agents_at_once(host: Machine, upload: str) -> None:
    from harness.agent.boot.record import changing

    with changing(host), pytest.raises(AgentError, match="another agent"):
        Kernels(host, sudo_uid=UID).remove()


def test_a_record_that_is_none(host: Machine) -> None:
    host.state.mkdir(parents=True)
    (host.state / "kernels.json").write_text("[1, 2")
    with pytest.raises(AgentError, match="not a record of this harness"):
        BootControl(host).state()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b=c", ["a", "b=c"]),
        ('x="1 2" "y=3 4"', ["x=1 2", "y=3 4"]),
        ('open="1 2', ["open=1 2"]),
        ("", []),
    ],
)
def test_command_lines_as_the_kernel_reads_them(line: str, words: list[str]) -> None:
    assert cmdline.words(line) == words
    assert cmdline.words(cmdline.for_kernel(words)) == words


def test_what_is_for_init_stays_last() -> None:
    assert cmdline.composed(["ro", "--", "single"], ["panic=10"], "r") == [
        "ro",
        "panic=10",
        f"{cmdline.OURS}=r",
        "--",
        "single",
    ]


def test_words_in_a_grub_script() -> None:
    assert cmdline.for_grub(["a=b", "x=1 2", "it's", "$x;{}"]) == ("a=b 'x=1 2' 'it'\\''s' '$x;{}'")


def test_too_long_a_line() -> None:
    with pytest.raises(AgentError, match="longer than 2048"):
        cmdline.composed(["x" * 2100], [], "r")
