# SPDX-License-Identifier: MIT
"""Kernel images, built once for each content and layout and kept in the cache.

Hides the cache keys, the object directory that is reused from step to step so that each
further step builds incrementally, and what is kept of a build: image, configuration, log,
and the content of /lib/modules/RELEASE.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.base import cache
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.base.progress import Progress
from harness.kernels.arch import ARCHES, X86
from harness.kernels.configuration import Configuration
from harness.kernels.source import Commit, Source, Tree, Worktree
from harness.kernels.toolchain import Toolchain
from harness.kernels.walk import KCFLAGS, Variant, Walk
from harness.patches import Series

_FREE_BYTES = 6 << 30
_TOUCHED_BYTES = 120_000
"""Below MAX_ARG_STRLEN, Linux's limit for one environment variable."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A kernel that is built: its origin and its files."""

    step: str
    layout: int
    release: str
    patches: tuple[str, ...]
    source: str
    compiler: str
    config_sha256: str
    image_sha256: str
    directory: Path
    arch: str = X86.name
    bed_patches: tuple[str, ...] = ()
    """Patches of arch code that the bed needs, the same in every step."""
    subject: str | None = None
    """The title of the commit that it is, if it is no step of the series."""

    cmdline: tuple[str, ...] = ()
    """Words that are added to its command line."""

    @property
    def kernel(self) -> Path:
        """The file to boot: a bzImage, or a program."""
        return self.directory / ARCHES[self.arch].kept

    @property
    def headers(self) -> Path:
        """A squashfs of /lib/modules/RELEASE: modules, and ``build/`` for bcc."""
        return self.directory / "headers.squashfs"

    def provenance(self) -> dict[str, object]:
        """What a result records of this kernel."""
        absent = {name for name in ("subject", "cmdline") if not getattr(self, name)}
        left_out = {"directory", *absent}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def objects_of(whose: str, configuration: Configuration, toolchain: Toolchain) -> Path:
    """The object directory for the kernels of a source or repository."""
    name = cache.digest(whose, configuration.identity, toolchain.identity, KCFLAGS)
    return cache.root() / "objects" / name


def build_steps(
    source: Source,
    series: Series,
    steps: Sequence[str],
    *,
    configuration: Configuration,
    toolchain: Toolchain,
    layouts: int,
    progress: Progress,
    bed_patches: Sequence[Path] = (),
) -> dict[str, tuple[Image, ...]]:
    """:func:`built` for :func:`of_steps`."""
    variants = of_steps(source, series, steps, configuration, toolchain, bed_patches)
    objects = objects_of(source.identity, configuration, toolchain)
    return built(variants, objects, configuration, toolchain, layouts, progress)


def built(
    variants: Iterable[Variant],
    objects: Path,
    configuration: Configuration,
    toolchain: Toolchain,
    layouts: int,
    progress: Progress,
) -> dict[str, tuple[Image, ...]]:
    """The images of ``variants``, in that order, each in ``layouts`` layouts.

    Only images that are not in the cache are built.

    Raises:
        KernelError: a patch does not apply, or a kernel does not compile; the message has
            the compiler's first error and names the log.
        InfrastructureError: a build tool is missing or there is too little space.
    """
    return {
        variant.step: _images(variant, objects, configuration, toolchain, layouts, progress)
        for variant in variants
    }


def missing(variants: Iterable[Variant], layouts: int) -> int:
    """How many images :func:`built` would have to build."""
    return sum(
        not _home(variant, layout).is_dir()
        for variant in variants
        for layout in range(1, layouts + 1)
    )


def of_steps(
    source: Source,
    series: Series,
    steps: Sequence[str],
    configuration: Configuration,
    toolchain: Toolchain,
    bed_patches: Sequence[Path] = (),
) -> Iterator[Variant]:
    """The steps of ``series`` on ``source``. ``bed_patches`` are applied first in every step."""
    compiler, config = toolchain.identity, configuration.identity
    touched = {name for patch in series.patches for name in patch.files}
    applied = {patch for step in steps for patch in series.upto(step)}
    # Files touched only by optional patches: they count as touched in all steps, too.
    beside = sorted({name for patch in applied for name in patch.files} - touched)
    for step in steps:
        files = (*bed_patches, *series.patches_for(step))
        changes = [cache.digest(_diff(path)) for path in files]

        @contextmanager
        def place(files: Sequence[Path] = files) -> Iterator[tuple[Path, list[Path]]]:
            tree = Tree.of(source)
            with tree.held():
                yield tree.directory, tree.move_to(files)

        yield Variant(
            step=step,
            name=f"step {step}",
            content=cache.digest(source.identity, changes, config, compiler, *beside),
            touched=sorted(touched.union(beside)),
            record={
                "patches": [path.name for path in series.patches_for(step)],
                "source": str(source),
                "compiler": toolchain.compiler,
                **_of_the_bed(configuration, bed_patches),
            },
            place=place,
        )


def _home(variant: Variant, layout: int) -> Path:
    return cache.root() / "kernels" / variant.key(layout)


def of_commits(
    repository: Path,
    commits: Sequence[Commit],
    touched: Sequence[str],
    objects: Path,
    configuration: Configuration,
    toolchain: Toolchain,
    bed_patches: Sequence[Path] = (),
) -> Iterator[Variant]:
    """``commits`` of ``repository``, without a series. ``bed_patches`` are applied to each.

    One source directory and its ``objects`` are moved from commit to commit; ``touched`` names
    the files in which those that are compared differ.

    Raises:
        ConfigurationError: more files differ than can be passed to the linker's wrapper.
    """
    code = sorted(name for name in touched if name.endswith((".c", ".S")))
    if len(" ".join(code)) > _TOUCHED_BYTES:
        raise ConfigurationError(
            f"{len(code)} source files differ within the range: too many to build layouts",
            hint="choose commits that are closer to each other: from rc to rc, not between "
            "releases",
        )
    compiler, config = toolchain.identity, configuration.identity
    changes = [cache.digest(_diff(path)) for path in bed_patches]
    tree = Worktree(repository)
    for commit in commits:
        # Uncommitted changes as they are now: they may change while kernels are built.
        wanted = tree.tree_of(commit.ref)
        source = Source(kind="git", location=repository, ref=commit.name, identity=wanted)

        @contextmanager
        def place(wanted: str = wanted) -> Iterator[tuple[Path, list[Path]]]:
            with tree.held():
                written = tree.move_to(wanted, bed_patches)
                (objects / ".config").unlink(missing_ok=True)  # commits may add options
                yield tree.directory, written

        yield Variant(
            step=commit.name,
            name=commit.slug,
            # The touched files decide where functions lie.
            content=cache.digest(source.identity, [*code], config, compiler, *changes),
            touched=code,
            record={
                "patches": [],
                "subject": commit.subject,
                "source": str(source),
                "compiler": toolchain.compiler,
                **_of_the_bed(configuration, bed_patches),
            },
            place=place,
        )


def _images(
    variant: Variant,
    objects: Path,
    configuration: Configuration,
    toolchain: Toolchain,
    layouts: int,
    progress: Progress,
) -> tuple[Image, ...]:
    """The images of ``variant``; those that are not in the cache are built."""

    def image(layout: int) -> Image:
        def make(making: Path) -> None:
            toolchain.prove()
            with _sole_use(objects), variant.place() as (directory, written):
                walk = Walk(directory, objects, configuration, toolchain)
                also = [
                    other
                    for other in range(1, layouts + 1)
                    if other != layout and not _home(variant, other).is_dir()
                ]
                walk.make_image(making, variant, layout, written, progress, also=also)

        kept = cache.entry(_home(variant, layout), make, what=f"the {variant.title(layout)}")
        record = json.loads((kept / "image.json").read_text(encoding="utf-8"))
        named: dict[str, object] = {"step": variant.step, "patches": tuple(record["patches"])}
        named["bed_patches"] = tuple(record.get("bed_patches", ()))
        if "subject" in variant.record:  # the same content may have had another title
            named["subject"] = variant.record["subject"]
        return Image(**{**record, **named}, directory=kept)

    return tuple(image(layout) for layout in range(1, layouts + 1))


@contextmanager
def _sole_use(objects: Path) -> Iterator[None]:
    """Create and lock the object directory, and check the free space."""
    with cache.locked(objects, what="a kernel build"):
        objects.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(objects).free
        if free < _FREE_BYTES:
            raise InfrastructureError(
                f"a kernel build needs {_FREE_BYTES >> 30} GiB in {cache.root()}, "
                f"{free / 2**30:.1f} GiB are free",
                hint="free some space, or set RECEIVE_BATCHING_CACHE to another directory",
            )
        yield


def _of_the_bed(configuration: Configuration, patches: Sequence[Path]) -> dict[str, object]:
    """The architecture and ``patches`` for a kernel's record; x86 has none."""
    if configuration.arch is X86:
        return {}
    return {"arch": configuration.arch.name, "bed_patches": [path.name for path in patches]}


def _diff(patch: Path) -> str:
    """The diff of ``patch`` without its mail: an edited changelog makes no other kernel."""
    text = patch.read_text(encoding="utf-8", errors="replace")
    changes = text[text.index("\ndiff --git ") :]
    return changes.rpartition("\n-- \n")[0] or changes
