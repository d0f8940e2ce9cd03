# SPDX-License-Identifier: MIT
"""What a run needs of this machine: tried, named, and told before anything is made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from harness import config, images, kernels, needs
from harness.base import cache, namespaces, process, runtime
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.machine.doctor import Finding
from harness.nic import datapath

pytestmark = pytest.mark.unit

CODE = Path(needs.__file__).parents[1]
LOGIN = "/usr/local/bin:/usr/bin:/bin"
REFUSED = "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1"
SHM = "/dev/shm"  # noqa: S108
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def python(script: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """``script`` with what a login shell has."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}"],
        env={"HOME": str(home), "PATH": LOGIN, "PYTHONPATH": str(CODE)} | env,
        cwd=home, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def harness(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return python(
        f"from harness.cli import main; sys.argv[1:] = {list(words)!r}; main()", home, **env
    )


def rows(job: needs.Job) -> dict[str, Finding]:
    return {row.check: row for row in needs.examine(job)}


BUILDS = needs.Job(guests=False, kernels=lambda: 2)
IDLE = needs.Job(guests=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(root))
    return root


def programs(directory: Path, **scripts: str) -> str:
    """A $PATH of these programs alone."""
    directory.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return str(directory)


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("path", [LOGIN, "", None])
def test_a_path_without_sbin_is_completed(path: str | None) -> None:
    parts = process.search_path(path).split(":")
    assert {"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"} <= set(parts)
    assert len(parts) == len(set(parts))
    assert "" not in parts
    assert parts[: len(LOGIN.split(":"))] == LOGIN.split(":") or not path


@pytest.mark.parametrize("module", ["harness.base.process", "harness.agent.programs"])
def test_programs_of_sbin_are_started_from_a_login_shell(tmp_path: Path, module: str) -> None:
    # The second is found by the first, which inherits the path.
    script = f"import {module} as m; print(m.run(['sh', '-c', 'command -v chroot'], timeout_s=9))"
    done = python(script, tmp_path)
    assert "/chroot" in done.stdout, done.stderr


def test_a_missing_program_is_installed_by_its_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "none"))
    with pytest.raises(InfrastructureError, match="mksquashfs is not installed") as caught:
        process.run(["mksquashfs", "-version"])
    assert caught.value.hint == "apt-get install squashfs-tools"
    with pytest.raises(InfrastructureError, match="gone: no such directory"):
        process.run([sys.executable, "-c", ""], cwd=tmp_path / "gone")


def test_the_agent_names_the_package_of_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.agent import load as netperf
    from harness.agent import programs
    from harness.agent.faults import AgentError

    monkeypatch.setattr(programs, "_SYSTEM", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, package in (("chroot", "coreutils"), ("netperf", "netperf")):
        with pytest.raises(AgentError, match=f"{name} is not installed") as caught:
            netperf._started([name], cpus=None)
        assert f"install the package {package} on the host" in str(caught.value.hint)


# ---------------------------------------------------------------- the tools root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tools root, in a directory with a blank, whose loader says what it is to load."""
    found = tmp_path / "a root"
    loader = found / "usr/lib64/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$QEMU_MODULE_DIR" "$@"\n')
    loader.chmod(0o755)
    return found


def test_programs_of_the_tools_root_need_no_right(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    tools = images.Tools(root=root)
    said = process.run([*tools.netperf_prefix(), "netperf", "-H", "a b"]).stdout.splitlines()
    assert said[1:] == [
        "--inhibit-cache", "--library-path", f"{root}/usr/lib/x86_64-linux-gnu",
        f"{root}/usr/bin/netperf", "-H", "a b",
    ]  # fmt: skip
    said = process.run(tools.qemu(["-device", "x y"])).stdout.splitlines()
    assert said[0] == f"{root}/usr/lib/x86_64-linux-gnu/qemu"
    assert f"{root}/usr/bin/qemu-system-x86_64" in said
    assert said[-2:] == ["-device", "x y"]


# ---------------------------------------------------------------- where a system is made


def test_a_root_is_made_where_its_users_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(home))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(home))
    usual = Path("/var/tmp")  # noqa: S108
    assert images.open_to_all() == usual
    monkeypatch.setattr(os, "access", lambda path, _: path != usual)
    with pytest.raises(InfrastructureError, match=str(home)) as caught:
        images.open_to_all()
    assert "TMPDIR" in str(caught.value.hint)


def test_hooks_lie_beside_the_root_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    setup, target = hidden / "set-up.sh", hidden / "made.tar"
    setup.write_text("#!/bin/sh\necho hooked $1 $WORD\n")
    fake = """
    for word; do case $word in --customize-hook=*) sh -c "${word#*=}" exec R >"$TO" ;; esac; done
    pwd >>"$TO"
    """
    path = programs(tmp_path / "bin", mmdebstrap=fake)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    own = os.geteuid()
    monkeypatch.setattr(images, "open_to_all", lambda: tmp_path)
    monkeypatch.setattr(cache, "digest", lambda *_: "0")
    monkeypatch.setattr(os, "geteuid", lambda: own or 4711)
    monkeypatch.setattr(images, "_own", lambda path: path.stat().st_uid == own)
    left = tmp_path / f"rb-root-{own or 4711}-0-killed"
    left.mkdir()
    said = tmp_path / "said"
    images.debootstrap(target, ("a",), setup, {"WORD": "well", "TO": str(said)})
    hooked, room, *_ = said.read_text().splitlines()
    assert hooked == "hooked R well"
    assert Path(room).parent == tmp_path
    assert not Path(room).exists()
    assert not left.exists()


# ---------------------------------------------------------------- sockets


def test_a_long_or_closed_tmpdir_is_no_place_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    for named in (str(deep), "/proc", "relative", str(tmp_path / "gone")):
        monkeypatch.setenv("TMPDIR", named)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no-such"))
        with runtime.directory(name_bytes=40) as directory, socket.socket(socket.AF_UNIX) as line:
            line.bind(str(directory / ("n" * 40)))
            assert directory.stat().st_mode & 0o077 == 0
        assert not directory.exists()
    monkeypatch.setattr(runtime, "_USUAL", ())
    with pytest.raises(InfrastructureError, match="gone: No such file") as caught:
        runtime.made(name_bytes=0)
    assert "TMPDIR" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("shm", "named", "found"),
    [
        ((4096, 0), (4096, 0), SHM),
        ((64, 0), (4096, 0), "named"),
        ((4096, os.ST_NOEXEC), (4096, 0), "named"),
        ((64, os.ST_NOEXEC), (1023, 0), None),
    ],
)
def test_a_kernels_memory_needs_room_and_may_be_executed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shm: tuple[int, int],
    named: tuple[int, int],
    found: str | None,
) -> None:
    """The first is a container's /dev/shm as engines make it."""
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "named"))
    monkeypatch.setattr(runtime, "_USUAL", ())
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    def statvfs(path: str) -> os.statvfs_result:
        mib, flags = shm if path == SHM else named
        return os.statvfs_result((4096, 4096, 0, 0, mib << 8, 0, 0, 0, flags, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    if found is not None:
        assert str(runtime.for_memory(1024)).endswith(found)
        return
    with pytest.raises(InfrastructureError, match=rf"{SHM} is mounted noexec; .*1023 MiB"):
        runtime.for_memory(1024)


# ---------------------------------------------------------------- what refuses namespaces


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("sys/kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone=1"),
        (
            "sys/kernel/apparmor_restrict_unprivileged_userns",
            "1\n",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("sys/user/max_user_namespaces", "0\n", "user.max_user_namespaces=10000"),
        ("sys/user/max_net_namespaces", "0\n", "user.max_net_namespaces=10000"),
        ("self/mountinfo", "22 1 0:3 / /proc rw - proc proc rw\n", "chroot"),
        ("self/status", "Name:\tx\nSeccomp:\t2\n", "docker run --privileged"),
        ("sys/kernel/unprivileged_userns_clone", "1\n", "an ordinary user needs"),
    ],
)
def test_what_refuses_namespaces_is_named(
    tmp_path: Path, file: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    where = tmp_path / file
    where.parent.mkdir(parents=True)
    where.write_text(text)
    assert said in namespaces.remedy(proc=tmp_path)


def test_who_has_no_range_in_subuid_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "_user_name", lambda: "nobody-of-that-name")
    assert "usermod --add-subuids 200000-265535 nobody-of" in namespaces.remedy_for_images()


# ---------------------------------------------------------------- the checks


def test_an_idle_job_needs_next_to_nothing(own_cache: Path) -> None:
    found = rows(IDLE)
    assert all(row.ok for row in found.values()), found
    assert {"user", "cache", "temporary files", "programs", "disk", "limits"} == set(found)


def test_probes_in_user_mode_kernels_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = config.load(config.locate(None))
    for name in ("virtual", "native"):
        bed = config.bed(hosts, name)
        job = needs.of_kernels(
            kernels.Kernels(kernel=hosts.kernel, names=["8"], arch=bed.arch), bed=bed
        )
        assert job.probes == (name == "native")
    there = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "objdump" else there("sh"))
    row = rows(needs.Job(guests=False, probes=True))["programs"]
    assert (row.ok, row.remedy) == (False, "apt-get install binutils")
    assert rows(IDLE)["programs"].ok


def test_the_cache_has_to_be_a_directory_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for place, said in (
        (tmp_path / "file", "is not a directory"),
        (tmp_path / "file/below", "is not a directory"),
        (tmp_path / "a blank", "do not support ' '"),
        (tmp_path / "a:colon", "do not support ':'"),
    ):
        monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(place))
        with pytest.raises(ConfigurationError, match=said) as told:
            rows(IDLE)
        assert "RECEIVE_BATCHING_CACHE" in str(told.value.hint)
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", "/proc/none")
    row = rows(IDLE)["cache"]
    assert (row.ok, "/proc/none" in row.detail) == (False, True), row
    assert "RECEIVE_BATCHING_CACHE" in str(row.remedy)


@AS_ROOT
def test_a_cache_that_nothing_can_be_executed_in_is_told(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    script = (
        "from harness import needs; print([r.detail for r in needs.examine("
        "needs.Job(guests=False)) if r.check == 'cache'])"
    )
    code = f"import sys; sys.path.insert(0, {str(CODE)!r}); {script}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o noexec t "$1"; exec "$2" -c "$3"',
         "sh", str(tmp_path / "c"), sys.executable, code],
        env=os.environ | {"RECEIVE_BATCHING_CACHE": str(tmp_path / "c")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "noexec" in done.stdout, done.stderr


def test_a_user_whom_the_system_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)
    row = rows(IDLE)["user"]
    assert (row.ok, "3999999999" in row.detail) == (False, True)


def test_a_result_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert rows(needs.Job(guests=False, results=tmp_path / "new/below"))["results"].ok
    row = rows(needs.Job(guests=False, results=tmp_path / "file/below"))["results"]
    assert not row.ok
    assert row.remedy == "name another directory with --out"


def test_memory_and_disk_are_held_against_what_the_job_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not needs._memory(1 << 40).ok
    assert needs._memory(1).ok
    monkeypatch.setattr(needs, "_cgroup_bytes", lambda: 512 << 20)
    row = needs._memory(1024)
    assert (row.ok, row.remedy is not None) == (False, True)
    assert row.detail.startswith("512 MiB")
    monkeypatch.setattr(needs, "_BUILD_BYTES", 1 << 60)
    row = rows(BUILDS)["disk"]
    assert not row.ok
    assert "GiB are free" in row.detail


def test_a_containers_memory_is_its_control_groups(tmp_path: Path) -> None:
    assert needs._cgroup_bytes(tmp_path) == 1 << 62
    (tmp_path / "memory.max").write_text("max\n")
    assert needs._cgroup_bytes(tmp_path) == 1 << 62
    (tmp_path / "memory.max").write_text("1048576\n")
    assert needs._cgroup_bytes(tmp_path) == 1 << 20


def test_limits_of_the_shell_are_named_as_ulimit_names_them(tmp_path: Path) -> None:
    script = (
        "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        "r.setrlimit(r.RLIMIT_NOFILE, (64, 64)); "
        "from harness import needs; print(*needs._limits())"
    )
    done = python(script, tmp_path)
    assert "ok=False" in done.stdout, done.stderr
    assert "ulimit -n" in done.stdout
    assert "ulimit -f" in done.stdout


def test_what_builds_kernels_is_needed_where_one_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows(BUILDS)["programs"].ok
    monkeypatch.setenv("PATH", programs(tmp_path / "few", ssh="", gcc="exit 0", make="", ld=""))
    assert rows(IDLE)["programs"].ok
    row = rows(BUILDS)["programs"]
    assert not row.ok
    assert {"flex", "bison", "pahole", "depmod"} <= set(row.detail.replace(",", "").split())
    assert {"dwarves", "kmod", "flex"} <= set(str(row.remedy).split())
    assert "package manager" in str(row.remedy)  # this one has no apt-get
    shutil.copy(f"{tmp_path}/few/ssh", f"{tmp_path}/few/apt-get")
    assert str(rows(BUILDS)["programs"].remedy).startswith("apt-get install ")


def test_headers_are_tried_with_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert needs._headers().ok
    said = "echo '<stdin>:1:10: fatal error: gelf.h: No such file' >&2; exit 1"
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", gcc=said))
    row = needs._headers()
    assert (row.ok, "gelf.h" in row.detail, "libelf-dev" in str(row.remedy)) == (False, True, True)


def test_a_source_that_is_missing_is_one_of_the_things_told() -> None:
    def unknown() -> int:
        raise InfrastructureError("no source", hint="get one")

    row = rows(needs.Job(guests=False, kernels=unknown))["kernels"]
    assert (row.ok, row.detail, row.remedy) == (False, "no source", "get one")


def test_what_mmdebstrap_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "echo 'W: /etc/subuid is empty' >&2; exit 1"
    path = programs(tmp_path / "bin", mmdebstrap=said, unshare=said)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    row = needs._images(["guest image"])
    assert (row.ok, row.detail) == (False, "W: /etc/subuid is empty")
    assert row.remedy


def test_a_mirror_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/lib/apt/apt-helper").exists():
        pytest.skip("apt is not installed")
    monkeypatch.setattr(images, "mirror", lambda: "http://127.0.0.1:9/debian")
    [row] = needs._mirror()
    assert not row.ok
    assert "127.0.0.1:9" in row.detail


def test_without_apt_the_mirror_is_left_to_mmdebstrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "none"))
    assert images.mirror() is None
    assert list(needs._mirror()) == []


def test_a_release_signed_by_no_known_key_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, mirror = os.environ["PATH"], "http://127.0.0.1:9/debian"
    for said, ok in (("NO_PUBKEY 6ED0E7B82643E131", False), ("GOODSIG 6ED0 Debian", True)):
        path = programs(tmp_path / "bin", gpgv=f"echo '[GNUPG:] {said}'; exit 2")
        monkeypatch.setenv("PATH", f"{path}:{usual}")
        row = needs._signature(tmp_path / "InRelease", mirror)
        assert row.ok == ok
        assert ("debian-archive-keyring" in str(row.remedy)) != ok
    monkeypatch.setenv("PATH", programs(tmp_path / "none"))
    assert needs._signature(tmp_path / "InRelease", mirror).ok


def test_all_that_lacks_is_told_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*rows: Finding) -> Callable[[needs.Job], list[Finding]]:
        return lambda _: list(rows)

    good = Finding(check="a", ok=True, detail="fine")
    spare = Finding(check="b", ok=False, detail="gone", needed=False)
    bad = Finding(check="c", ok=False, detail="broken", remedy="mend it")
    worse = Finding(check="d", ok=False, detail="very broken", remedy="mend it more")
    monkeypatch.setattr(needs, "examine", found(good, spare))
    needs.require(IDLE)
    monkeypatch.setattr(needs, "examine", found(good, spare, bad))
    with pytest.raises(InfrastructureError, match="this machine: c: broken") as caught:
        needs.require(IDLE)
    assert caught.value.hint == "mend it"
    monkeypatch.setattr(needs, "examine", found(bad, good, worse))
    with pytest.raises(InfrastructureError) as caught:
        needs.require(IDLE)
    for word in ("c: broken", "→ mend it", "d: very broken", "→ mend it more"):
        assert word in caught.value.message
    assert "a: fine" not in caught.value.message


# ---------------------------------------------------------------- in the commands


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--bed", "virtual", "--steps", "0,8", "--profile", "smoke"),
        ("trace", "guest", "--duration", "1"),
        ("bisect", "--bed", "virtual", "--good", "0", "--bad", "8"),
        ("selftest", "rack"),
        ("selftest", "faults", "panic"),
        ("doctor", "--bed", "virtual"),
    ],
)
def test_it_is_told_before_anything_is_made(
    tmp_path: Path, own_cache: Path, words: tuple[str, ...]
) -> None:
    path = programs(tmp_path / "bin", unshare=REFUSED, mksquashfs="")
    env = {"RECEIVE_BATCHING_CACHE": str(own_cache)}
    done = harness(tmp_path, *words, **env | {"PATH": f"{path}:{LOGIN}"})
    assert done.returncode == 3, done.stderr
    assert "Operation not permitted" in done.stderr + done.stdout
    for made in ("sources", "objects", "kernels", "guests", "tools", "machines"):
        assert not (own_cache / made).exists()


def test_build_asks_for_what_builds(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "file").write_text("")
    done = harness(tmp_path, "build", RECEIVE_BATCHING_CACHE=str(tmp_path / "file"))
    assert done.returncode == 2, done.stderr
    assert "is not a directory" in done.stderr


def test_doctor_shows_the_same_of_a_virtual_bed(tmp_path: Path, own_cache: Path) -> None:
    env = {"RECEIVE_BATCHING_CACHE": str(own_cache)}
    done = harness(tmp_path, "doctor", "--format", "json", **env)
    found = {row["check"] for row in json.loads(done.stdout)["this machine"]}
    assert {"cache", "programs", "network namespace", "memory", "disk", "kernels"} <= found
    of_guest = harness(tmp_path, "doctor", "guest", "wire", "--format", "json", **env)
    assert {row["check"] for row in json.loads(of_guest.stdout)["this machine"]} == found


@AS_ROOT
def test_a_plain_chroot_is_good_enough_for_root(tmp_path: Path) -> None:
    """A network namespace with an agent that sees its interfaces, where / is no mount point."""
    root = tmp_path / "root"
    root.mkdir()
    inside = (
        "from pathlib import Path; from harness.base import namespaces; "
        "from harness.beds.local import netns; "
        "assert namespaces.in_chroot(); "
        "up = netns.start(log=Path('/tmp/log')); "
        "print(up.agent.inventory(interface='gen0')['interface']); up.agent.close()"
    )
    script = """
    set -e
    mount --make-rprivate /
    for part in /*; do
        at=$1/${part#/}
        if [ -L "$part" ]; then cp -P "$part" "$at"
        elif [ "$part" = /tmp ]; then mkdir "$at"
        elif [ -d "$part" ]; then mkdir "$at"; mount --rbind "$part" "$at"
        fi
    done
    for part in "$2" "$3"; do
        case $part in /tmp/*) mkdir -p "$1$part"; mount --rbind "$part" "$1$part" ;; esac
    done
    export PYTHONPATH=$2
    exec chroot "$1" "$4" -c "$5"
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(root), str(CODE),
         str(Path(sys.prefix).parent), sys.executable, inside],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "gen0\n", done.stderr


def test_the_data_path_of_the_nic_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    job = needs.Job(guests=True, namespaces=False)
    monkeypatch.setenv(datapath.CHOICE, "python")
    row = rows(job)["NIC model's data path"]
    assert (row.ok, row.needed) == (False, False)
    assert datapath.CHOICE in row.detail
    assert row.remedy
    assert "make" in row.remedy
    monkeypatch.delenv(datapath.CHOICE)
    monkeypatch.setattr(datapath, "_loaded", lambda: datapath.Datapath(None, "a reason"))
    assert "a reason" in rows(job)["NIC model's data path"].detail
    monkeypatch.setenv(datapath.CHOICE, "compiled")
    assert "a reason" in rows(job)["NIC model's data path"].detail
    library = cast("datapath.Library", object())
    monkeypatch.setattr(datapath, "_loaded", lambda: datapath.Datapath(library, ""))
    row = rows(job)["NIC model's data path"]
    assert (row.ok, row.detail, row.remedy) == (True, "compiled", None)
