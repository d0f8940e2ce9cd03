# SPDX-License-Identifier: MIT
"""The series on small but real trees, by real git; and the form of those that ship."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from harness import patches
from harness.base.errors import ConfigurationError, InfrastructureError, KernelError
from harness.plan import ALL_STEPS, STAIRS

pytestmark = pytest.mark.unit

TITLES = (
    "net: core: trivial netif_receive_skb_list() entry point",
    "sfc: batch up RX delivery on EF10",
    "net: core: unwrap skb list receive slightly further",
    "net: core: Another step of skb receive list processing",
    "net: core: another layer of lists, around PF_MEMALLOC skb handling",
    "net: core: propagate SKB lists through packet_type lookup",
    "net: ipv4: listified version of ip_rcv",
    "net: ipv4: listify ip_rcv_finish",
)
MAKEFILE = "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 7\nEXTRAVERSION =\n"
NAMES = ["0000-prelude-out.patch", "0001-entry.patch", "0002-driver.patch"]


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def numbered(*changes: tuple[int, str]) -> str:
    lines = [f"line {number}" for number in range(1, 61)]
    for number, text in changes:
        lines[number - 1] = text
    return "\n".join(lines) + "\n"


STATES = [
    {"net/core.c": numbered(), "drivers/rx.c": numbered()},
    {"net/core.c": numbered((5, "single"), (50, "prelude"))},
    {"net/core.c": numbered((5, "list"), (50, "prelude")), "net/new.c": "new\n"},
    {"drivers/rx.c": numbered((30, "batch"), (55, "flush"))},
]
SUBJECTS = ["net: take lists out", "net: core: entry", "drivers: batch"]


def fill(tree: Path, state: dict[str, str]) -> None:
    for name, text in state.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A ``kernel-patches`` with a prelude and two steps for 6.12, made by ``git format-patch``."""
    tree, home = tmp_path / "author", tmp_path / "kernel-patches"
    series = home / "linux-6.12"
    tree.mkdir()
    series.mkdir(parents=True)
    git(tree, "init", "-q")
    for state, subject in zip(STATES, ["base", *SUBJECTS], strict=True):
        fill(tree, state)
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-s", "-m", f"{subject}\n\nBecause of {subject}.")
    made = git(tree, "format-patch", "-o", str(series), "HEAD~3").splitlines()
    for path, name in zip(made, NAMES, strict=True):
        Path(path).rename(series / name)
    (series / "series").write_text(
        "# The prelude.\n0000-prelude-out.patch\n\n" + "\n".join(NAMES[1:])
    )
    return home


@pytest.fixture
def series(home: Path) -> patches.Series:
    return patches.series("linux-6.12", home)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    tree = tmp_path / "linux"
    fill(tree, {"Makefile": MAKEFILE, "unrelated.c": "kept\n"} | STATES[0])
    return tree


@pytest.fixture
def tree(plain: Path) -> Path:
    git(plain, "init", "-q", "-b", "main")
    git(plain, "add", ".")
    git(plain, "commit", "-q", "-m", "base")
    return plain


def snapshot(tree: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in tree.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refs(tree: Path) -> str:
    return git(tree, "for-each-ref") + git(tree, "worktree", "list") + git(tree, "status", "-s")


def states(report: patches.Report) -> list[str]:
    return [outcome.state for outcome in report.outcomes]


def test_a_series_is_read(home: Path, series: patches.Series) -> None:
    assert [each.base for each in patches.list_series(home)] == ["linux-6.12"]
    assert series.steps == ("0", "1", "2")
    assert [path.name for path in series.patches_for("1")] == NAMES[:2]
    assert [patch.subject for patch in series.patches] == SUBJECTS
    assert series.patches[1].changelog.startswith("Because of net: core: entry.")
    assert series.patches[1].author == "T <t@example.org>"
    assert set(series.patches[1].files) == {"net/core.c", "net/new.c"}
    with pytest.raises(ConfigurationError, match="no step 9; expected 0, 1, 2"):
        series.upto("9")


def test_a_folded_subject_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "0001-x.patch"
    path.write_text(
        "From: A <a@b>\nSubject: [PATCH v2 1/8] net: core:\n folded title\n\nWhy.\n---\n"
    )
    read = patches.Patch.read(path)
    assert (read.subject, read.changelog) == ("net: core: folded title", "Why.")


def test_a_series_that_names_a_missing_file(home: Path) -> None:
    with (home / "linux-6.12/series").open("a") as file:
        file.write("\n0003-lost.patch\n")
    with pytest.raises(InfrastructureError, match=r"0003-lost\.patch: No such file"):
        patches.list_series(home)


def test_the_version_picks_the_series(home: Path, plain: Path) -> None:
    assert patches.base_of(plain) == ("linux-6.12", "6.12.7")
    assert patches.series_for(plain, home=home).base == "linux-6.12"
    (plain / "Makefile").write_text(MAKEFILE.replace("12", "6"))
    with pytest.raises(patches.UnknownBaseError, match=r"is Linux 6\.6\.7, .*expected linux-6\.12"):
        patches.series_for(plain, home=home)
    assert patches.series_for(plain, "linux-6.12", home).base == "linux-6.12"
    with pytest.raises(patches.UnknownBaseError, match=r"no series linux-9\.9; expected"):
        patches.series_for(plain, "linux-9.9", home)


@pytest.mark.parametrize("content", [None, "all:\n"])
def test_what_is_no_kernel_tree(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "Makefile").write_text(content)
    with pytest.raises(ConfigurationError, match="is not a kernel tree"):
        patches.base_of(tmp_path)


@pytest.mark.parametrize("kind", ["plain", "tree"])
def test_check_touches_nothing(
    request: pytest.FixtureRequest, series: patches.Series, kind: str
) -> None:
    tree = request.getfixturevalue(kind)
    before = snapshot(tree)
    report = patches.check(tree, series)
    report.require()
    assert states(report) == ["applies"] * 3
    assert report.release == "6.12.7"
    assert states(patches.check(tree, series, "0")) == ["applies"]
    assert snapshot(tree) == before


def test_check_of_a_git_tree_looks_at_its_last_commit(tree: Path, series: patches.Series) -> None:
    (tree / "net/core.c").write_text("ruined\n")
    assert patches.check(tree, series).error is None


def test_check_inside_a_foreign_repository(
    tmp_path: Path, plain: Path, series: patches.Series
) -> None:
    git(tmp_path, "init", "-q")
    assert states(patches.check(plain, series)) == ["applies"] * 3
    patches.apply_files(plain, series.patches_for("2"))
    assert (plain / "net/new.c").read_text() == "new\n"


@pytest.mark.parametrize("kind", ["plain", "tree"])
def test_a_hunk_that_fails_is_named(
    request: pytest.FixtureRequest, series: patches.Series, kind: str
) -> None:
    tree = request.getfixturevalue(kind)
    fill(tree, {"drivers/rx.c": numbered((54, "other"))})
    if kind == "tree":
        git(tree, "commit", "-qam", "other")
    report = patches.check(tree, series)
    assert states(report) == ["applies", "applies", "fails"]
    with pytest.raises(KernelError, match=r"0002-driver\.patch does not apply: drivers/rx\.c, hunk "
                       r"2: @@ -52,") as caught:  # fmt: skip
        report.require()
    assert isinstance(caught.value, patches.HunkError)
    assert (caught.value.file, caught.value.hunk) == ("drivers/rx.c", 2)


def test_a_missing_file_is_named(plain: Path, series: patches.Series) -> None:
    (plain / "net/core.c").unlink()
    report = patches.check(plain, series)
    assert states(report) == ["fails", "not tried", "not tried"]
    assert "net/core.c: No such file" in str(report.error)


@pytest.mark.parametrize("step", ["0", "1", "2"])
@pytest.mark.parametrize("kind", ["plain", "tree"])
def test_an_already_patched_tree(
    request: pytest.FixtureRequest, series: patches.Series, kind: str, step: str
) -> None:
    tree = request.getfixturevalue(kind)
    patches.apply_files(tree, series.patches_for(step))
    if kind == "tree":
        git(tree, "add", ".")
        git(tree, "commit", "-qm", "all")
    report = patches.check(tree, series)
    assert isinstance(report.error, patches.AlreadyPatchedError)
    assert report.error.step == int(step)
    assert f"up to step {step}" in report.error.message
    assert states(report) == (["present"] * 3)[: int(step) + 1] + ["not tried"] * (2 - int(step))


def test_an_already_patched_tree_with_changes_on_top(tree: Path, series: patches.Series) -> None:
    git(tree, "am", "-q", *map(str, series.patches_for("1")))
    fill(tree, {"net/core.c": numbered((5, "mine"), (50, "prelude")), "net/new.c": "mine\n"})
    git(tree, "commit", "-qam", "mine")
    error = patches.check(tree, series).error
    assert isinstance(error, patches.AlreadyPatchedError)
    assert error.step == 1


def test_apply_makes_a_worktree(
    tree: Path, series: patches.Series, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What a user's own configuration and surroundings may hold.
    config = tmp_path / "gitconfig"
    settings = ["commit.gpgSign", "user.useConfigOnly", "am.threeWay", "am.keepcr"]
    for setting in settings:
        git(tree, "config", "--file", str(config), setting, "true")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    before = snapshot(tree)
    applied = patches.apply(tree, "1", series=series)
    monkeypatch.undo()
    assert applied == patches.Applied(tree.parent / "linux-step1", "receive-batching/step1", 2)
    assert git(applied.directory, "log", "--format=%s").splitlines() == [*SUBJECTS[1::-1], "base"]
    assert git(applied.directory, "status", "--porcelain") == ""
    assert (applied.directory / "net/new.c").read_text() == "new\n"
    assert snapshot(tree) == before
    assert git(tree, "branch", "--show-current") == "main"


def test_the_same_patches_make_the_same_commits(
    tree: Path, series: patches.Series, tmp_path: Path
) -> None:
    heads = set()
    for number in range(2):  # in different seconds
        target = tmp_path / f"w{number}"
        patches.apply(tree, "2", series=series, worktree=target)
        heads.add(git(target, "rev-parse", "HEAD"))
        git(tree, "worktree", "remove", str(target))
        git(tree, "branch", "-qD", "receive-batching/step2")
        time.sleep(1.1 * (1 - number))
    assert len(heads) == 1


def test_apply_refuses_what_is_taken(tree: Path, series: patches.Series, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigurationError, match="taken exists already"):
        patches.apply(tree, "1", series=series, worktree=tmp_path / "taken")
    patches.apply(tree, "1", series=series)
    with pytest.raises(ConfigurationError, match="has a branch receive-batching/step1 already"):
        patches.apply(tree, "1", series=series, worktree=tmp_path / "free")


def test_apply_in_place(tree: Path, series: patches.Series) -> None:
    applied = patches.apply(tree, "2", series=series, in_place=True)
    assert applied == patches.Applied(tree, "main", 3)
    assert git(tree, "log", "--format=%s").splitlines() == [*SUBJECTS[::-1], "base"]
    with pytest.raises(patches.AlreadyPatchedError, match="up to step 2"):
        patches.apply(tree, "2", series=series, in_place=True)


@pytest.mark.parametrize("staged", [True, False])
def test_apply_in_place_refuses_a_dirty_tree(
    tree: Path, series: patches.Series, staged: bool
) -> None:
    (tree / "unrelated.c").write_text("mine\n")
    if staged:
        git(tree, "add", ".")
    with pytest.raises(ConfigurationError, match=r"uncommitted changes: unrelated\.c") as caught:
        patches.apply(tree, "1", series=series, in_place=True)
    assert "--in-place" in (caught.value.hint or "")
    assert (tree / "unrelated.c").read_text() == "mine\n"
    assert patches.apply(tree, "1", series=series).branch == "receive-batching/step1"


def test_apply_in_place_refuses_an_unfinished_operation(tree: Path, series: patches.Series) -> None:
    (tree / ".git/MERGE_HEAD").write_text(git(tree, "rev-parse", "HEAD"))
    with pytest.raises(ConfigurationError, match="an unfinished git merge"):
        patches.apply(tree, "1", series=series, in_place=True)


def test_apply_refuses_a_tree_without_git(plain: Path, series: patches.Series) -> None:
    with pytest.raises(ConfigurationError, match="not the top of a git tree"):
        patches.apply(plain, "1", series=series)


def test_a_git_tree_without_a_commit(plain: Path, series: patches.Series) -> None:
    git(plain, "init", "-q")
    with pytest.raises(ConfigurationError, match="without a commit"):
        patches.apply(plain, "1", series=series)


def test_an_untracked_file_in_the_way_leaves_all_as_it_was(
    tree: Path, series: patches.Series
) -> None:
    (tree / "net/new.c").write_text("precious\n")
    before, head = snapshot(tree), refs(tree)
    with pytest.raises(patches.HunkError, match=r"0001-entry\.patch .*net/new\.c: already exists"):
        patches.apply(tree, "2", series=series, in_place=True)
    assert refs(tree) == head
    assert snapshot(tree).keys() == before.keys()
    assert (tree / "net/new.c").read_text() == "precious\n"
    assert not (tree / ".git/rebase-apply").exists()


def test_a_failure_in_the_worktree_leaves_nothing(
    tree: Path, series: patches.Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, head = snapshot(tree), refs(tree)
    # A filter that git only meets when it writes files of the new worktree.
    git(tree, "config", "filter.broken.smudge", "false")
    git(tree, "config", "filter.broken.required", "true")
    (tree / ".git/info/attributes").write_text("drivers/rx.c filter=broken\n")
    fits = patches.Report(
        tree, "6.12.7", series, (patches.Outcome(series.patches[0], "applies"),), None
    )
    monkeypatch.setattr(patches.tree, "check", lambda *_: fits)
    with pytest.raises(InfrastructureError, match="worktree add"):
        patches.apply(tree, "1", series=series)
    (tree / ".git/info/attributes").unlink()
    assert (refs(tree), snapshot(tree)) == (head, before)
    assert not (tree.parent / "linux-step1").exists()
    assert list((tree / ".git").rglob("*.lock")) == []


@pytest.mark.parametrize("in_place", [True, False])
def test_an_interrupted_apply_leaves_nothing(tree: Path, home: Path, in_place: bool) -> None:
    head, before = refs(tree), snapshot(tree)
    # git am in slow motion: a filter that waits while the second patch is written.
    git(tree, "config", "filter.slow.smudge", f"sh -c 'touch {home}/reached; sleep 120; cat'")
    (tree / ".git/info/attributes").write_text("net/new.c filter=slow\n")
    script = textwrap.dedent(f"""
        import signal
        from pathlib import Path
        from harness import patches
        series = patches.series("linux-6.12", Path({str(home)!r}))
        try:
            patches.apply(Path({str(tree)!r}), "2", series=series, in_place={in_place})
        except KeyboardInterrupt:
            raise SystemExit(130)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (home / "reached").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (home / "reached").exists()
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(timeout=60) == 130
    finally:
        child.kill()
    (tree / ".git/info/attributes").unlink()
    assert refs(tree) == head
    assert {name: content for name, (content, _) in snapshot(tree).items()} == {
        name: content for name, (content, _) in before.items()
    }
    assert not (tree.parent / "linux-step2").exists()
    assert not (tree / ".git/rebase-apply").exists()


def test_files_walk_through_the_steps_and_back(plain: Path, series: patches.Series) -> None:
    before = snapshot(plain)
    patches.apply_files(plain, series.patches_for("1"))
    middle = snapshot(plain)
    patches.apply_files(plain, series.patches_for("2")[2:])
    after = snapshot(plain)
    changed = {Path(name).name for name in after if after[name] != middle.get(name)}
    assert changed == {"rx.c"}
    patches.apply_files(plain, series.patches_for("2"), reverse=True)
    assert {name: content for name, (content, _) in snapshot(plain).items()} == {
        name: content for name, (content, _) in before.items()
    }


def test_files_are_as_before_when_a_patch_fails(plain: Path, series: patches.Series) -> None:
    fill(plain, {"drivers/rx.c": "other\n"})
    before = {name: content for name, (content, _) in snapshot(plain).items()}
    with pytest.raises(patches.HunkError, match="0002-driver"):
        patches.apply_files(plain, series.patches_for("2"))
    assert {name: content for name, (content, _) in snapshot(plain).items()} == before


def test_a_series_is_carried_to_another_version(
    series: patches.Series, tree: Path, tmp_path: Path
) -> None:
    newer = {"Makefile": MAKEFILE.replace("12", "18"), "drivers/rx.c": numbered((30, "moved"))}
    fill(tree, newer)
    git(tree, "commit", "-qam", "a later version")
    before = git(tree, "rev-parse", "HEAD"), git(tree, "status", "-s")
    worktree, out = tmp_path / "linux-rebase", tmp_path / "linux-6.18"
    for _ in range(2):  # the second is told the same
        with pytest.raises(KernelError) as stopped:
            patches.rebase(series, tree, worktree=None, out=out)
        assert "git am --continue" in str(stopped.value.hint)
    assert not out.exists()
    fill(worktree, STATES[3])
    git(worktree, "add", ".")
    git(worktree, "am", "--continue")
    done = patches.rebase(series, tree, worktree=None, out=out)
    assert (done.directory, done.worktree, done.patches) == (out, worktree, 3)
    assert (git(tree, "rev-parse", "HEAD"), git(tree, "status", "-s")) == before
    made = patches.series("linux-6.18", tmp_path)
    assert [patch.subject for patch in made.patches] == SUBJECTS
    assert states(patches.check(tree, made)) == ["applies"] * 3
    with pytest.raises(ConfigurationError, match="exists already"):
        patches.rebase(series, tree, worktree=None, out=out)


def test_a_rebase_that_lost_a_patch(series: patches.Series, tree: Path, tmp_path: Path) -> None:
    fill(tree, {"drivers/rx.c": numbered((30, "moved"))})
    git(tree, "commit", "-qam", "a later version")
    worktree = tmp_path / "elsewhere"
    with pytest.raises(KernelError):
        patches.rebase(series, tree, worktree=worktree, out=tmp_path / "out")
    git(worktree, "am", "--skip")
    with pytest.raises(KernelError, match="2 commits, the series 3 patches"):
        patches.rebase(series, tree, worktree=worktree, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


SHIPPED = patches.list_series()
NEWEST = SHIPPED[-1].base


@pytest.mark.parametrize("base", ["linux-6.1", "linux-6.12"])
def test_optional_steps(base: str) -> None:
    series = patches.series(base)
    assert series.optional_steps[:3] == ("2m", "2v", "9")
    assert series.upto("shipped") == ()
    known = {*series.steps, *series.optional_steps}
    assert set(ALL_STEPS) - known == (set() if base == NEWEST else {*STAIRS} - known)
    upto = {step: [patch.name for patch in series.upto(step)] for step in ("2", "2m", "8", "9")}
    assert upto["2m"] == [*upto["2"], "2m"]
    assert upto["9"] == [*upto["8"], "9"]
    assert "interrupts are moderated" in series.upto("2m")[-1].subject
    with pytest.raises(ConfigurationError, match=r"has no step 3m; expected 0, .*2m, 2v, 9"):
        series.upto("3m")


def test_sums_and_stairs() -> None:
    series = patches.series(NEWEST)

    def names(step: str) -> list[str]:
        return [patch.name for patch in series.upto(step)]

    assert names("0+11") == ["0", "11"]
    assert names("8+2m+11") == [*names("8"), "2m", "11"]
    assert names("8+11+10") == names("11") == [*names("10"), "11"] == [*names("8"), "10", "11"]
    assert names("8+9") == names("9")
    assert names(STAIRS[-1]) == [*names("8"), *STAIRS]
    for wrong in ("8+7", "10+11", "8+", "+11", "8+14", "shipped+11", "0+0"):
        with pytest.raises(ConfigurationError, match=r"has no step .*such as 8\+11"):
            series.upto(wrong)


def test_a_series_ships() -> None:
    assert {"linux-6.1", "linux-6.12"} <= {series.base for series in SHIPPED}


@pytest.mark.parametrize("series", SHIPPED, ids=[series.base for series in SHIPPED])
def test_the_form_of_a_series_that_ships(series: patches.Series) -> None:
    own = [patch for patch in series.patches if patch.step > 0]
    assert tuple(patch.subject for patch in own) == TITLES
    assert [patch.step for patch in own] == list(range(1, 9))
    assert [patch.step for patch in series.patches] == sorted(
        patch.step for patch in series.patches
    )
    listed = {patch.path.name for patch in (*series.patches, *series.optional)}
    assert listed == {
        path.name for path in series.directory.glob("0*.patch") if "cover" not in path.name
    }
    for patch in (*series.patches, *series.optional):
        assert re.search(r"^Signed-off-by: .+ <.+@.+>$", patch.changelog, re.MULTILINE), patch.path
        reason = re.sub(r"^[A-Z][a-z-]+-by: .*$", "", patch.changelog, flags=re.MULTILINE)
        assert len(reason.split()) >= 20, f"{patch.path} has no reason in its changelog"
        assert patch.files, patch.path
