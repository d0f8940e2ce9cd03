# SPDX-License-Identifier: MIT
"""What a user's shell exports, and programs that cannot be started, change no result."""

from __future__ import annotations

import ast
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
from harness import kernels, patches
from harness.base import cache, process
from harness.base.errors import ConfigurationError, HarnessError, InfrastructureError
from harness.base.progress import Progress
from harness.beds.machine import power
from harness.config import CommandPower, Kernel
from harness.kernels import configuration, toolchain, walk
from harness.kernels.source import Tree, Worktree, commits_between, from_git, from_tarball
from harness.patches.git import git, is_top_of_git_tree

pytestmark = pytest.mark.unit

MAKEFILE = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def repository(at: Path, **files: str) -> Path:
    at.mkdir()
    for name, text in files.items():
        (at / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (at / name.replace("__", "/")).write_text(text)
    git(at, "init", "-q")
    git(at, "add", ".")
    git(at, "commit", "-qm", "base")
    return at


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    return repository(tmp_path / "linux", Makefile=MAKEFILE, net__core__dev="ours\n")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return repository(tmp_path / "other", Makefile=MAKEFILE, net__core__dev="theirs\n")


def kept(of: Path) -> list[str]:
    return sorted(p.name for p in of.iterdir() if p.suffix != ".lock") if of.is_dir() else []


LEAKS = {
    "GIT_DIR": "{other}/.git",
    "GIT_WORK_TREE": "{other}",
    "GIT_INDEX_FILE": "{other}/.git/index",
    "GIT_OBJECT_DIRECTORY": "{other}/.git/objects",
    "GIT_COMMON_DIR": "{other}/.git",
    "GIT_NAMESPACE": "x",
    "GIT_CEILING_DIRECTORIES": "/",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.worktree",
    "GIT_CONFIG_VALUE_0": "{other}",
    "GIT_CONFIG_PARAMETERS": "'core.bare=true'",
    "GIT_TRACE": "1",
    "GIT_ATTR_SOURCE": "HEAD~9",
    "GIT_DEFAULT_HASH": "sha256",
    "GIT_LITERAL_PATHSPECS": "x",
    "GIT_PREFIX": "net/",
    "LANGUAGE": "de",
    "LC_ALL": "de_DE.ISO-8859-1",
    "TAR_OPTIONS": "--exclude=Makefile",
    "POSIXLY_CORRECT": "1",
    "CDPATH": "/",
    "BASH_ENV": "/etc/passwd",
}


@pytest.mark.parametrize("leaks", [*([name] for name in LEAKS), [*LEAKS]], ids="+".join)
def test_git_reads_the_repository_that_is_named(
    linux: Path, other: Path, monkeypatch: pytest.MonkeyPatch, leaks: list[str]
) -> None:
    was = from_git(linux)
    for name in leaks:
        monkeypatch.setenv(name, LEAKS[name].format(other=other))
    assert from_git(linux) == was
    assert is_top_of_git_tree(linux)
    tree = Tree.of(was).directory
    assert (tree / "net/core/dev").read_text() == "ours\n"
    work = Worktree(linux)
    work.move_to("HEAD")
    assert (work.directory / "net/core/dev").read_text() == "ours\n"
    with pytest.raises(ConfigurationError, match="same commit"):
        commits_between(linux, "HEAD", "HEAD")


def test_what_the_user_configured_for_git_changes_no_kernel(
    linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive goes through attributes: line ends and substitutions."""
    (tmp_path / "attributes").write_text("* text eol=crlf\nMakefile export-ignore\n")
    (tmp_path / "config").write_text(
        f"[core]\nattributesFile = {tmp_path}/attributes\nautocrlf = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    git(linux, "config", "core.attributesFile", str(tmp_path / "attributes"))
    git(linux, "config", "core.eol", "crlf")
    assert (Tree.of(from_git(linux)).directory / "Makefile").read_bytes() == MAKEFILE.encode()


def test_a_part_of_a_tree_is_refused_and_leaves_nothing(linux: Path, own_cache: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{linux}/net is not the top of a git tree") as no:
        from_git(linux / "net")
    assert no.value.hint == f"name {linux}"
    with pytest.raises(ConfigurationError, match="not the top"):
        commits_between(linux / "net", "HEAD", "HEAD")
    with pytest.raises(ConfigurationError, match="not the top"):
        from_git(linux / ".git" / "objects")
    assert kept(own_cache / "sources") == []
    assert patches.base_of(Tree.of(from_git(linux)).directory)[0] == "linux-6.12"


def test_a_bare_repository_and_a_worktree_are_whole(linux: Path, tmp_path: Path) -> None:
    git(linux, "clone", "-q", "--bare", str(linux), str(tmp_path / "bare.git"))
    git(linux, "worktree", "add", "-q", str(tmp_path / "beside"), "HEAD")
    wanted = from_git(linux).identity
    for path in (tmp_path / "bare.git", tmp_path / "beside"):
        found = from_git(path)
        assert found.identity == wanted
        assert (Tree.of(found).directory / "Makefile").is_file()


def test_what_is_no_kernel_is_refused_and_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    plain = repository(tmp_path / "plain", README="no kernel\n")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=f"{plain} at HEAD is not a kernel tree"):
            Tree.of(from_git(plain))
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(ConfigurationError, match="tar cannot unpack"):
        Tree.of(from_tarball(tmp_path / "x.tar"))
    subprocess.run(["tar", "-cf", tmp_path / "y.tar", "-C", tmp_path, "plain"], check=True)
    with pytest.raises(ConfigurationError, match=r"y\.tar is not a kernel tree"):
        Tree.of(from_tarball(tmp_path / "y.tar"))
    assert kept(own_cache / "sources") == []


def test_an_entry_that_an_earlier_harness_kept_wrongly_heals(linux: Path, own_cache: Path) -> None:
    source = from_git(linux)
    wrong = own_cache / "sources" / cache.digest(source.identity) / "linux"
    (wrong / "core").mkdir(parents=True)
    assert (Tree.of(source).directory / "Makefile").is_file()


def test_the_key_names_the_tree_that_is_unpacked(linux: Path) -> None:
    source = from_git(linux)
    (linux / "net/core/dev").write_text("moved on\n")
    git(linux, "commit", "-qam", "HEAD is another one now")
    assert (Tree.of(source).directory / "net/core/dev").read_text() == "ours\n"
    assert from_git(linux).identity != source.identity


def test_one_tree_is_moved_for_one_kernel_at_a_time(linux: Path) -> None:
    """Kernels of another configuration have other objects and the same source."""
    tree = Tree.of(from_git(linux))
    entered = threading.Event()

    def second() -> None:
        with Tree(tree.home).held():
            entered.set()

    with tree.held():
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()


EXPORTED = {
    "ARCH": "arm64", "SUBARCH": "arm", "CROSS_COMPILE": "aarch64-linux-gnu-", "CC": "clang",
    "LD": "gold", "AR": "no", "LLVM": "1", "CFLAGS": "-O0", "KCFLAGS": "-O0", "KCPPFLAGS": "-DX",
    "HOSTCFLAGS": "-O0", "LOCALVERSION": "-mine", "KBUILD_OUTPUT": "/x", "KBUILD_EXTMOD": "/x",
    "KCONFIG_CONFIG": "/x", "KCONFIG_ALLCONFIG": "/x", "KBUILD_BUILD_VERSION": "7",
    "MAKEFLAGS": "B", "MAKEFILES": "/x", "GNUMAKEFLAGS": "-B", "MFLAGS": "-B", "V": "2", "W": "1",
    "C": "2", "O": "/x",
    "INSTALL_MOD_PATH": "/x", "INSTALL_MOD_STRIP": "0", "CPATH": "/x", "C_INCLUDE_PATH": "/x",
    "LIBRARY_PATH": "/x", "GCC_EXEC_PREFIX": "/x", "COMPILER_PATH": "/x", "SOURCE_DATE_EPOCH": "1",
    "DEPENDENCIES_OUTPUT": "/x", "TZ": "Asia/Tokyo", "LANG": "de_DE", "LC_TIME": "de_DE",
    "PYTHONPATH": "/x", "PERL5OPT": "-w", "BASH_ENV": "/x", "ENV": "/x", "CDPATH": "/x",
    "GIT_DIR": "/x", "TAR_OPTIONS": "-v", "XZ_OPT": "-0", "GREP_OPTIONS": "-v", "IFS": "x",
    "CCACHE_COMPILER": "clang", "CCACHE_PREFIX": "no", "PAHOLE": "no", "LSMOD": "/x",
    "CONFIG_SHELL": "/x", "RUSTC": "no", "NIX_CFLAGS_COMPILE": "-O0", "A_NEW_ONE": "x",
}  # fmt: skip


def test_a_kernel_is_built_in_an_environment_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"CCACHE_DIR": "/ccache", "DISTCC_HOSTS": "a", "HTTPS_PROXY": "p", "SSH_AUTH_SOCK": "s"}
    for name, text in (EXPORTED | ours).items():
        monkeypatch.setenv(name, text)
    made = walk.Walk(
        tmp_path, tmp_path / "objects", configuration.benchmark(), toolchain.Toolchain("gcc")
    )
    log = tmp_path / "log"
    with log.open("w") as output:
        made._make(["env"], {"KERNEL_LAYOUT": "1"}, output, log, None)
    seen = dict(line.split("=", 1) for line in log.read_text().splitlines())
    allowed = {"LC_ALL", "KBUILD_BUILD_TIMESTAMP", "KBUILD_BUILD_USER", "KBUILD_BUILD_HOST"}
    leaked = {name for name in EXPORTED if seen.get(name) == EXPORTED[name]}
    assert leaked == set()
    assert seen["LC_ALL"] == "C"
    assert {name: seen.get(name) for name in ours} == ours
    assert seen["KERNEL_LAYOUT"] == "1"
    assert {name for name in seen if name.startswith("KBUILD_")} <= allowed
    assert seen["GIT_CEILING_DIRECTORIES"] == str(tmp_path.parent)  # for scripts/setlocalversion


def test_programs_speak_english_and_take_nothing_from_a_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steering = ["GIT_DIR", "LC_NUMERIC", "LANG", "MAKEFLAGS", "BASH_ENV", "PYTHONIOENCODING",
                "PYTHONOPTIMIZE", "TAR_OPTIONS", "PERL5OPT", "CDPATH"]  # fmt: skip
    for name in steering:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PYTHONPATH", "/kept")
    seen = dict(
        line.split("=", 1) for line in process.run(["env"]).stdout.splitlines() if "=" in line
    )
    assert not seen.keys() & set(steering)
    assert (seen["LC_ALL"], seen["PYTHONPATH"]) == ("C", "/kept")
    assert seen["PATH"] == os.environ["PATH"]


def unusable(at: Path) -> Iterator[tuple[list[str], str, str]]:
    """Commands that cannot be started, why, and what the hint has to say."""
    for name, text, mode in (
        ("plain", "echo on\n", 0o755),
        ("mode", "#!/bin/sh\necho on\n", 0o644),
        ("lost", "#!/no/such/interpreter\n", 0o755),
        ("crlf", "#!/bin/sh\r\necho on\r\n", 0o755),
        ("empty", "", 0o755),
    ):
        (at / name).write_text(text)
        (at / name).chmod(mode)
    (at / "loop").symlink_to("loop")
    (at / "file").write_text("")
    yield [f"{at}/plain"], "not an executable format", "#!/bin/sh"
    yield [f"{at}/empty"], "not an executable format", "#!/bin/sh"
    yield [f"{at}/lost"], "the interpreter it names is not installed", "first line"
    yield [f"{at}/crlf"], "the interpreter it names is not installed", "first line"
    yield [f"{at}/mode"], "Permission denied", "chmod"
    yield [str(at)], "Permission denied", "chmod"
    yield [f"{at}/file/x"], "Not a directory", ""
    yield [f"{at}/loop"], "Too many levels", ""
    yield ["true", "x" * (1 << 22)], "Argument list too long", "shorten its arguments"
    yield ["true", "a\0b"], "embedded null byte", ""
    yield ["tr\0ue"], "embedded null byte", ""
    yield ["no-such-program"], "is not installed", ""
    yield ["x" * 300], "File name too long", ""


def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    for command, why, hint in unusable(tmp_path):
        with pytest.raises(InfrastructureError) as told:
            process.run(command)
        assert why in told.value.message, command[0]
        assert hint in (told.value.hint or ""), command[0]
        with pytest.raises(InfrastructureError, match="rx: "):
            power.connect(CommandPower.model_construct(command=(command[0],)), "rx").status()
    with pytest.raises(InfrastructureError, match="no such directory"):
        process.run(["true"], cwd=tmp_path / "gone")


def test_a_users_own_command_has_a_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "on")
    script = tmp_path / "power"
    script.write_text('#!/bin/sh\necho "$GIT_DIR"\n')
    script.chmod(0o755)
    assert power.connect(CommandPower(command=(str(script),)), "rx").status()


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ("{at}/file", "{at}/file is not a directory"),
        ("{at}/file/below", "{at}/file is not a directory"),
        ("{at}/dangling", "{at}/dangling is a dangling link"),
        ("{at}/a blank", "do not support ' '"),
        ("{at}/a:colon", "do not support ':'"),
        ("{at}/a,comma", "do not support ','"),
        ("{at}/a%t", "do not support '%'"),
        ("$HOME/cache", "do not support '$'"),
        ("{at}/quo'te", 'do not support "\'"'),
        ("{at}/new\nline", "do not support '\\n'"),
        ("~nobody99/cache", "RECEIVE_BATCHING_CACHE: Could not determine home"),
    ],
)
def test_a_cache_that_kernels_cannot_be_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, told: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", chosen.format(at=tmp_path))
    with pytest.raises(ConfigurationError) as error:
        cache.root()
    assert told.format(at=tmp_path) in error.value.message
    assert kept(tmp_path) == ["dangling", "file"]


def test_caches_that_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen in ("relative/x", "~/in+home", "jörg"):
        monkeypatch.setenv("RECEIVE_BATCHING_CACHE", chosen)
        assert cache.root() == tmp_path / chosen.removeprefix("~/")
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache.root() == tmp_path / ".cache/receive-batching"
    monkeypatch.setenv("HOME", str(tmp_path / "John Smith"))
    with pytest.raises(ConfigurationError, match=r"the cache is .*John Smith.*support ' '"):
        cache.root()


def test_a_cache_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", "/proc/self/cache")
    with pytest.raises(InfrastructureError, match="cannot keep the source") as told:
        with cache.locked(cache.root() / "sources" / "x", what="the source"):
            pass
    assert "RECEIVE_BATCHING_CACHE" in (told.value.hint or "")


GATEWAYS = {
    # who starts programs beside process.py, and why
    "kernels/source.py": "tar reads what git writes",
    "kernels/layout.py": "runs in a kernel's build",
    "beds/access/control.py": "ends connections when all else has ended",
    "beds/access/ssh.py": "forgets a connection, whatever comes of it",
    "beds/labgrid/resource.py": "a program of its own",
    "beds/labgrid/client.py": "a guard that outlives the harness",
    "nic/datapath/build.py": "runs in an install",
    "selftest/strikes.py": "strikes a harness from outside",
    "selftest/faults.py": "strikes a harness from outside",
}


def test_programs_are_started_in_one_place_and_git_in_one() -> None:
    root = Path(harness.__file__).parent
    starters, callers = set(), set()
    for path in sorted({*root.rglob("*.py")} - {*(root / "agent").rglob("*.py")}):
        name = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "subprocess.run", "subprocess.Popen", "subprocess.check_output", "os.system",
            }:  # fmt: skip
                starters.add(name)
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "'git'":
                callers.add(name)
    assert starters == {*GATEWAYS, "base/process.py"}
    # Beside the gateway one message names the command.
    assert callers <= {"patches/git.py", "kernels/source.py"}


def test_a_refused_build_leaves_the_right_one_possible(linux: Path, own_cache: Path) -> None:
    """As typed: harness build --tree LINUX/net, and then --tree LINUX."""
    for tree, told in ((linux / "net", "not the top of a git tree"), (linux, "does not apply")):
        with Progress(bars=False) as progress, pytest.raises(HarnessError, match=told):
            kernels.Kernels(kernel=Kernel(), names=["0"], tree=tree).build(progress)
    assert len(kept(own_cache / "sources")) == 1


def test_a_linker_of_the_users_makes_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = toolchain.toolchain_of(Kernel())
    assert own.identity == own.compiler
    ld = tmp_path / "ld"
    ld.write_text("#!/bin/sh\necho GNU ld 99\n")
    ld.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    other = toolchain.toolchain_of(Kernel())
    assert other.compiler == own.compiler
    assert other.identity == f"{own.compiler}; {ld}: GNU ld 99"
    ld.unlink()
    ld.symlink_to("/usr/bin/ld")  # as ccache's directory has one of gcc
    assert toolchain.toolchain_of(Kernel()).identity == own.identity
