# SPDX-License-Identifier: MIT
"""Kernels of the commits of a git tree: a tree of three files with the targets of a kernel's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.base.errors import ConfigurationError, KernelError
from harness.base.progress import Progress
from harness.config import Kernel
from harness.kernels import Commit, Kernels, build, commits_between, variants
from harness.kernels.arch import X86
from harness.kernels.configuration import benchmark
from harness.kernels.source import Worktree, files_between
from harness.kernels.toolchain import Toolchain
from tests.unit.test_kernel_source import git

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not all(map(shutil.which, ("make", "gcc", "mksquashfs"))),
        reason="needs make, gcc and squashfs-tools",
    ),
]

MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
allnoconfig:
	cp $(KCONFIG_ALLCONFIG) $(O)/.config
bzImage: $(addprefix $(O)/,$(addsuffix .o,$(basename $(wildcard *.c))))
	mkdir -p $(O)/arch/x86/boot $(O)/arch/x86/include $(O)/include/config
	cat $^ > $(O)/vmlinux
	cp $(O)/vmlinux $(O)/arch/x86/boot/bzImage
	echo 6.12.0$(LOCALVERSION) > $(O)/include/config/kernel.release
$(O)/%.o: %.c
	@echo "  CC      $*.o"
	cp $< $@
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_FREE_BYTES", 0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A commit each that adds all, changes b, adds c, merges a side branch, takes c away."""
    tree = tmp_path / "tree"
    (tree / "arch/x86/include").mkdir(parents=True)
    (tree / "include").mkdir()
    for name in ("arch/x86/include/x.h", "include/y.h", "a.c", "b.c"):
        (tree / name).write_text(f"{name}\n")
    (tree / "Makefile").write_text(MAKEFILE)
    git(tree, "init", "-q", "-b", "main")
    commit(tree, "base")
    (tree / "b.c").write_text("changed\n")
    commit(tree, "net: change b")
    (tree / "c.c").write_text("c\n")
    commit(tree, "add c")
    git(tree, "checkout", "-q", "-b", "side", "HEAD~2")
    (tree / "side").write_text("side\n")
    commit(tree, "aside")
    git(tree, "checkout", "-q", "main")
    git(tree, "merge", "-q", "--no-edit", "side")
    (tree / "c.c").unlink()
    commit(tree, "remove c")
    return tree


def commit(tree: Path, subject: str) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "-q", "-m", subject)


def images(tree: Path, *names: str, among: Sequence[str] = ()) -> dict[str, build.Image]:
    compared = [Commit(name, f"title of {name}") for name in among or names]
    wanted = Kernels(kernel=Kernel(), names=names, tree=tree, commits=compared)
    with Progress(bars=False) as progress:
        made = wanted.build(progress)
    assert wanted.missing() == 0
    return {name: images[0] for name, images in made.items()}


def compiled(image: build.Image) -> list[str]:
    log = (image.directory / "build.log").read_text()
    return sorted(line.split()[1] for line in log.splitlines() if line.startswith("  CC "))


def state(tree: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_a_range_goes_along_first_parents(tree: Path) -> None:
    found = commits_between(tree, "main~4", "main")
    assert [c.subject for c in found] == [
        "base", "net: change b", "add c", "Merge branch 'side'", "remove c"
    ]  # fmt: skip
    assert all(len(c.name) == 12 for c in found)
    assert found[0] == Commit(git(tree, "rev-parse", "--short=12", "main~4").strip(), "base")
    assert [c.subject for c in commits_between(tree, "side", "main")][1:] == [
        "net: change b", "add c", "Merge branch 'side'", "remove c"
    ]  # fmt: skip


def test_a_kernel_is_another_where_another_range_decides_its_layout(tree: Path) -> None:
    base, changed, added, merged, _ = (c.name for c in commits_between(tree, "main~4", "main"))
    other, alone, same = (
        images(tree, base, among=[base, last])[base].directory for last in (changed, added, merged)
    )
    assert alone == same != other
    many = [f"drivers/{n:04d}.c" for n in range(9999)]
    with pytest.raises(ConfigurationError, match="9999 source files differ"):
        next(build.of_commits(tree, [], many, tree, benchmark(X86), Toolchain(compiler="gcc")))


def test_each_commit_is_built_from_what_the_last_one_left(tree: Path) -> None:
    before = state(tree)
    base, changed, added, _, removed = (c.name for c in commits_between(tree, "main~4", "main"))
    made = images(tree, base, removed, added, changed)
    texts = {name: image.kernel.read_text() for name, image in made.items()}
    assert texts == {
        base: "a.c\nb.c\n", changed: "a.c\nchanged\n", added: "a.c\nchanged\nc\n",
        removed: "a.c\nchanged\n",
    }  # fmt: skip
    assert [compiled(made[name]) for name in (base, removed, added, changed)] == [
        ["a.o", "b.o"], ["b.o"], ["c.o"], []
    ]  # fmt: skip
    assert all(f"-g{name}-" in image.release for name, image in made.items())
    assert len({image.release for image in made.values()}) == 4
    assert made[added].step == added
    assert state(tree) == before
    again = images(tree, added, among=[base, removed, added, changed])
    assert again[added] == made[added]


def test_a_repository_with_settings_of_its_own_is_only_read(tree: Path) -> None:
    git(tree, "sparse-checkout", "set", "include")
    git(tree, "config", "core.splitIndex", "true")
    before = state(tree)
    worktree = Worktree(tree)
    worktree.move_to("main~2")
    assert (worktree.directory / "c.c").read_text() == "c\n"
    assert (worktree.directory / "arch/x86/include/x.h").exists()
    assert worktree.move_to("main~3") == [worktree.directory / "c.c"]
    assert not (worktree.directory / "c.c").exists()
    assert state(tree) == before


def test_patches_are_applied_to_every_commit_and_nothing_to_the_repository(tree: Path) -> None:
    tree = tree.rename(tree.with_name('a "tree": with a colon'))
    before = state(tree)
    a_c = tree.parent / "a.patch"
    a_c.write_text(
        "From: x\n\ndiff --git a/a.c b/a.c\n--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-a.c\n+patched\n"
    )
    worktree = Worktree(tree)
    worktree.move_to("main~4", [a_c])
    assert (worktree.directory / "a.c").read_text() == "patched\n"
    assert worktree.move_to("main~3", [a_c]) == [worktree.directory / "b.c"]
    assert (worktree.directory / "a.c").read_text() == "patched\n"
    assert worktree.move_to("main~3") == [worktree.directory / "a.c"]
    assert (worktree.directory / "a.c").read_text() == "a.c\n"
    other = tree.parent / "other.patch"
    other.write_text(a_c.read_text().replace("-a.c", "-b.c"))
    with pytest.raises(KernelError, match=r"other\.patch does not apply: a\.c"):
        worktree.move_to("main", [other])
    assert (worktree.directory / "c.c").exists() is False
    assert state(tree) == before


def test_a_move_that_was_interrupted_is_put_right(tree: Path) -> None:
    worktree = Worktree(tree)
    worktree.move_to("main~4")
    (worktree.directory / "b.c").write_text("half of\n")
    (worktree.directory.parent / "index.lock").touch()
    worktree.move_to("main~4")
    assert (worktree.directory / "b.c").read_text() == "b.c\n"


def test_variants_are_commits_ranges_and_what_is_not_committed(tree: Path) -> None:
    names = [c.name for c in commits_between(tree, "main~4", "main")]
    found = variants(tree, "main~4..main~2, main, worktree")
    assert [c.name for c in found] == [*names[:3], names[-1], "worktree"]
    assert [c.subject for c in found[1:]] == [
        "net: change b", "add c", "remove c", f"uncommitted changes over {names[-1]}"
    ]  # fmt: skip
    for spec, told in (
        ("main", "names one variant: nothing to compare"),
        ("main,main", "names .* twice"),
        ("main,", "has no commit ''"),
        ("main,v9", "has no commit 'v9'"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            variants(tree, spec)


def test_uncommitted_changes_are_built_and_stay_uncommitted(tree: Path) -> None:
    [head] = [c.name for c in variants(tree, "main,worktree")][:1]
    (tree / "b.c").write_text("edited\n")
    (tree / "d.c").write_text("added\n")
    (tree / "unknown.c").write_text("git does not know it\n")
    git(tree, "add", "d.c")
    (tree / "d.c").write_text("added and edited\n")
    before = state(tree)
    assert files_between(tree, head, "worktree") == ["b.c", "d.c"]
    made = images(tree, head, "worktree")
    assert made[head].kernel.read_text() == "a.c\nchanged\n"
    assert made["worktree"].kernel.read_text() == "a.c\nedited\nadded and edited\n"
    assert made["worktree"].release.startswith("6.12.0-worktree-")
    assert made["worktree"].provenance()["subject"] == "title of worktree"
    (tree / "b.c").write_text("edited again\n")
    again = images(tree, "worktree", among=[head, "worktree"])["worktree"]
    assert again.kernel.read_text() == "a.c\nedited again\nadded and edited\n"
    (tree / "b.c").write_text("edited\n")
    assert images(tree, head, "worktree") == made
    assert {k: v for k, v in state(tree).items() if not k.endswith(".git/index")} == {
        k: v for k, v in before.items() if not k.endswith(".git/index")
    }


def test_uncommitted_changes_are_those_of_the_beginning(tree: Path, tmp_path: Path) -> None:
    (tree / "b.c").write_text("edited\n")
    of = (tree, [Commit("worktree")], ["b.c"], tmp_path, benchmark(X86), Toolchain(compiler="gcc"))
    [variant] = build.of_commits(*of)
    (tree / "b.c").write_text("edited while kernels are built\n")
    with variant.place() as (directory, _):
        assert (directory / "b.c").read_text() == "edited\n"
    [later] = build.of_commits(*of)
    assert later.content != variant.content


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("main", "main", "are the same commit"),
        ("main", "main~1", "main is no ancestor of main~1"),
        ("side", "main~2", "side is no ancestor"),
        ("v9", "main", "has no commit 'v9'"),
        ("--all", "main", "has no commit '--all'"),
    ],
)
def test_what_is_no_range(tree: Path, good: str, bad: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        commits_between(tree, good, bad)


def test_what_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no kernel tree"):
        commits_between(tmp_path / "no", "a", "b")
    with pytest.raises(ConfigurationError, match="is not the top of a git tree"):
        commits_between(tmp_path, "a", "b")


def test_the_tree_s_own_error_is_told(tree: Path) -> None:
    (tree / "Makefile").write_text(MAKEFILE + "\nbzImage: missing\n")
    commit(tree, "break it")
    with pytest.raises(KernelError, match="No rule to make target 'missing'"):
        images(tree, git(tree, "rev-parse", "--short=12", "HEAD").strip())
    assert subprocess.run(["git", "-C", str(tree), "diff", "--quiet"]).returncode == 0
