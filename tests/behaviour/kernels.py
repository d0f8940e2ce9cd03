# SPDX-License-Identifier: MIT
"""The kernels of the behaviour tests: any step, with sanitizers or not, or broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email import message_from_string
from email.policy import default
from pathlib import Path

from harness import config, patches
from harness.base import cache
from harness.base.progress import Progress
from harness.kernels import Image
from harness.kernels.arch import UM, X86, Arch
from harness.kernels.build import build_steps
from harness.kernels.configuration import Configuration
from harness.kernels.source import Source, Tree, resolve
from harness.kernels.toolchain import toolchain_of
from harness.patches import Patch, Series

HERE = Path(__file__).parent
LAST_STEP = "8"


@dataclass(frozen=True)
class Variant:
    """What the kernels are built for, and the fragments of their configuration."""

    arch: Arch
    fragments: tuple[str, ...] = ()


VARIANTS = {
    "native": Variant(UM, ("scenes.config", "debug.config", "um.config")),
    "card": Variant(UM, ("card.config",)),
    "measured": Variant(X86),
    "x86": Variant(X86, ("scenes.config", "debug.config")),
    "selftests": Variant(X86, ("scenes.config", "selftests.config")),
}
"""By name. Those without additional fragments are the kernels that a virtual bed measures."""


@dataclass(frozen=True)
class Mutation:
    """A bug that upstream met, put back into our code, and where it has to show.

    Its header says which upstream commit mended the bug, the step it would have come in
    with, the scene in which it shows, and as what: by a word of the kernel or as a
    difference.
    """

    path: Path
    title: str
    upstream: str
    step: str
    scene: str
    seen_as: str

    @classmethod
    def read(cls, path: Path) -> Mutation:
        """The mutation in ``path``."""
        text = path.read_text()
        header = message_from_string(text.partition("\n\n")[0], policy=default)
        names = ("Subject", "Upstream", "Step", "Scene", "Seen-As")
        return cls(path, *(str(header[name]) for name in names))

    @property
    def name(self) -> str:
        """Its name in the tests."""
        return self.path.stem

    @property
    def over(self) -> str:
        """The step that it applies to: the last of the eight, or the optional one it is of."""
        return max(self.step, LAST_STEP, key=int)


RESERVES = HERE / "reserves.patch"
"""Has the driver mark packets as from the memory reserves; applies to every step."""
MUTATIONS = tuple(
    sorted(
        (Mutation.read(path) for path in (HERE / "mutations").glob("*.patch")),
        key=lambda mutation: (-int(mutation.over), mutation.name),
    )
)
"""Those of the last steps first: the tests before them end with their kernels."""


def baseline_of(step: str) -> str:
    """The step with single packets whose sk_buffs are as large as those of ``step``."""
    sized = [patch.name for patch in series().upto(step) if patch.name == "11"]
    return "+".join(["0", *sized])


def source() -> Source:
    """The source that hosts.yaml names."""
    return resolve(config.load(config.locate(None)).kernel.source)


def series() -> Series:
    """The series that fits :func:`source`."""
    return patches.series_for(Tree.of(source()).directory)


def images(steps: Sequence[str], variant: str = "native") -> dict[str, Image]:
    """The kernels of ``steps``, built if they are not kept yet."""
    return _built(series(), steps, variant)


def patched(patch: Path, step: str, variant: str = "native") -> Image:
    """The kernel of ``step`` with one more patch on top."""
    with_it = extended(patch, step)
    return _built(with_it, [with_it.steps[-1]], variant)[with_it.steps[-1]]


def extended(patch: Path, step: str) -> Series:
    """The series up to ``step`` and ``patch`` after it, as a step after the last."""
    whole = series()
    touched = re.findall(r"^diff --git a/\S+ b/(\S+)$", patch.read_text(), re.MULTILINE)
    last = Patch(
        path=patch,
        step=int(LAST_STEP) + 1,
        variant="",
        subject=patch.stem,
        author="",
        changelog="",
        files=tuple(touched),
    )
    return replace(whole, patches=(*whole.upto(step), last), optional=())


def configuration(variant: str) -> Configuration:
    """The fragments of ``variant`` as one; of an option given twice the last counts."""
    chosen = VARIANTS[variant]
    paths = (chosen.arch.fragment, *(HERE / name for name in chosen.fragments))
    text = "".join(path.read_text() for path in paths)
    at = cache.root() / "behaviour" / f"{cache.digest(text)}.config"
    if not at.exists():
        at.parent.mkdir(parents=True, exist_ok=True)
        new = at.with_suffix(".new")
        new.write_text(text)
        new.replace(at)
    return Configuration(identity=cache.file_sha256(at), fragments=(at,), arch=chosen.arch)


def _built(chosen: Series, steps: Sequence[str], variant: str) -> dict[str, Image]:
    arch = VARIANTS[variant].arch.name
    with Progress() as progress:
        made = build_steps(
            source(),
            chosen,
            steps,
            configuration=configuration(variant),
            toolchain=toolchain_of(config.load(config.locate(None)).kernel),
            layouts=1,
            progress=progress,
            bed_patches=patches.bed_patches(arch, chosen.base) if arch == UM.name else (),
        )
    return {step: images[0] for step, images in made.items()}
