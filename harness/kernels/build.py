# SPDX-License-Identifier: MIT
"""Kernel images, built once for each content and kept.

Hides the object directory that is walked from step to step so that each further
step is incremental, the check that the configuration became what was asked for,
and what is kept of a build: image, configuration, log, and the prepared headers
that bcc needs on the host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import cache, process
from harness.errors import InfrastructureError, KernelError
from harness.kernels.source import Source, Tree, Worktree, from_git
from harness.patches import Series
from harness.progress import Progress

FRAGMENT = Path(__file__).with_name("benchmark.config")
_KCFLAGS = "-fno-var-tracking-assignments"
"""Spares gcc a part of the debug information that nothing reads: code and BTF stay the same."""
_JOBS = (os.cpu_count() or 1) + 1
_FREE_BYTES = 6 << 30
_COMPILED = re.compile(r"^\s+(?:CC|AS|LDS)(?: \[M\])?\s+\S+\.(?:o|lds)$")
_COMPILE_ERROR = re.compile(r"(?:\berror:|Error \d+$|undefined reference|No rule to make)")


@dataclass(frozen=True, kw_only=True)
class Image:
    """A kernel that is built: what it was made from and where its parts lie."""

    step: str
    release: str
    patches: tuple[str, ...]
    source: str
    compiler: str
    config_sha256: str
    image_sha256: str
    directory: Path

    @property
    def kernel(self) -> Path:
        """The bzImage."""
        return self.directory / "bzImage"

    @property
    def headers(self) -> Path:
        """A squashfs of /lib/modules/RELEASE with ``build/`` in it, for bcc."""
        return self.directory / "headers.squashfs"

    def provenance(self) -> dict[str, object]:
        """What a result says of this kernel."""
        return {name: value for name, value in asdict(self).items() if name != "directory"}


def build_steps(
    source: Source, series: Series, steps: Sequence[str], *, progress: Progress
) -> dict[str, Image]:
    """The images of ``steps``, in that order; only what is not kept yet is built.

    Raises:
        KernelError: a patch does not apply, or a kernel does not compile; the
            message holds the first error of the compiler and names the log.
        InfrastructureError: a build tool is missing or there is too little space.
    """
    compiler, config = _compiler(), cache.file_sha256(FRAGMENT)
    objects = cache.root() / "objects" / cache.digest(source.identity, config, compiler, _KCFLAGS)
    images: dict[str, Image] = {}
    for step in steps:
        patch_files = series.patches_for(step)
        changes = [cache.digest(_diff(path)) for path in patch_files]
        key = cache.digest(source.identity, changes, config, compiler)

        def make(
            making: Path, *, step: str = step, files: Sequence[Path] = patch_files, key: str = key
        ) -> None:
            with _sole_use(objects):
                tree = Tree.of(source)
                written = tree.move_to(files)
                record = {
                    "step": step,
                    "patches": [path.name for path in files],
                    "source": str(source),
                    "compiler": compiler,
                }
                walk = _Walk(tree.directory, objects)
                walk.make_image(making, f"step {step}", written, key, record, progress)

        images[step] = _image(key, make, step=step, name=f"step {step}")
    return images


def build_commits(
    repository: Path, commits: Sequence[str], *, progress: Progress
) -> dict[str, Image]:
    """The images of ``commits`` as they are, without a series.

    One directory and its objects are walked from commit to commit; errors as above.
    """
    compiler, config = _compiler(), cache.file_sha256(FRAGMENT)
    whose = f"the commits of {repository.resolve()}"
    objects = cache.root() / "objects" / cache.digest(whose, config, compiler, _KCFLAGS)
    images: dict[str, Image] = {}
    for commit in commits:
        source = from_git(repository, commit)
        key = cache.digest(source.identity, [], config, compiler)

        def make(
            making: Path, *, commit: str = commit, source: Source = source, key: str = key
        ) -> None:
            with _sole_use(objects):
                tree = Worktree(repository)
                written = tree.move_to(commit)
                (objects / ".config").unlink(missing_ok=True)  # commits may add options
                record = {
                    "step": commit,
                    "patches": [],
                    "source": str(source),
                    "compiler": compiler,
                }
                walk = _Walk(tree.directory, objects)
                walk.make_image(making, f"g{commit}", written, key, record, progress)

        images[commit] = _image(key, make, step=commit, name=f"g{commit}")
    return images


def _compiler() -> str:
    return process.run(["gcc", "--version"], hint="apt-get install gcc").stdout.splitlines()[0]


def _image(key: str, make: Callable[[Path], None], *, step: str, name: str) -> Image:
    """The kept image ``key``, made if it is not there yet, as that of ``step``."""
    kept = cache.entry(cache.root() / "kernels" / key, make, what=f"the kernel of {name}")
    record = json.loads((kept / "image.json").read_text())
    named = {"step": step, "patches": tuple(record["patches"])}
    return Image(**{**record, **named}, directory=kept)


@contextmanager
def _sole_use(objects: Path) -> Iterator[None]:
    """Lock the object directory, make it, and see that there is space."""
    with cache.locked(objects, what="a kernel build"):
        objects.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(objects).free
        if free < _FREE_BYTES:
            raise InfrastructureError(
                f"a kernel build needs {_FREE_BYTES >> 30} GiB in {cache.root()}, "
                f"there are {free / 2**30:.1f}",
                hint="free some space, or name another place in RECEIVE_BATCHING_CACHE",
            )
        yield


class _Walk:
    """One object directory and the directory it is built from."""

    def __init__(self, directory: Path, objects: Path) -> None:
        self.directory, self.objects = directory, objects
        self._counted = objects.parent / "objects-of-a-whole-build"

    def make_image(
        self,
        making: Path,
        name: str,
        written: Sequence[Path],
        key: str,
        record: Mapping[str, object],
        progress: Progress,
    ) -> None:
        """Build after ``written`` changed; fill ``making`` with the image and its ``record``."""
        slug = name.replace(" ", "")
        log = cache.root() / "logs" / f"build-{slug}-{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        make = ["make", f"O={self.objects}", f"LOCALVERSION=-{slug}-{key[:8]}"]
        make += [f"KCFLAGS={_KCFLAGS}"]
        with log.open("w") as output:
            if not (self.objects / ".config").exists():
                self._make(
                    [*make, f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig"], output, log, None
                )
            check_config((self.objects / ".config").read_text())
            whole = not (self.objects / "vmlinux").exists()
            with progress.task(f"kernel of {name}", total=self._objects_left(written)) as task:
                self._make([*make, f"-j{_JOBS}", "bzImage"], output, log, task.advance)
            if whole:
                self._counted.write_text(str(task.done))
        config = self.objects / ".config"
        shutil.copyfile(self.objects / "arch/x86/boot/bzImage", making / "bzImage")
        shutil.copyfile(config, making / "config")
        shutil.copyfile(log, making / "build.log")
        self._pack_headers(making / "headers.squashfs")
        stored = {
            **record,
            "release": (self.objects / "include/config/kernel.release").read_text().strip(),
            "config_sha256": cache.file_sha256(config),
            "image_sha256": cache.file_sha256(making / "bzImage"),
        }
        (making / "image.json").write_text(json.dumps(stored, indent=1))

    def _make(self, command: list[str], output, log: Path, compiled) -> None:  # type: ignore[no-untyped-def]
        hidden = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        env |= {
            "LC_ALL": "C",
            "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
            "KBUILD_BUILD_USER": "harness",
            "KBUILD_BUILD_HOST": "harness",
        }
        with subprocess.Popen(
            command,
            cwd=self.directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as make:
            assert make.stdout is not None
            try:
                for line in make.stdout:
                    output.write(line)
                    if compiled and _COMPILED.match(line):
                        compiled()
            except BaseException:
                make.terminate()
                raise
        if make.returncode != 0:
            output.flush()
            raise _build_error(log, make.returncode)

    def _objects_left(self, written: Sequence[Path]) -> int | None:
        """How many objects make has to compile after ``written`` changed, if that is known.

        A first build knows it from the last one with this configuration, if there was one.
        """
        commands = list(self.objects.rglob(".*.o.cmd"))
        if not commands:
            return int(self._counted.read_text()) if self._counted.exists() else None
        names = [str(path).encode() for path in written]
        return sum(any(name in command.read_bytes() for name in names) for command in commands)

    def _pack_headers(self, packed: Path) -> None:
        """The headers and generated headers of the tree, as bcc wants them on a host."""
        staged = packed.with_name("headers")
        for origin in (self.directory, self.objects):
            for part in ("include", "arch/x86/include"):
                shutil.copytree(
                    origin / part,
                    staged / "build" / part,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("config", "*.cmd", "dt-bindings"),
                )
        process.run(
            [
                "mksquashfs",
                str(staged),
                str(packed),
                "-comp",
                "zstd",
                "-Xcompression-level",
                "3",
                "-all-root",
                "-quiet",
                "-no-progress",
            ],
            hint="apt-get install squashfs-tools",
        )
        shutil.rmtree(staged)


def _diff(patch: Path) -> str:
    """What ``patch`` changes, without its mail: a better changelog is no other kernel."""
    text = patch.read_text(errors="replace")
    changes = text[text.index("\ndiff --git ") :]
    return changes.rpartition("\n-- \n")[0] or changes


def check_config(config: str) -> None:
    """Raise a :class:`KernelError` if ``config`` lacks an option of the fragment."""
    have = set(config.splitlines())
    asked = [line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")]
    lost = [line for line in asked if line not in have]
    if lost:
        raise KernelError(
            f"the kernel's configuration does not take {', '.join(lost)}",
            hint="the source lacks them, or what they depend on; is it one of the known bases?",
        )


def _build_error(log: Path, status: int) -> KernelError:
    lines = log.read_text(errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if _COMPILE_ERROR.search(line)), len(lines) - 1)
    shown = "\n".join(f"  | {line}" for line in lines[max(0, first - 1) : first + 4])
    return KernelError(
        f"the kernel does not build (make: {status})\n{shown}", hint=f"the whole log: {log}"
    )
