# SPDX-License-Identifier: MIT
"""Kernels for machines: a host's configuration, modules, packing, and who compiles."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import kernels
from harness.agent.boot import kernel_config
from harness.agent.faults import AgentError
from harness.base.errors import ConfigurationError, InfrastructureError, KernelError
from harness.base.progress import Progress
from harness.config import Distcc, Kernel
from harness.kernels import HostConfig, build, configuration, walk
from harness.kernels.configuration import MACHINE, chosen, clean, merged, options
from harness.kernels.toolchain import Toolchain, toolchain_of
from tests.unit.test_kernel_source import git

pytestmark = pytest.mark.unit

builds = pytest.mark.skipif(
    not all(map(shutil.which, ("make", "gcc", "mksquashfs", "unsquashfs"))),
    reason="needs make, gcc and squashfs-tools",
)

MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
NAMES = $(basename $(wildcard *.c))
MODULES = $(shell sed -n 's/^CONFIG_\\(.*\\)=m$$/\\1/p' $(O)/.config)
INSTALLED = $(INSTALL_MOD_PATH)/lib/modules/6.12.0$(LOCALVERSION)
olddefconfig:
	sort -o $(O)/.config $(O)/.config
localmodconfig:
	grep -q '^ext4 ' $(LSMOD) && sed -i /UNUSED/d $(O)/.config
bzImage: $(patsubst %,$(O)/%.o,$(NAMES))
	mkdir -p $(O)/arch/x86/boot $(O)/arch/x86/include $(O)/include/config
	ld -r -o $(O)/vmlinux $^
	cp $(O)/vmlinux $(O)/arch/x86/boot/bzImage
	echo 6.12.0$(LOCALVERSION) > $(O)/include/config/kernel.release
modules: bzImage $(patsubst %,$(O)/%.mod.o,$(MODULES))
$(O)/%.mod.o: FORCE
	@echo "  CC [M]  $*.mod.o"
	echo '$(LOCALVERSION)' > $@
	touch $(O)/.$*.mod.o.cmd
modules_install:
	mkdir -p $(INSTALLED)/kernel
	$(foreach name,$(MODULES),cp $(O)/$(name).mod.o $(INSTALLED)/kernel/$(name).ko;)
	touch $(INSTALLED)/modules.dep
	ln -s $(O) $(INSTALLED)/build
$(O)/%.o: %.c
	@echo "  CC      $*.o"
	cd $(O) && $(CC) -g -Wp,-MMD,.$*.o.d -c -o $*.o $(CURDIR)/$<
	echo "$(CURDIR)/$<" > $(O)/.$*.o.cmd
FORCE:
"""

CONFIG = """\
# Linux/x86 6.1.0 Kernel Configuration
CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14) 12.2.0"
CONFIG_LOCALVERSION=".el9"
CONFIG_SYSTEM_TRUSTED_KEYS="debian/certs/debian-uefi-certs.pem"
CONFIG_INITRAMFS_SOURCE="/etc"
CONFIG_MODULE_SIG=y
CONFIG_HZ=250
CONFIG_PHYSICAL_START=0x1000000
CONFIG_EXT4_FS=m
CONFIG_UNUSED=m
CONFIG_NETCONSOLE=y
# CONFIG_KPROBES is not set
"""
HOST = HostConfig(CONFIG, ("virtio_blk", "ext4"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_FREE_BYTES", 0)
    for name in list(os.environ):
        if name.startswith(("CCACHE_", "DISTCC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "ccache"))
    monkeypatch.setenv("DISTCC_DIR", str(tmp_path / "distcc"))
    (tmp_path / "distcc").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("arch/x86/include/x.h", "include/y.h"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"{name}\n")
    for name in ("a", "b"):
        (tree / f"{name}.c").write_text(f"int {name}(void) {{ return 1; }}\n")
    (tree / "Makefile").write_text(MAKEFILE)
    git(tree, "init", "-q", "-b", "main")
    git(tree, "add", "--all")
    git(tree, "commit", "-qm", "base")
    return tree


def built(tree: Path, kernel: Kernel, host: HostConfig | None = HOST) -> build.Image:
    commit = git(tree, "rev-parse", "--short=12", "HEAD").strip()
    with Progress(bars=False) as progress:
        wanted = kernels.Kernels(
            kernel=kernel,
            names=[commit],
            tree=tree,
            commits=[kernels.Commit(commit)],
            host=host,
        )
        return wanted.build(progress)[commit][0]


def listed(image: build.Image) -> dict[str, str]:
    with tarfile.open(kernels.packed(image) / "modules.tar") as tar:
        return {
            member.name: tar.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in tar
            if member.isfile()
        }


# --- Which configuration ---


def test_auto_is_the_host_s_where_there_is_one(tmp_path: Path) -> None:
    assert chosen(Kernel()) == chosen(Kernel(config="benchmark"), HOST) == configuration.benchmark()
    assert chosen(Kernel(), HOST) == chosen(Kernel(config="host"), HOST)
    assert chosen(Kernel(), HOST).modules == ("ext4", "virtio_blk")
    (tmp_path / "config").write_text(CONFIG)
    from_file = chosen(Kernel(config=tmp_path / "config"), HOST)
    assert from_file.modules is None
    assert from_file.base == chosen(Kernel(), HOST).base
    assert from_file.identity != chosen(Kernel(), HOST).identity


def test_who_has_to_be_asked_for_a_configuration(tmp_path: Path) -> None:
    assert kernels.of_host(Kernel(), virtual=False)
    assert kernels.of_host(Kernel(config="host"), virtual=False)
    for config in ("benchmark", tmp_path / "config"):
        assert not kernels.of_host(Kernel(config=config), virtual=False)
    assert not kernels.of_host(Kernel(), virtual=True)
    with pytest.raises(ConfigurationError, match="no host with a kernel of its own"):
        kernels.of_host(Kernel(config="host"), virtual=True)


def test_a_benchmark_kernel_is_named_as_ever() -> None:
    """By the fragment's own digest: kernels that are kept stay what they are."""
    import hashlib

    digest = hashlib.sha256(configuration.FRAGMENT.read_bytes()).hexdigest()
    assert configuration.benchmark().identity == digest
    assert configuration.benchmark().on("linux-6.12") == configuration.benchmark()


def test_a_base_that_names_options_otherwise() -> None:
    ours = configuration.benchmark()
    theirs = ours.on("linux-6.1")
    assert theirs.identity != ours.identity
    lines = options(theirs.asked).values()
    config = "".join(f"{line}\n" for line in lines if not line.startswith("#"))
    theirs.check(config)
    with pytest.raises(KernelError, match="CONFIG_MITIGATION_RETPOLINE=y"):
        ours.check(config)
    with pytest.raises(KernelError, match=r"does not take CONFIG_RETPOLINE=y\n"):
        theirs.check(config.replace("CONFIG_RETPOLINE=y\n", ""))
    assert chosen(Kernel(), HOST).on("linux-6.1") == chosen(Kernel(), HOST)


def test_linux_4_18_is_asked_for_what_it_has() -> None:
    theirs = configuration.benchmark().on("linux-4.18")
    assert theirs.identity != configuration.benchmark().identity
    asked = options("".join(path.read_text() for path in theirs.fragments))
    assert asked["CONFIG_PAGE_TABLE_ISOLATION"] == "CONFIG_PAGE_TABLE_ISOLATION=y"
    theirs.check("".join(f"{line}\n" for line in asked.values() if not line.startswith("#")))


def test_what_is_loaded_when_a_host_is_asked_makes_no_other_kernel() -> None:
    first = HostConfig(CONFIG, ("ext4", "loop")).settled("rx")
    assert HostConfig(CONFIG, ("ext4",)).settled("rx") == first
    assert HostConfig(CONFIG, ("ext4",)).settled("tx").modules == ("ext4",)
    more = HostConfig(CONFIG, ("ext4", "sfc")).settled("rx")
    assert more.modules == ("ext4", "loop", "sfc")
    assert HostConfig(CONFIG + "CONFIG_X=y\n", ("ext4",)).settled("rx").modules == ("ext4",)


@pytest.mark.parametrize(
    "line",
    [
        'CONFIG_X="$(shell touch here)"',
        'CONFIG_X="`touch here`"',
        'CONFIG_X="a;touch here"',
        'CONFIG_X="a" CONFIG_Y="b"',
        'CONFIG_X="a\\',
        "CONFIG_X=$(shell touch here)",
        "CONFIG_X=yes",
        "CONFIG_X$(shell touch here)=y",
        "CONFIG_X=" + "9" * 40,
        "CONFIG_\x1b[31m=y",
    ],
)
def test_what_is_no_plain_option_is_refused(line: str) -> None:
    with pytest.raises(ConfigurationError, match="line 2 of it is not a plain option") as caught:
        clean(f"CONFIG_A=y\n{line}\n", "it")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no options"),
        ("\0\x1b[2J<html>", "has no options"),
        ("CONFIG_A=y\n" * 300_000, "larger than"),
    ],
)
def test_what_is_no_configuration(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        clean(text, "it")


@pytest.mark.parametrize("modules", [("a b",), ("../../x",), ("a\nb",), ("",), ("é",)])
def test_modules_that_are_none(modules: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="reports a module named"):
        chosen(Kernel(), HostConfig(CONFIG, modules))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*/none: No such file"):
        chosen(Kernel(config=tmp_path / "none"))


def test_the_fragment_wins_and_makes_no_module_of_what_is_built_in() -> None:
    base = clean(CONFIG, "it")
    have = options(merged(base, "CONFIG_NETCONSOLE=m\nCONFIG_KPROBES=y\nCONFIG_SFC=m\n"
                                "# CONFIG_MODULE_SIG is not set\n"))  # fmt: skip
    assert have["CONFIG_NETCONSOLE"] == "CONFIG_NETCONSOLE=y"
    assert have["CONFIG_KPROBES"] == "CONFIG_KPROBES=y"
    assert have["CONFIG_SFC"] == "CONFIG_SFC=m"
    assert have["CONFIG_MODULE_SIG"] == "# CONFIG_MODULE_SIG is not set"
    assert not {"CONFIG_SYSTEM_TRUSTED_KEYS", "CONFIG_INITRAMFS_SOURCE"} & set(have)


def test_an_option_of_the_experiment_that_is_lost_is_named() -> None:
    whole = MACHINE.read_text().replace("CONFIG_SFC=m", "CONFIG_SFC=y")
    asked = chosen(Kernel(), HOST)
    asked.check(whole)
    asked.check(whole.replace("# CONFIG_MODULE_SIG is not set\n", ""))
    for lost, named in (
        ("CONFIG_DEBUG_INFO_BTF=y", "CONFIG_DEBUG_INFO_BTF=y"),
        ("CONFIG_SFC=y", "CONFIG_SFC=m"),
    ):
        with pytest.raises(KernelError, match=named):
            asked.check(whole.replace(lost, ""))
    with pytest.raises(KernelError, match="CONFIG_MODULE_SIG is not set"):
        asked.check(whole + "CONFIG_MODULE_SIG=y\n")


# --- Building and packing ---


@builds
def test_a_kernel_of_a_host_s_configuration(tree: Path) -> None:
    image = built(tree, Kernel())
    have = options((image.directory / "config").read_text())
    assert "CONFIG_UNUSED" not in have
    assert have["CONFIG_EXT4_FS"] == "CONFIG_EXT4_FS=m"
    assert have["CONFIG_LOCALVERSION"] == 'CONFIG_LOCALVERSION=""'
    assert "# CONFIG_MODULE_SIG is not set" in have.values()
    assert built(tree, Kernel()) == image
    other = built(tree, Kernel(), HostConfig(CONFIG, ("ext4", "loop")))
    assert other.release != image.release
    assert [path.name for path in (tree.parent / "cache/objects").glob("*-config")] == []


@builds
def test_a_kernel_packed_for_a_machine(tree: Path) -> None:
    image = built(tree, Kernel())
    where = kernels.packed(image)
    assert {path.name for path in where.iterdir()} == {"bzImage", "config", "modules.tar"}
    assert (where / "bzImage").read_bytes() == image.kernel.read_bytes()
    top = f"lib/modules/{image.release}"
    content = listed(image)
    assert content[f"{top}/kernel/EXT4_FS.ko"].strip() == "-" + image.release.partition("-")[2]
    assert f"{top}/kernel/SFC.ko" in content
    assert content[f"{top}/build/include/y.h"] == "include/y.h\n"
    assert f"{top}/modules.dep" in content
    with tarfile.open(where / "modules.tar") as tar:
        for member in tar:
            assert member.name == top or member.name.startswith(f"{top}/")
            assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
            assert member.isfile() or member.isdir()
    first = (where / "modules.tar").read_bytes()
    shutil.rmtree(where)
    assert (kernels.packed(image) / "modules.tar").read_bytes() == first


@builds
def test_what_is_left_to_compile_is_counted(tree: Path, own_cache: Path) -> None:
    built(tree, Kernel())
    (tree / "b.c").write_text("int b(void) { return 2; }\n")
    git(tree, "commit", "-qam", "change b")
    (objects,) = (path for path in (own_cache / "objects").iterdir() if path.is_dir())
    (top,) = own_cache.glob("worktrees/*/linux")
    there = walk.Walk(top, objects, chosen(Kernel(), HOST), Toolchain("gcc"))
    modules = 2
    assert there._objects_left([top / "b.c"]) == 1 + modules
    assert there._objects_left([]) == modules
    log = (built(tree, Kernel()).directory / "build.log").read_text()
    assert sum(bool(walk._COMPILED.match(line)) for line in log.splitlines()) == 1 + modules


def test_types_of_modules_are_pahole_s_own_matter(tmp_path: Path) -> None:
    """Those of the kernel are looked for once; a module's refer to them."""
    (tmp_path / "pahole").write_text('#!/bin/sh\necho "pahole $*"\n')
    (tmp_path / "objcopy").write_text("#!/bin/sh\necho objcopy\n")
    (tmp_path / "kept").touch()
    (tmp_path / "wrapper").write_text(walk._PAHOLE)
    for name in ("pahole", "objcopy", "wrapper"):
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KERNEL_BTF": str(tmp_path / "kept")}

    def said(*arguments: str) -> str:
        command = [str(tmp_path / "wrapper"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip()

    assert said("-J", "vmlinux") == "objcopy"
    assert said("-J", "--btf_base", "vmlinux", "x.ko") == "pahole -J --btf_base vmlinux x.ko"


@builds
def test_a_configuration_that_was_interrupted_is_made_again(tree: Path) -> None:
    makefile = (tree / "Makefile").read_text()
    (tree / "Makefile").write_text(makefile.replace("grep -q '^ext4 '", "false"))
    git(tree, "commit", "-qam", "break it")
    with pytest.raises(KernelError):
        built(tree, Kernel())
    git(tree, "revert", "--no-edit", "HEAD")
    assert "CONFIG_UNUSED" not in (built(tree, Kernel()).directory / "config").read_text()


@builds
def test_missing_depmod_is_told(tree: Path) -> None:
    makefile = (tree / "Makefile").read_text()
    (tree / "Makefile").write_text(makefile.replace("\ttouch $(INSTALLED)/modules.dep\n", ""))
    git(tree, "commit", "-qam", "no depmod")
    with pytest.raises(InfrastructureError, match="kmod"):
        built(tree, Kernel())


# --- Who compiles ---


def hits(tmp_path: Path) -> tuple[int, int]:
    """Hits and misses of the test's own ccache."""
    shown = subprocess.run(
        ["ccache", "--print-stats"], check=True, capture_output=True, text=True
    ).stdout
    counts = dict(line.split("\t") for line in shown.splitlines())
    found = int(counts["direct_cache_hit"]) + int(counts["preprocessed_cache_hit"])
    return found, int(counts["cache_miss"])


@builds
@pytest.mark.skipif(not shutil.which("ccache"), reason="needs ccache")
def test_ccache_keeps_what_was_compiled(tree: Path, tmp_path: Path) -> None:
    plain = built(tree, Kernel())
    shutil.rmtree(tmp_path / "cache")
    kernel = Kernel(compiler_cache="ccache")
    first = built(tree, kernel)
    assert hits(tmp_path) == (0, 2)
    shutil.rmtree(tmp_path / "cache")
    assert built(tree, kernel) == first == plain
    assert hits(tmp_path) == (2, 2)
    assert built(tree, kernel, HostConfig(CONFIG, ("ext4", "loop"))).release != first.release
    assert hits(tmp_path) == (4, 2)


@builds
@pytest.mark.skipif(not shutil.which("ccache"), reason="needs ccache")
def test_what_another_compiled_is_had_of_the_shared_storage(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCACHE_REMOTE_STORAGE", f"file:{tmp_path / 'shared'}")
    kernel = Kernel(compiler_cache="ccache")
    first = built(tree, kernel)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "of-another"))
    assert built(tree, kernel) == first
    assert hits(tmp_path) == (2, 0)


@contextmanager
def distccd(log: Path, **more: str) -> Iterator[str]:
    """A peer on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["distccd", "--no-detach", "--daemon", "--allow", "127.0.0.1", "--listen"]
    command += ["127.0.0.1", "--port", str(port), "--jobs", "2", "--log-stderr"]
    environment = {**os.environ, "TMPDIR": "/tmp", **more}  # noqa: S108 (it drops root's rights)
    with log.open("w") as said:
        peer = subprocess.Popen(command, stderr=said, env=environment, start_new_session=True)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        peer.terminate()
        peer.wait()


needs_distcc = pytest.mark.skipif(
    not all(map(shutil.which, ("distcc", "distccd"))), reason="needs distcc"
)


@builds
@needs_distcc
@pytest.mark.parametrize("cache", [None, "ccache"])
def test_distcc_compiles(tree: Path, tmp_path: Path, cache: str | None) -> None:
    if cache and not shutil.which(cache):
        pytest.skip(f"needs {cache}")
    plain = built(tree, Kernel())
    shutil.rmtree(tmp_path / "cache")
    with distccd(tmp_path / "distccd.log") as peer:
        kernel = Kernel(compiler_cache=cache, distcc=Distcc(hosts=(peer,)))  # type: ignore[arg-type]
        assert toolchain_of(kernel).jobs > toolchain_of(Kernel()).jobs
        image = built(tree, kernel)
    said = (tmp_path / "distccd.log").read_text()
    for name in ("proof.c", "a.c", "b.c"):
        assert any("COMPILE_OK" in line and line.endswith(name) for line in said.splitlines())
    assert image.release == plain.release
    if cache:
        assert hits(tmp_path) == (0, 2)


@needs_distcc
def test_a_peer_that_is_not_there_or_has_another_gcc(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InfrastructureError, match=f"host {gone} does not compile"):
        Toolchain("gcc", peers=(gone,)).prove()
    with tempfile.TemporaryDirectory() as programs:  # as root it looks there as another user
        Path(programs).chmod(0o755)
        for name in ("gcc", "x86_64-linux-gnu-gcc"):
            other = Path(programs, name)
            other.write_text('#!/bin/sh\nexec /usr/bin/gcc -fno-ident "$@"\n')
            other.chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        with distccd(tmp_path / "distccd.log", PATH=path) as peer:
            with pytest.raises(ConfigurationError, match=f"host {peer} has another gcc, this"):
                Toolchain("gcc", peers=(peer,)).prove()
    with distccd(tmp_path / "distccd.log") as peer:
        Toolchain("gcc", peers=(peer,)).prove()


def test_a_cache_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="ccache is not installed"):
        Toolchain("gcc", cache="ccache").prove()


# --- On the host ---


def test_the_agent_reads_what_a_distribution_keeps(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG)
    with gzip.open(tmp_path / "config.gz", "wt") as file:
        file.write(CONFIG)
    for places in (["none", "config"], ["config.gz"]):
        read = kernel_config._first([tmp_path / name for name in places], "6.1.0")
        assert read.decode() == CONFIG


def test_the_agent_says_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b\x08 broken")
    (tmp_path / "large.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    places = [tmp_path / "broken.gz", tmp_path / "none"]
    with pytest.raises(AgentError, match=r"kernel 6.1.0 .*broken.gz: .*none: No such file"):
        kernel_config._first(places, "6.1.0")
    with pytest.raises(AgentError, match="larger than 2 MiB"):
        kernel_config._read(tmp_path / "large.gz")
