# SPDX-License-Identifier: MIT
"""A mailed series: which mails are its patches, what mailers do to them, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import os
import quopri
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import kernels
from harness.base.errors import ConfigurationError, HarnessError, KernelError
from harness.base.progress import Progress
from harness.commands import bisect as bisect_command
from harness.config import Kernel
from harness.kernels import build
from harness.kernels.source import objects_of
from harness.patches import mails
from tests.unit.test_bisect import Booting
from tests.unit.test_kernel_commits import MAKEFILE, state
from tests.unit.test_kernel_source import git
from tests.unit.test_variants import commanded

pytestmark = pytest.mark.unit

SUBJECTS = ("net: core: change a line", "sfc: größere Änderung, second", "net: add a file")


@dataclass(frozen=True)
class Kit:
    """A kernel tree, and three patches for it in the form of a mailer's input."""

    tree: Path
    base: str
    trees: tuple[str, ...]
    """The tree after each patch."""
    bodies: tuple[str, ...]


def lines(*changed: int) -> str:
    return "".join(
        f"line {n}{' — changed' * (n in changed)}\n" + "\n" * (n % 7 == 0) for n in range(1, 41)
    )


def commit(tree: Path, subject: str) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "-q", "-m", subject, "-m", "From the changelog, at 10:00 or so.\n\n>From")


def make_kit(home: Path) -> Kit:
    tree, series = home / "tree", home / "series"
    (tree / "net").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    for name in ("dev.c", "rx.c", "crlf.c"):
        (tree / "net" / name).write_text(lines())
    (tree / "net/crlf.c").write_bytes(lines().replace("\n", "\r\n").encode())
    git(tree, "init", "-q", "-b", "main")
    commit(tree, "base of all")
    git(home, "clone", "-q", str(tree), str(series))
    (series / "net/dev.c").write_text(lines(3))
    commit(series, SUBJECTS[0])
    (series / "net/dev.c").write_text(lines(3, 4, 20))
    (series / "net/rx.c").write_text(lines(5, 30))
    commit(series, SUBJECTS[1])
    (series / "net/new.c").write_text("/* Ä file: 漢字 = \t */\nint x = 1;\n")
    commit(series, SUBJECTS[2])
    base = git(tree, "rev-parse", "HEAD").strip()
    named = [f"HEAD~{n}" for n in (2, 1, 0)]
    diffs = [git(series, "format-patch", "--stdout", "-1", name) for name in named]
    bodies = tuple(text.partition("\n\n")[2] for text in diffs)
    trees = tuple(git(series, "rev-parse", f"{name}^{{tree}}").strip() for name in named)
    return Kit(tree, base, trees, bodies)


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_FREE_BYTES", 0)
    return make_kit(tmp_path)


@dataclass(frozen=True)
class Mail:
    """A mail as some mailer writes it."""

    subject: str
    body: str
    encoding: str = "8bit"
    charset: str = "UTF-8"
    crlf: bool = False
    id: str = ""
    reply_to: str = ""
    params: str = ""
    sender: str = "Änne Müller <anne@example.org>"

    def raw(self, *, mbox: bool = True) -> bytes:
        body = self.body.encode(self.charset)
        if self.encoding == "base64":
            body = base64.encodebytes(body.replace(b"\n", b"\r\n") if self.crlf else body)
        elif self.encoding == "quoted-printable":
            body = quopri.encodestring(body)
        head = [
            f"From: {self.sender}",
            f"Subject: {self.subject}",
            "Date: Mon, 30 Nov 2026 10:00:00 +0100",
            f"Message-ID: <{self.id or abs(hash(self))}@example.org>",
            *([f"In-Reply-To: <{self.reply_to}@example.org>"] if self.reply_to else []),
            "MIME-Version: 1.0",
            f"Content-Type: text/plain; charset={self.charset}{self.params}",
            f"Content-Transfer-Encoding: {self.encoding}",
        ]
        text = "\n".join(head).encode() + b"\n\n" + body
        start = b"From anne@example.org Mon Nov 30 10:00:00 2026\n" if mbox else b""
        if self.crlf:
            text = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return start + text + b"\n\n" * mbox


def series(
    kit: Kit, prefix: str = "PATCH net-next", *, of: Sequence[int] = (1, 2, 3), base: str = ""
) -> list[Mail]:
    """Cover letter and patches."""
    stated = f"\nbase-commit: {base or kit.base}\n"
    cover = Mail(f"[{prefix} 0/3] What it is", f"Hello\n\n net/dev.c | 2 +-\n{stated}", id="0")
    return [
        cover,
        *(
            Mail(f"[{prefix} {n}/3] {SUBJECTS[n - 1]}", kit.bodies[n - 1], reply_to="0", id=str(n))
            for n in of
        ),
    ]


def written(path: Path, mails: Sequence[Mail]) -> str:
    path.write_bytes(b"".join(mail.raw() for mail in mails))
    return str(path)


def applied(kit: Kit, name: str, base: str | None = None) -> kernels.Applied:
    return kernels.mailed(kit.tree, name, base)


def trees_of(found: kernels.Applied) -> tuple[str, ...]:
    return tuple(commit.tree for commit in found.commits[1:])


def test_a_series_is_its_patches_in_order(kit: Kit, tmp_path: Path) -> None:
    before = state(kit.tree)
    cover, one, two, three = series(kit)
    found = applied(kit, written(tmp_path / "mbox", [three, cover, two, one]))
    assert [(one.name, one.subject) for one in found.commits[1:]] == [
        (f"p{n}", subject) for n, subject in enumerate(SUBJECTS, 1)
    ]
    assert found.commits[0].subject == f"{kit.base[:12]} base of all"
    assert trees_of(found) == kit.trees
    assert found.base == kit.base
    assert state(kit.tree) == before
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("form", ["--stdout", "directory", "maildir", "gz", "attached", "-k", "-N"])
def test_what_git_and_archives_write(kit: Kit, tmp_path: Path, form: str) -> None:
    made, out = tmp_path / "series", tmp_path / "out"
    options = ["format-patch", f"--base={kit.base}", "HEAD~3"]
    if form in ("--stdout", "gz", "-k", "-N"):
        more = ["--cover-letter"] if form in ("--stdout", "gz") else [form]
        text = git(made, *options, "--stdout", *more).encode()
        out.write_bytes(gzip.compress(text) if form == "gz" else text)
    elif form == "maildir":
        for name in ("new", "cur", "tmp"):
            (out / name).mkdir(parents=True)
        for n, mail in enumerate(series(kit)):
            (out / ("new", "cur")[n % 2] / f"{9 - n}.host").write_bytes(mail.raw(mbox=False))
    else:
        more = ["--attach"] if form == "attached" else ["--cover-letter", "-N"]
        git(made, *options, "-o", str(out), *more)
    found = applied(kit, str(out))
    assert trees_of(found) == kit.trees
    assert [one.subject for one in found.commits[1:]] == [*SUBJECTS]


ENCODINGS = ("8bit", "base64", "quoted-printable")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(range(7)),
    encodings=st.lists(st.sampled_from(ENCODINGS), min_size=4, max_size=4),
    crlf=st.lists(st.booleans(), min_size=4, max_size=4),
    encoded_subject=st.booleans(),
)
def test_order_and_encoding_do_not_matter(
    kit: Kit,
    order: list[int],
    encodings: list[str],
    crlf: list[bool],
    encoded_subject: bool,
) -> None:
    own = [
        replace(mail, encoding=encoding, crlf=ends)
        for mail, encoding, ends in zip(series(kit), encodings, crlf, strict=True)
    ]
    if encoded_subject:
        coded = base64.b64encode(own[2].subject.encode()).decode()
        own[2] = replace(own[2], subject=f"=?UTF-8?B?{coded}?=")
    quoted = "".join(f"> {line}\n" for line in kit.bodies[0].splitlines())
    others = [
        Mail("Re: [PATCH net-next 1/3] " + SUBJECTS[0], quoted + "\nNice.\n", reply_to="1"),
        Mail("RE: [PATCH net-next 2/3] x", "Or rather\n\n" + kit.bodies[2], reply_to="2"),
        Mail("[syzbot] a report", "nothing\n"),
    ]
    everything = [*own, *others]
    path = kit.tree.parent / "mbox"
    read = mails.read(Path(written(path, [everything[n] for n in order])))
    assert [one.subject for [one] in read.patches] == [*SUBJECTS]
    found = applied(kit, str(path))
    assert trees_of(found) == kit.trees
    assert sum("with a diff of its own" in line for line in found.remarks) == 1


def test_the_base_is_named_by_the_series_else_by_the_user_else_head(
    kit: Kit, tmp_path: Path
) -> None:
    (kit.tree / "net/dev.c").write_text("another file\n")
    commit(kit.tree, "a change after the base")
    stated = written(tmp_path / "stated", series(kit))
    found = applied(kit, stated)
    assert (found.base, trees_of(found)) == (kit.base, kit.trees)
    assert found.remarks[-1].endswith("(base of all), named by the series")
    unknown = written(tmp_path / "unknown", series(kit, base="1234567890ab" * 3 + "1234"))
    with pytest.raises(KernelError) as caught:
        applied(kit, unknown)
    assert "patch 1/3" in caught.value.message
    assert "net/dev.c, hunk 1: @@ -1,6 +1,6 @@" in caught.value.message
    assert "it is for commit 1234567890ab, which" in caught.value.message
    assert "git fetch" in str(caught.value.hint)
    assert "--base" in str(caught.value.hint)
    found = applied(kit, unknown, "HEAD~1")
    assert (found.base, trees_of(found)) == (kit.base, kit.trees)
    assert any("does not have" in line for line in found.remarks) is False
    with pytest.raises(KernelError, match="patch 1/3"):
        applied(kit, stated, "HEAD")
    with pytest.raises(ConfigurationError, match="has no commit 'v9'"):
        applied(kit, stated, "v9")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_character_set(kit: Kit, tmp_path: Path, encoding: str) -> None:
    body = (
        "Grüße\n---\n\ndiff --git a/net/n.c b/net/n.c\nnew file mode 100644\n"
        "index 0000000..f5b7a9b\n--- /dev/null\n+++ b/net/n.c\n@@ -0,0 +1 @@\n+int n;\n"
    )
    subject = "=?ISO-8859-1?Q?[PATCH]_gr=F6=DFer?="
    mail = Mail(subject, body, charset="iso-8859-1", encoding=encoding)
    [_, one] = applied(kit, written(tmp_path / "mbox", [mail])).commits
    assert (one.name, one.subject) == ("p1", "größer")


def test_lines_that_flow_are_put_together_where_nothing_is_lost(kit: Kit, tmp_path: Path) -> None:
    *others, last = series(kit)
    stuffed = "".join(
        f" {line}" if line.startswith(" ") else line for line in last.body.splitlines(True)
    )
    flowed = replace(last, body=stuffed, params='; format="flowed"')
    assert trees_of(applied(kit, written(tmp_path / "mbox", [*others, flowed]))) == kit.trees


def test_a_series_that_needs_others_says_so(kit: Kit, tmp_path: Path) -> None:
    cover, one, two, three = series(kit)
    cover = replace(cover, body=cover.body + f"prerequisite-patch-id: {'7' * 40}\n")
    alone = [replace(m, subject=m.subject.replace(f"{n}/3", f"{n - 1}/2"))
             for n, m in ((2, two), (3, three))]  # fmt: skip
    path = written(tmp_path / "mbox", [replace(cover, subject="[PATCH net-next 0/2] x"), *alone])
    with pytest.raises(KernelError, match="and the series says that it needs other patches first"):
        applied(kit, path)
    assert (
        trees_of(applied(kit, written(tmp_path / "whole", [cover, one, two, three]))) == kit.trees
    )


def test_a_newer_version_counts_and_copies_do_not(kit: Kit, tmp_path: Path) -> None:
    old = [
        replace(mail, body=mail.body.replace("changed", "CHANGED"), id=f"old{mail.id}")
        for mail in series(kit, "PATCH")
    ]
    new = series(kit, "PATCH net-next V2")
    copies = [replace(new[1], id="copy"), new[2]]
    for order in ([*old, *new, *copies], [*copies, *new, *old]):
        found = applied(kit, written(tmp_path / "mbox", order))
        assert trees_of(found) == kit.trees
        assert sum("skipped, because v2 is newer" in line for line in found.remarks) == 2


def test_a_fix_up_is_squashed_into_its_patch(kit: Kit, tmp_path: Path) -> None:
    made = tmp_path / "series"
    git(made, "checkout", "-q", "HEAD~2")
    (made / "net/dev.c").write_text(lines(3, 33))
    commit(made, f"fixup! {SUBJECTS[0]}")
    body = git(made, "format-patch", "--stdout", "-1").partition("\n\n")[2]
    fix = Mail(f"[PATCH] fixup! {SUBJECTS[0]}", body, id="fix", reply_to="1")
    found = applied(kit, written(tmp_path / "mbox", [fix, *series(kit)]))
    assert len(found.commits) == 4
    tree = git(made, "rev-parse", "HEAD^{tree}").strip()
    assert trees_of(found)[0] == tree
    assert trees_of(found)[1] != kit.trees[1]


def test_lines_that_end_in_crlf_in_the_file_itself(kit: Kit, tmp_path: Path) -> None:
    made = tmp_path / "series"
    (made / "net/crlf.c").write_bytes(lines(4).replace("\n", "\r\n").encode())
    commit(made, "change a file with CRLF")
    out = tmp_path / "out"
    git(made, "format-patch", "-q", "-o", str(out), "-1")
    found = applied(kit, str(out))
    assert trees_of(found) != kit.trees
    changed = git(kit.tree, "rev-parse", "HEAD:net/crlf.c").strip()
    objects = objects_of(kit.tree)
    told = subprocess.run(
        ["git", "-C", str(kit.tree), "diff-tree", "-r", "HEAD", trees_of(found)[0]],
        env=os.environ
        | {
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(kit.tree / ".git/objects"),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert changed in told
    assert told.count("\n") == 1


def refused(kit: Kit) -> Iterator[tuple[str, list[Mail], type[HarnessError], str]]:
    """By name: mails, the class of the error, and what it says."""
    cover, one, two, three = series(kit)
    reply = Mail("Re: [PATCH 1/3] x", "".join(f"> {n}\n" for n in kit.bodies[0].splitlines()))
    yield "empty", [], ConfigurationError, "has no mail"
    yield "cover alone", [cover], ConfigurationError, "has no patch among its mails"
    yield "replies alone", [reply], ConfigurationError, "add the mails they reply to"
    yield "missing", [cover, one, three], ConfigurationError, "2/3 is missing of the series with"
    other = Mail("[PATCH 1/2] another", kit.bodies[0], id="x")
    yield "two series", [one, two, three, other], ConfigurationError, "has two series: one with"
    same = [replace(one, subject="[PATCH 1/3] mm: other", body=kit.bodies[2], id="y")]
    yield "of one length", [one, two, three, *same], ConfigurationError, "has two series"
    old = [replace(m, subject=f"[PATCH 1/1] {m.id}", id=f"z{m.id}", reply_to="") for m in (one,)]
    new = [replace(m, subject=m.subject.replace("net-next", "v2")) for m in (one, two, three)]
    yield "old and unrelated", [*new, *old], ConfigurationError, "has two series"
    changed = replace(two, body=two.body.replace("changed", "other"), id="again")
    yield "twice", [one, two, three, changed], ConfigurationError, "two different patches 2/3"
    bare = [replace(m, subject=f"[PATCH] {n}") for n, m in enumerate((one, two))]
    yield "no numbers", bare, ConfigurationError, "has 2 patches without n/m"
    beyond = replace(three, subject="[PATCH 4/3] too many", id="b")
    yield "beyond", [one, two, three, beyond], ConfigurationError, "4/3 'too many' is beyond"
    fix = Mail("[PATCH] fixup! something else", kit.bodies[2], id="f")
    yield "fix", [one, two, three, fix], ConfigurationError, "fixes none of the patches"
    late, early = (replace(one, subject="[PATCH 2/2] late"), replace(two, subject="[PATCH 1/2] e"))
    yield "order", [late, early], KernelError, "patch 1/2, 'e' does not apply: net/dev.c, hunk 1"
    damaged = replace(two, body=two.body.replace("\n \n", "\n\n").replace("\n line", "\nline"))
    yield "damaged", [one, damaged, three], KernelError, "second': its lines are damaged: corrupt"
    flowed = replace(two, params="; format=flowed", body=two.body.replace(" \n", "  \n"))
    yield "flowed", [one, flowed, three], KernelError, "format=flowed"


NAMES = (
    "empty", "cover alone", "replies alone", "missing", "two series", "of one length",
    "old and unrelated", "twice", "no numbers", "beyond", "fix", "order", "damaged", "flowed",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_leaves_nothing(kit: Kit, tmp_path: Path, name: str) -> None:
    cases = {case[0]: case[1:] for case in refused(kit)}
    assert tuple(cases) == NAMES
    found, kind, told = cases[name]
    before, path = state(kit.tree), tmp_path / "mbox"
    written(path, found)
    with pytest.raises(kind) as caught:
        applied(kit, str(path))
    assert told in str(caught.value)
    assert caught.value.hint
    status, said = commanded(
        "run", "--tree", str(kit.tree), "--mbox", str(path), "--out", str(tmp_path / "results")
    )
    assert (status, told in said) == (kind.exit_code, True), said
    assert state(kit.tree) == before
    assert not list((tmp_path / "scratch").iterdir())
    left = sorted(one.name for one in tmp_path.iterdir())
    assert left == ["mbox", "scratch", "series", "tree"]


def test_what_is_no_mail_at_all(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x00\xff not a mail")
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8b not gzip")
    (tmp_path / "none").mkdir()
    for name, told in (
        ("a.txt", "has no mail"),
        ("bad.gz", "cannot be read"),
        ("none", "has no mail"),
        ("missing", "there is no"),
    ):
        with pytest.raises(HarnessError, match=told):
            applied(kit, str(tmp_path / name))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_broken_mails_are_refused_or_applied(kit: Kit, rng: random.Random, count: int) -> None:
    """Whatever is broken in an mbox: an error of ours, or trees."""
    text = bytearray(b"".join(mail.raw() for mail in series(kit)))
    for _ in range(count):
        place = rng.randrange(len(text))
        text[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    path = kit.tree.parent / "mbox"
    path.write_bytes(text)
    before = state(kit.tree)
    with contextlib.suppress(HarnessError):
        assert len(applied(kit, str(path)).commits) == 4
    assert state(kit.tree) == before


@pytest.mark.skipif(
    not all(map(shutil.which, ("make", "gcc", "mksquashfs"))),
    reason="needs make, gcc and squashfs-tools",
)
def test_each_patch_is_a_kernel(kit: Kit, tmp_path: Path) -> None:
    (kit.tree / "arch/x86/include").mkdir(parents=True)
    for name in ("arch/x86/include/x.h", "include/y.h", "a.c"):
        (kit.tree / name).parent.mkdir(exist_ok=True)
        (kit.tree / name).write_text(f"{name}\n")
    commit(kit.tree, "more files")
    git(kit.tree, "checkout", "-q", "-b", "topic")
    for text in ("first", "second"):
        (kit.tree / "a.c").write_text(f"{text}\n")
        commit(kit.tree, f"{text} change")
    out = tmp_path / "out"
    git(kit.tree, "format-patch", "-q", "-o", str(out), "main")
    git(kit.tree, "checkout", "-q", "main")
    git(kit.tree, "branch", "-q", "-D", "topic")
    found = applied(kit, str(out))
    wanted = kernels.Kernels(
        kernel=Kernel(),
        names=[one.name for one in found.commits],
        tree=kit.tree,
        commits=found.commits,
    )
    with Progress(bars=False) as progress:
        made = {name: of[0] for name, of in wanted.build(progress).items()}
    assert {name: image.kernel.read_text() for name, image in made.items()} == {
        "base": "a.c\n", "p1": "first\n", "p2": "second\n"
    }  # fmt: skip
    assert made["p2"].release.startswith("6.12.0-p2-")
    assert made["p2"].subject == "second change"
    assert wanted.missing() == 0


@dataclass(frozen=True)
class Titled:
    """A kernel that nobody builds."""

    subject: str

    def provenance(self) -> dict[str, object]:
        return {"release": "6.12.0", "layout": 1, "image_sha256": "", "subject": self.subject}


def test_a_campaign_of_a_mailed_series(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booting = Booting(monkeypatch, {"base": 1.0, "p1": 1.0, "p2": 1.2, "p3": 1.2})
    monkeypatch.setattr(
        kernels.Kernels,
        "build",
        lambda wanted, _: {c.name: (Titled(c.subject),) for c in wanted.commits},
    )
    out, path = tmp_path / "out", written(tmp_path / "mbox", series(kit))
    options = ["--tree", str(kit.tree), "--mbox", path, "--bed", "virtual"]
    monkeypatch.chdir(tmp_path)
    status, said = commanded("plan", *options, "--profile", "standard")
    assert status == 0, said
    assert "compared with variant base, each group for itself: variant p1 · variant p2" in said
    assert "and a trend over variants base, p1, p2, p3" in said
    assert not (tmp_path / "cache").exists()
    expected = ("--expect", "p2 stack_rx_pps > 1.05x base")
    status, said = commanded("run", *options, "--profile", "standard", "--out", str(out), *expected)
    assert status == 0, said
    assert "variant p2 against variant base: faster" in said
    assert f"variant p1: {SUBJECTS[0]}" in said
    boots = len(booting.booted)
    commit_over = kit.tree / "net/dev.c"
    commit_over.write_text("moved on\n")
    commit(kit.tree, "HEAD has moved")
    status, said = commanded("run", "--resume", "--out", str(out))
    assert (status, len(booting.booted)) == (0, boots), said
    report = json.loads(commanded("report", str(out), "--format", "json")[1])
    assert [row["title"] for row in report["rows"][1:]] == [*SUBJECTS]
    assert {row["published_ratio"] for row in report["rows"]} == {None}
    written(tmp_path / "mbox", [replace(m, subject=m.subject.replace("/3", "/2"))
                                for m in series(kit)[:3]])  # fmt: skip
    status, said = commanded("run", "--resume", "--out", str(out))
    assert (status, "has other patches now" in said) == (2, True), said


def test_a_bisection_of_a_mailed_series(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Booting(monkeypatch, {"base": 1.0, "p1": 1.0, "p2": 0.8, "p3": 0.8})
    path = written(tmp_path / "mbox", series(kit))
    asked = ["--bed", "virtual", "--tree", str(kit.tree), "--mbox", path, "--by", "5%"]
    done = CliRunner().invoke(bisect_command.bisect, [*asked, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"p2 ({SUBJECTS[1]})" in done.output
    done = CliRunner().invoke(
        bisect_command.bisect, [*asked, "--good", "p3", "--bad", "p1", "--out", str(tmp_path / "o")]
    )
    assert isinstance(done.exception, ConfigurationError)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mbox", "MBOX"], "of which tree?"),
        (["--tree", "TREE", "--mbox", "MBOX", "--variants", "HEAD~1,HEAD"], "exclude each other"),
        (["--tree", "TREE", "--mbox", "MBOX", "--steps", "0,8"], "exclude each other"),
        (["--tree", "TREE", "--mbox", "MBOX", "--aa"], "exclude each other"),
        (["--tree", "TREE", "--base", "HEAD"], "--base is for a mailed series"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], told: str, kit: Kit, tmp_path: Path
) -> None:
    path = written(tmp_path / "mbox", series(kit))
    given = [{"TREE": str(kit.tree), "MBOX": path}.get(one, one) for one in options]
    status, said = commanded("run", *given, "--out", str(tmp_path / "out"))
    assert (status, told in said) == (2, True), said


@pytest.mark.parametrize("name", ["20261130.1@example.org", "https://lore.kernel.org/r/x@y/"])
def test_a_message_id_is_got_by_b4(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    path = f"{programs}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    if shutil.which("b4"):
        pytest.skip("b4 is installed")
    with pytest.raises(HarnessError) as caught:
        applied(kit, name)
    assert (caught.value.exit_code, "b4 is needed to get" in str(caught.value)) == (3, True)
    assert "apt-get install b4" in str(caught.value.hint)
    written(tmp_path / "thread", series(kit))
    b4 = programs / "b4"
    b4.write_text(
        f"#!/bin/sh\n[ $1 = mbox -a $2 = -o -a $4 = {name} ] || exit 1\n"
        f"cp {tmp_path}/thread $3/it.mbx\n"
    )
    b4.chmod(0o755)
    assert trees_of(applied(kit, name)) == kit.trees


def test_subjects_of_other_styles(kit: Kit, tmp_path: Path) -> None:
    styles = (
        "[PATCH v2 {n}/3] {s}", "[net-next PATCHv3 {n}/3] {s}", "[RFC v2 bpf-next {n:02d}/03] {s}",
        "[PATCH RESEND,net {n}/3] {s}", "[PATCH 6.12 {n}/3] {s}", "[tip][PATCH][{n}/3] {s}",
    )  # fmt: skip
    for style in styles:
        own = [
            replace(mail, subject=style.format(n=n, s=subject))
            for n, mail, subject in zip(itertools.count(1), series(kit)[1:], SUBJECTS, strict=False)
        ]
        found = applied(kit, written(tmp_path / "mbox", own))
        assert [one.subject for one in found.commits[1:]] == [*SUBJECTS], style
        assert trees_of(found) == kit.trees
