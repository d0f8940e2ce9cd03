# SPDX-License-Identifier: MIT
"""A source tree moved between steps: right content, and no file touched without need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness import patches
from harness.base.errors import ConfigurationError, HarnessError, InfrastructureError
from harness.kernels import build, configuration, source
from harness.kernels.source import Source, Tree, from_git, from_package, from_tarball
from harness.kernels.toolchain import Toolchain

pytestmark = pytest.mark.unit


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(tree), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def series(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A tree of three files, and patches: one edits, one adds a file, one removes one."""
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    for name in ("a", "b", "c"):
        (tree / name).write_text(f"{name}\n" * 9)
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\n")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "base")
    (tree / "a").write_text("a\n" * 8 + "changed\n")
    git(tree, "commit", "-qam", "edit")
    (tree / "new").write_text("new\n")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "add")
    git(tree, "rm", "-q", "c")
    git(tree, "commit", "-qm", "remove")
    git(tree, "format-patch", "-q", "-o", str(tmp_path / "patches"), "HEAD~3")
    git(tree, "reset", "-q", "--hard", "HEAD~3")
    return tree, sorted((tmp_path / "patches").iterdir())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))


def content(directory: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(directory.iterdir()) if p.is_file()}


def test_every_move_gives_what_git_gives(series: tuple[Path, list[Path]]) -> None:
    origin, patches = series
    tree = Tree.of(from_git(origin))
    base = content(tree.directory)
    for upto in (3, 1, 2, 0, 3, 0):
        tree.move_to(patches[:upto])
        here = content(tree.directory)
        assert ("new" in here) == (upto >= 2)
        assert ("c" in here) == (upto < 3)
        assert ("changed" in here["a"]) == (upto >= 1)
    assert content(tree.directory) == base


def test_it_is_seen_as_it_came_while_it_stays_at_its_step(series: tuple[Path, list[Path]]) -> None:
    origin, patches = series
    tree = Tree.of(from_git(origin))
    base = content(tree.directory)
    tree.move_to(patches)
    there = content(tree.directory)
    with tree.as_shipped() as shipped:
        assert content(shipped) == base
    assert content(tree.directory) == there
    assert not shipped.exists()


def test_only_what_differs_is_written(series: tuple[Path, list[Path]]) -> None:
    origin, patches = series
    tree = Tree.of(from_git(origin))
    tree.move_to(patches[:1])
    before = (tree.directory / "a").stat().st_mtime_ns
    assert tree.move_to(patches[:2]) == [tree.directory / "new"]
    assert (tree.directory / "a").stat().st_mtime_ns == before
    assert content(origin)["a"] == "a\n" * 9


def test_a_patch_that_does_not_apply_leaves_the_tree_as_it_was(
    series: tuple[Path, list[Path]],
) -> None:
    origin, patches = series
    tree = Tree.of(from_git(origin))
    tree.move_to(patches[:1])
    before = content(tree.directory)
    broken = patches[0].with_name("broken.patch")
    broken.write_text(patches[0].read_text().replace(" a\n", " z\n"))
    with pytest.raises(HarnessError):
        tree.move_to([broken])
    assert content(tree.directory) == before


def test_a_tarball_is_the_same_source_under_any_name(
    tmp_path: Path, series: tuple[Path, list[Path]]
) -> None:
    origin, _ = series
    git(origin, "archive", "--prefix=linux/", "-o", str(tmp_path / "x.tar"), "HEAD")
    (tmp_path / "y.tar").write_bytes((tmp_path / "x.tar").read_bytes())
    one, other = from_tarball(tmp_path / "x.tar"), from_tarball(tmp_path / "y.tar")
    assert one.identity == other.identity
    assert content(Tree.of(one).directory) == content(Tree.of(from_git(origin)).directory)


def test_sources_that_are_not_there(tmp_path: Path, series: tuple[Path, list[Path]]) -> None:
    with pytest.raises(ConfigurationError, match="no kernel"):
        from_tarball(tmp_path / "no")
    with pytest.raises(ConfigurationError, match="no kernel"):
        from_git(tmp_path / "no")
    with pytest.raises(ConfigurationError, match="no commit 'v9'"):
        from_git(series[0], "v9")


def test_an_option_the_configuration_lost_is_named() -> None:
    config = configuration.FRAGMENT.read_text().replace("CONFIG_JUMP_LABEL=y\n", "")
    with pytest.raises(HarnessError, match="CONFIG_JUMP_LABEL=y"):
        configuration.benchmark().check(config)


def test_a_better_changelog_is_no_other_kernel(series: tuple[Path, list[Path]]) -> None:
    _, patches = series
    again = patches[0].with_name("again.patch")
    again.write_text(patches[0].read_text().replace("Subject: [PATCH 1/3] edit", "Subject: better"))
    assert build._diff(again) == build._diff(patches[0]) != build._diff(patches[1])
    again.write_text(again.read_text().rpartition("\n-- \n")[0])  # the mail's signature is optional
    assert build._diff(again) == build._diff(patches[0])


@pytest.mark.parametrize(
    ("package", "offered", "hint"),
    [
        ("linux-source-0.1", "linux-source-0.1", "apt-get install linux-source-0.1"),
        # apt takes a name that no package has for a pattern, and would install another kernel's.
        ("linux-source-0.1", "linux-source-0.12", "name a git tree with --tree"),
        ("linux-source-0.1", "", "name a git tree with --tree"),
        ("linux-source-6.1", "linux-source-6.12", "--include=linux-source-6.1 "),
    ],
)
def test_a_package_of_the_source_that_is_not_there(
    package: str, offered: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "apt-cache"
    program.write_text(f"#!/bin/sh\n[ -z '{offered}' ] || echo 'Package: {offered}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(source, "Path", lambda *parts: tmp_path.joinpath(*parts[1:]))
    with pytest.raises(InfrastructureError, match=f"{package} is not installed") as caught:
        from_package(package)
    assert hint in str(caught.value.hint)
    assert ("none of this system's" in caught.value.message) == (offered != package)
    assert ("apt-get install" in str(caught.value.hint)) == (offered == package)


@pytest.mark.parametrize("step", ["0+11", "8+11", "11"])
def test_kernels_that_are_compared_count_the_files_of_all_their_patches(step: str) -> None:
    linux = Source(kind="tarball", location=Path("linux.tar"), ref="", identity="linux")
    shipped = patches.series("linux-6.12")
    config, toolchain = configuration.benchmark(), Toolchain(compiler="gcc")
    [alone] = build.of_steps(linux, shipped, ["0"], config, toolchain, ())
    beside, other = build.of_steps(linux, shipped, ["0", step], config, toolchain, ())
    assert (alone.step, beside.step, other.step) == ("0", "0", step)
    assert set(beside.touched) == set(other.touched) > set(alone.touched)
    assert "net/core/skbuff.c" in beside.touched
    assert beside.content != alone.content
