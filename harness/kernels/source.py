# SPDX-License-Identifier: MIT
"""One kernel source tree, moved between the steps of a series.

Hides where the source comes from (a ``linux-source`` package, a tarball, a git tree) and
how a tree changes step: the original files that the series touches are kept, the patches are
applied to copies of them, and only files whose content differs are written to the tree. So
``make`` rebuilds only what a step changed, and the next move repairs an interrupted one.
Commits of a repository are checked out the same way, with a directory and an index of ours.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import config, patches
from harness.base import cache, process
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.patches.git import command, environment, git, is_top_of_git_tree

WORKTREE = "worktree"
"""The name of what is not committed yet."""
_SUITES = {"linux-source-6.12": "trixie", "linux-source-6.1": "bookworm"}
_A_COMMIT = "the tree has to be a git repository; name a commit, tag or branch of it"
_TOUCHED = re.compile(r"^(?:---|\+\+\+) [ab]/(\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kernel source: its location, and its identity by content for cache keys."""

    kind: str
    location: Path
    ref: str
    identity: str

    def __str__(self) -> str:
        return f"{self.location}" + (f" at {self.ref}" if self.kind == "git" else "")


def resolve(chosen: config.Source) -> Source:
    """The source that hosts.yaml names.

    Raises:
        InfrastructureError: the package is not installed.
        ConfigurationError: there is no such tarball, tree or commit.
    """
    if isinstance(chosen, config.PackageSource):
        return from_package(chosen.package)
    if isinstance(chosen, config.TarballSource):
        return from_tarball(chosen.tarball)
    return from_git(chosen.git, chosen.ref)


def from_package(package: str) -> Source:
    """The source that the installed Debian package ``package`` holds."""
    for suffix in (".tar.xz", ".tar.zst", ".tar.bz2"):
        tarball = Path("/usr/src") / f"{package}{suffix}"
        if tarball.is_file():
            return from_tarball(tarball)
    said = f"{package} is not installed: there is no /usr/src/{package}.tar.xz"
    if _apt_offers(package):
        raise InfrastructureError(said, hint=f"apt-get install {package}")
    hint = "name a git tree with --tree, or a tarball as kernel.source in hosts.yaml"
    if suite := _SUITES.get(package):
        hint += f". Debian {suite} has this one: {_as_tarball(package, suite)}"
    raise InfrastructureError(
        f"{said}, and none of this system's package sources has the package", hint=hint
    )


def _apt_offers(package: str) -> bool:
    """Whether apt has this very package; its commands take linux-source-6.1 for a pattern, too."""
    command = ["apt-cache", "show", "--no-all-versions", package]
    with suppress(InfrastructureError):  # a system without apt
        return f"Package: {package}" in process.run(command, check=False).stdout.splitlines()
    return False


def _as_tarball(package: str, suite: str) -> str:
    """The command by which any user who can make the guest image gets the source of ``suite``."""
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return (
        f"mmdebstrap --variant=extract --include={package} --keyring={keyring} {suite} - | "
        f"tar -x ./usr/src/{package}.tar.xz"
    )


def from_tarball(path: Path) -> Source:
    """The source in a tarball with one directory at its top."""
    if not path.is_file():
        raise ConfigurationError(f"no kernel tarball at {path}")
    return Source(kind="tarball", location=path, ref="", identity=cache.file_sha256(path))


def from_git(path: Path, ref: str = "HEAD") -> Source:
    """The tree of commit ``ref`` in the git repository at ``path``; it is only read."""
    _require_whole(path)
    tree = _ask(path, "rev-parse", "--verify", "--quiet", f"{ref}^{{tree}}", check=False)
    if tree.returncode != 0:
        raise ConfigurationError(
            f"{path} has no commit {ref!a}",
            hint=_A_COMMIT,
        )
    return Source(kind="git", location=path, ref=ref, identity=tree.stdout.strip())


def _require_whole(path: Path) -> None:
    """Raise a :class:`ConfigurationError` unless ``path`` is the top of a git repository.

    In a subdirectory, git would name the tree of the whole repository but archive only a part.
    """
    if not path.is_dir():
        raise ConfigurationError(f"no kernel tree at {path}")
    if is_top_of_git_tree(path):
        return
    where = git(path, "rev-parse", "--is-bare-repository", check=False)
    if where.stdout.strip() == "true":
        return
    inside = next((up for up in path.resolve().parents if (up / ".git").exists()), None)
    raise ConfigurationError(
        f"{path} is not the top of a git tree" + (f", but a part of {inside}" if inside else ""),
        hint=f"name {inside}" if inside else "name the top directory of a git repository",
    )


@dataclass(frozen=True)
class Commit:
    """A commit of a git tree: its abbreviated hash and its title."""

    name: str
    subject: str = ""
    tree: str = ""
    """Its tree, if it is no commit but a patch of a mailed series, with those before it."""

    @property
    def ref(self) -> str:
        """What git calls it."""
        return self.tree or self.name

    @property
    def slug(self) -> str:
        """In the release of its kernel."""
        return self.name if self.tree or self.name == WORKTREE else f"g{self.name}"


def objects_of(repository: Path) -> Path:
    """Our directory of objects that ``repository`` does not have."""
    return _home_of(repository) / "objects"


def _home_of(repository: Path) -> Path:
    return cache.root() / "worktrees" / cache.digest(str(repository.resolve()))


def _ask(repository: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """git in ``repository``, which also finds the objects that are ours."""
    objects = objects_of(repository)
    return git(repository, *arguments, objects=objects if objects.is_dir() else None, **options)


def commits_between(path: Path, good: str, bad: str) -> list[Commit]:
    """The commits after ``good`` up to ``bad`` along first parents, ``good`` before them.

    Raises:
        ConfigurationError: there is no such tree or commit, or ``good`` is not an
            ancestor of ``bad``.
    """
    first, last = (commit_id(path, end) for end in (good, bad))
    if first == last:
        raise ConfigurationError(f"{good} and {bad} are the same commit of {path}")
    if git(path, "merge-base", "--is-ancestor", first, last, check=False).returncode != 0:
        raise ConfigurationError(
            f"{good} is no ancestor of {bad} in {path}",
            hint="good is the older commit, before the metric moved up or down",
        )
    form = ("log", "--reverse", "--first-parent", "--abbrev=12", "--format=%h %s")
    listed = git(path, *form, "--max-count=1", first).stdout
    listed += git(path, *form, f"{first}..{last}").stdout
    return [Commit(*line.split(" ", 1)) for line in listed.split("\n") if line]


def variants(path: Path, spec: str) -> list[Commit]:
    """The commits that ``spec`` names, in that order.

    Its items are commits, ranges ``A..B`` (A, and what follows it along first parents up to B),
    and ``worktree``: the files of ``path`` as they are, as far as git knows them.

    Raises:
        ConfigurationError: there is no such tree or commit, one is named twice, or only one.
    """
    found: list[Commit] = []
    for item in (part.strip() for part in spec.split(",")):
        first, dots, last = item.partition("..")
        if dots:
            found += commits_between(path, first or "HEAD", last or "HEAD")
        elif item == WORKTREE:
            over = one_commit(path, "HEAD")
            found.append(Commit(WORKTREE, f"uncommitted changes over {over.name}"))
        else:
            found.append(one_commit(path, item))
    names = [commit.name for commit in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(
            f"{spec!r} names {twice[0]} twice", hint="name each commit once, the baseline first"
        )
    if len(names) < 2:
        raise ConfigurationError(
            f"{spec!r} names one variant: nothing to compare",
            hint="name the baseline first: HEAD~1,HEAD or HEAD,worktree",
        )
    return found


def one_commit(path: Path, ref: str) -> Commit:
    """The commit that ``ref`` names; errors as in :func:`commit_id`."""
    told = git(path, "log", "--max-count=1", "--abbrev=12", "--format=%h %s", commit_id(path, ref))
    return Commit(*told.stdout.rstrip("\n").split(" ", 1))


def files_between(path: Path, first: str, *others: str) -> list[str]:
    """The files in which ``first`` and any of ``others`` differ."""
    differ = ("diff", "--name-only", "-z", "--end-of-options", first)
    told = [_ask(path, *differ, *([] if one == WORKTREE else [one])).stdout for one in others]
    return sorted({name for names in told for name in names.split("\0") if name})


def base_of_commit(path: Path, commit: str) -> str:
    """The base of a commit's tree, such as ``linux-6.12``."""
    with tempfile.TemporaryDirectory(prefix="receive-batching-") as scratch:
        commit = "HEAD" if commit == WORKTREE else commit
        makefile = _ask(path, "show", f"{commit}:Makefile", check=False).stdout
        (Path(scratch) / "Makefile").write_text(makefile, encoding="utf-8")
        patches.require_kernel(Path(scratch), f"commit {commit} of {path}")
        return patches.base_of(Path(scratch))[0]


def commit_id(path: Path, ref: str) -> str:
    """The commit that ``ref`` names.

    Raises:
        ConfigurationError: there is no such tree or commit.
    """
    _require_whole(path)
    found = git(path, "rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}", check=False)
    if found.returncode != 0:
        raise ConfigurationError(
            f"{path} has no commit {ref!a}",
            hint=_A_COMMIT,
        )
    return found.stdout.strip()


class Worktree:
    """A directory at one commit of a repository at a time; the repository is only read."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository.resolve()
        self._home = _home_of(repository)
        self.directory = self._home / "linux"

    def held(self) -> AbstractContextManager[None]:
        """Lock it against other moves."""
        return _held(self._home)

    def tree_of(self, commit: str) -> str:
        """The tree of ``commit``; of :data:`WORKTREE` that of the files git knows, as they are.

        That tree is written beside the repository, with an index of ours.
        """
        if commit != WORKTREE:
            return from_git(self._repository, commit).identity
        theirs = git(self._repository, "rev-parse", "--git-path", "index").stdout.strip()
        index = self._home / "uncommitted-index"
        self._home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._repository / theirs, index)
        self._ask("add", "--update", index=index)
        return self._ask("write-tree", index=index).stdout.strip()

    def _ask(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """git in the repository, writing new objects to a directory of ours."""
        objects_of(self._repository).mkdir(parents=True, exist_ok=True)
        return _ask(self._repository, *arguments, **options)

    def move_to(self, tree: str, patch_files: Sequence[Path] = ()) -> list[Path]:
        """Make the directory equal to a ``tree`` or commit plus ``patch_files``.

        Returns the files that were written.

        Raises:
            HunkError: a patch does not apply; the directory is unchanged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        ask = self._ask
        index = self._home / "index"
        index.with_name("index.lock").unlink(missing_ok=True)  # left by a killed git
        known = index.exists()
        wanted = tree
        if patch_files:
            patched = self._home / "patched-index"
            ask("read-tree", wanted, index=patched)
            for patch in patch_files:
                done = ask("apply", "--cached", str(patch.absolute()), index=patched, check=False)
                if done.returncode != 0:
                    raise patches.HunkError(patch, done.stderr)
            wanted = ask("write-tree", index=patched).stdout.strip()
        differ = ("diff-index", "--cached", "--name-only", "-z", wanted)
        changed = ask(*differ, index=index).stdout if known else ""
        # The repository's settings are for its own index and work tree.
        own = ("-c", "core.splitIndex=false", "-c", "core.sparseCheckout=false")
        here = f"--work-tree={self.directory}"
        ask(*own, here, "read-tree", "--reset", "-u", wanted, index=index)
        return [self.directory / name for name in changed.split("\0") if name]


class Tree:
    """An unpacked source in ``home/linux``, at one step of a series at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.directory = home / "linux"
        self._pristine = home / "pristine"

    @classmethod
    def of(cls, source: Source) -> Tree:
        """The tree of ``source`` in the cache; it is unpacked if necessary."""

        def unpack(home: Path) -> None:
            _unpack(source, home / "linux")

        home = cls._home_of(source)
        if home.is_dir() and not patches.is_kernel(home / "linux"):
            # An earlier version of the harness kept sources that it then refused.
            with cache.locked(home, what=f"the source {source}"):
                shutil.rmtree(home, ignore_errors=True)
        return cls(cache.entry(home, unpack, what=f"the source {source}"))

    @classmethod
    def kept(cls, source: Source) -> Tree | None:
        """The tree of ``source`` if it is in the cache."""
        home = cls._home_of(source)
        return cls(home) if patches.is_kernel(home / "linux") else None

    @staticmethod
    def _home_of(source: Source) -> Path:
        return cache.root() / "sources" / cache.digest(source.identity)

    def held(self) -> AbstractContextManager[None]:
        """Lock it against other moves, also those for other configurations."""
        return _held(self.home)

    def linked(self, home: Path) -> Tree:
        """A copy in ``home``, made of hard links, that is moved independently."""
        with self.held():
            process.run(["cp", "--archive", "--link", str(self.home), str(home)])
        return Tree(home)

    @contextmanager
    def as_shipped(self) -> Iterator[Path]:
        """A copy of the source as it came, while the tree stays at its step."""
        with tempfile.TemporaryDirectory(prefix=".shipped-", dir=self.home.parent) as scratch:
            copy = self.linked(Path(scratch) / "copy")
            copy.move_to([])
            yield copy.directory

    def move_to(self, patch_files: Sequence[Path]) -> list[Path]:
        """Make the tree equal to its source plus ``patch_files``; returns the files it wrote.

        Raises:
            KernelError: a patch does not apply; the tree is unchanged.
        """
        wanted = {name for patch in patch_files for name in _touched(patch)}
        known = {str(p.relative_to(self._pristine)) for p in _files(self._pristine)}
        new_files = self.home / "new-files"
        added = set(new_files.read_text(encoding="utf-8").split()) if new_files.exists() else set()
        for name in sorted(wanted - known - added):
            if (self.directory / name).exists():
                _copy(self.directory / name, self._pristine / name)
            else:
                added.add(name)
        new_files.write_text("".join(f"{name}\n" for name in sorted(added)), encoding="utf-8")
        with tempfile.TemporaryDirectory(dir=self.home) as scratch_name:
            scratch = Path(scratch_name)
            for pristine in _files(self._pristine):
                _copy(pristine, scratch / pristine.relative_to(self._pristine))
            patches.apply_files(scratch, patch_files)
            known = {str(p.relative_to(self._pristine)) for p in _files(self._pristine)}
            written = []
            for name in sorted(added | known):
                made, placed = scratch / name, self.directory / name
                if not made.exists():
                    placed.unlink(missing_ok=True)
                elif not placed.exists() or not filecmp.cmp(made, placed, shallow=False):
                    _copy(made, placed)
                    written.append(placed)
            return written


def _held(home: Path) -> AbstractContextManager[None]:
    return cache.locked(home.with_name(f"{home.name}-moves"), what=f"a kernel of {home}")


def _unpack(source: Source, directory: Path) -> None:
    """Raises a :class:`ConfigurationError` if ``source`` holds no kernel."""
    directory.mkdir()
    tar = ["tar", "--extract", "--no-same-owner", "--directory", str(directory)]
    if source.kind == "tarball":
        done = process.run(
            [*tar, "--strip-components=1", "--file", str(source.location)], check=False
        )
        if done.returncode != 0:
            raise ConfigurationError(
                f"tar cannot unpack {source}: {_last_line(done.stderr)}",
                hint="name a .tar.xz, .tar.gz or .tar of a kernel",
            )
    else:
        # By its tree, not by its ref: that may have moved since.
        archive = command("archive", source.identity)
        sender = process.start(
            archive,
            cwd=source.location,
            env=environment(source.location),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with sender:
            done = subprocess.run(
                tar,
                stdin=sender.stdout,
                env=process.environment(),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            )
        if sender.returncode != 0 or done.returncode != 0:
            failed = ["git", "archive", source.identity]
            raise process.failed(failed, sender.returncode or done.returncode, done.stderr)
    patches.require_kernel(directory, str(source))


def _last_line(text: str) -> str:
    return (process.harmless(text).strip().splitlines() or ["it gave no reason"])[-1]


def _touched(patch: Path) -> set[str]:
    return set(_TOUCHED.findall(patch.read_text(encoding="utf-8", errors="replace")))


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it may have other hard links
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
