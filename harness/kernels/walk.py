# SPDX-License-Identifier: MIT
"""Builds one kernel after another in the same object directory.

Hides how make is run, the wrappers for ld and pahole that make a further layout only a
link, and what is copied from the directory once a kernel is built.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from harness.base import cache, process
from harness.base.errors import InfrastructureError, KernelError
from harness.base.progress import Progress
from harness.kernels import packing
from harness.kernels.configuration import Configuration
from harness.kernels.toolchain import Toolchain
from harness.patches.git import variables

_LAYOUT = Path(__file__).with_name("layout.py")
_LD = f"""#!/bin/sh
link() {{ {shlex.quote(sys.executable)} -I {shlex.quote(str(_LAYOUT))} "$@"; }}
case " $* " in
*" -o .tmp_vmlinux.btf "*" --script=./arch/"*"/kernel/vmlinux.lds "* | \
*" --script=./arch/"*"/kernel/vmlinux.lds "*"-o .tmp_vmlinux.btf "*)
	# What the types are taken from is called .tmp_vmlinux1 in newer kernels, and in layout.py.
	for argument; do
		shift
		[ "$argument" != .tmp_vmlinux.btf ] || argument=.tmp_vmlinux1
		set -- "$@" "$argument"
	done
	link "$@" && exec mv .tmp_vmlinux1 .tmp_vmlinux.btf
	exit 1 ;;
*" --script=./arch/um/kernel/vmlinux.lds "*)
	# It is kept as it is linked, and needs no more than its symbols.
	[ ! -e "$KERNEL_BTF" ] || set -- "$@" --strip-debug
	case " $* " in
	*" -o vmlinux "*)
		for also in $KERNEL_ALSO; do
			(export KERNEL_LAYOUT="${{also%%=*}}"; link "$@") && mv vmlinux "${{also#*=}}" || exit
		done ;;
	esac
	link "$@"
	exit ;;
*" --script=./arch/"*"/kernel/vmlinux.lds "*)
	link "$@"
	exit ;;
*" -T ./arch/x86/kernel/vmlinux.lds "*)
	# Linux 4.18 says it otherwise, and has vmlinux.a under another name.
	ln -sf built-in.a vmlinux.a
	for argument; do
		shift
		case $argument in
		-T) continue ;;
		*/vmlinux.lds) argument=--script=$argument ;;
		built-in.a) argument=vmlinux.a ;;
		esac
		set -- "$@" "$argument"
	done
	link "$@"
	exit ;;
esac
exec ld "$@"
"""
_PAHOLE = """#!/bin/sh
# The types of a kernel are the same in every layout: they are looked for once.
case "$*" in *--version* | *--btf_base*) exec pahole "$@" ;; esac
for file; do :; done
if [ -e "$KERNEL_BTF" ]; then
	exec objcopy --add-section .BTF="$KERNEL_BTF" "$file"
fi
pahole "$@" && objcopy -O binary --only-section=.BTF --set-section-flags .BTF=alloc "$file" \\
	"$KERNEL_BTF.new" && mv "$KERNEL_BTF.new" "$KERNEL_BTF"
"""
KCFLAGS = "-fno-var-tracking-assignments"
"""Skips debug information that nothing reads, to build faster: code and BTF stay the same."""
_MODULAR = re.compile(r"^CONFIG_\w+=m$", re.MULTILINE)
_COMPILED = re.compile(r"^\s+(?:CC|AS|LDS)(?: \[M\])?\s+\S+\.(?:o|lds)$")
_SAID_BY_MAKE = re.compile(r"^make(\[\d+\])?: ")
_STEP = re.compile(r"^\s+[A-Z][A-Z0-9_+-]*( \[M\])?\s+\S+$|^\s*$|\bwarning: ")
# Messages of a tool that fails; make's own "Error 1" only follows from it.
_CAUSE = re.compile(
    r"\berror:|\bERROR\b|\bfatal\b|undefined (?:reference|symbol)|multiple definition"
    r"|No rule to make|too old|is not supported|not found\b|No such file|command not found"
    r"|cannot find|Cannot allocate|No space left|Permission denied|Killed|Segmentation fault"
    r"|internal compiler error|^FAILED|Failed to|failed to|unrecognized|undeclared"
    r"|region .* overflowed|relocation truncated|Assertion|\bBUG\b.*pahole",
)
_CONTEXT = 4
_CAUSES = 6


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kernel's content, for any layout."""

    step: str
    name: str
    content: str
    touched: Sequence[str]
    """Files in which kernels that are compared with it may differ."""
    record: dict[str, object]
    place: Callable[[], AbstractContextManager[tuple[Path, list[Path]]]]
    """Moves the source to this kernel and locks it: its directory, and the files it wrote."""

    def key(self, layout: int) -> str:
        """The cache key of its image in that layout."""
        return cache.digest(self.content, layout, cache.file_sha256(_LAYOUT))

    def title(self, layout: int) -> str:
        """The name that progress shows."""
        return f"kernel of {self.name}" + (f", layout {layout}" if layout > 1 else "")


class Walk:
    """One object directory and the source directory it is built from."""

    def __init__(
        self, directory: Path, objects: Path, configuration: Configuration, toolchain: Toolchain
    ) -> None:
        self.directory, self.objects = directory, objects
        self.configuration, self.toolchain = configuration, toolchain
        self._counted = objects.with_name(f"objects-of-{configuration.identity[:16]}")
        self._linked = objects / "linked"
        """Layouts that the last make has linked beside its own, its log and its configuration."""

    def make_image(
        self,
        making: Path,
        variant: Variant,
        layout: int,
        written: Sequence[Path],
        progress: Progress,
        *,
        also: Sequence[int] = (),
    ) -> None:
        """Build after the files ``written`` changed; put the image and its record in ``making``.

        Layouts ``also`` wanted are linked at once where that is possible, and kept until they
        are asked for.
        """
        arch = self.configuration.arch
        built = self._linked / variant.key(layout)
        if not built.exists():
            shutil.rmtree(self._linked, ignore_errors=True)
            self._linked.mkdir()
            beside = {one: self._linked / variant.key(one) for one in also if arch.by_compiler}
            built = self._build(making, variant, layout, written, progress, beside)
        shutil.copy(built, making / arch.kept)
        config = self._linked / "config"
        without_types = "CONFIG_DEBUG_INFO_BTF=y" not in config.read_text(encoding="utf-8")
        if arch.types_from and without_types:
            self._add_types(making / arch.kept)
        shutil.copyfile(config, making / "config")
        shutil.copyfile(self._linked / "build.log", making / "build.log")
        stored = {
            "step": variant.step,
            "layout": layout,
            **variant.record,
            "release": self._release(),
            "config_sha256": cache.file_sha256(config),
            "image_sha256": cache.file_sha256(making / arch.kept),
        }
        (making / "image.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")

    def _build(
        self,
        making: Path,
        variant: Variant,
        layout: int,
        written: Sequence[Path],
        progress: Progress,
        beside: Mapping[int, Path],
    ) -> Path:
        """Run make, which links further layouts to the files ``beside``; what it has built."""
        arch, slug = self.configuration.arch, variant.name.replace(" ", "")
        mark = variant.key(layout)
        log = cache.root() / "logs" / f"build-{slug}-{mark}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if arch.by_compiler:
            mark = variant.content  # the same kernel in every layout, so that make runs once
        options = [*arch.arguments, f"LOCALVERSION=-{slug}-{mark[:8]}", f"KCFLAGS={KCFLAGS}"]
        for tool, script in {"ld": _LD, "pahole": _PAHOLE}.items():
            path = self.objects.with_name(f"{tool}.sh")
            _write_script(path, script)
            options.append(f"{tool.upper()}={path}")
        env = (
            self.toolchain.environment
            | self._for_the_compiler()
            | {
                "KERNEL_LAYOUT": str(layout),
                "KERNEL_ALSO": " ".join(f"{one}={path}" for one, path in beside.items()),
                "KERNEL_TOUCHED": " ".join(variant.touched),
                "KERNEL_BTF": str(self.objects / f"btf-{variant.content}"),
            }
        )
        config = self.objects / ".config"
        with log.open("w", buffering=1, encoding="utf-8") as output:

            def make(
                objects: Path,
                more: Sequence[str],
                more_env: Mapping[str, str],
                compiled: Callable[[], None] | None = None,
            ) -> None:
                command = ["make", f"O={objects}", *options, *self.toolchain.arguments, *more]
                self._make(command, {**env, **more_env}, output, log, compiled)

            if not config.exists():
                self.configuration.write(self.objects, make)
            text = config.read_text(encoding="utf-8")
            self.configuration.check(text)
            modular = bool(_MODULAR.search(text))
            vmlinux = self.objects / "vmlinux"
            whole = not vmlinux.exists()
            vmlinux.unlink(missing_ok=True)  # otherwise make would not link it again
            goals = [f"-j{self.toolchain.jobs}", arch.goal, *(["modules"] if modular else [])]
            with progress.task(variant.title(layout), total=self._objects_left(written)) as task:
                make(self.objects, goals, {}, task.advance)
            if whole:
                self._counted.write_text(str(task.done), encoding="utf-8")
            staged = making / "staged"
            modules = staged / "lib/modules" / self._release()
            modules.mkdir(parents=True)
            if modular:
                stripped = [f"INSTALL_MOD_PATH={staged}", "INSTALL_MOD_STRIP=1"]
                make(self.objects, [*stripped, "modules_install"], {})
        if arch.headers or modular:
            self._pack(modules, making / "headers.squashfs", modular=modular)
        shutil.rmtree(staged)
        shutil.copyfile(log, self._linked / "build.log")
        shutil.copyfile(config, self._linked / "config")
        return self.objects / arch.built

    def _release(self) -> str:
        path = self.objects / "include/config/kernel.release"
        return path.read_text(encoding="utf-8").strip()

    def _for_the_compiler(self) -> dict[str, str]:
        """Makes a compiler that links the kernel use our wrapper of ld."""
        if not self.configuration.arch.by_compiler:
            return {}
        programs = self.objects.with_name("programs-of-the-compiler")
        programs.mkdir(exist_ok=True)
        _write_script(programs / "ld", _LD)
        return {"COMPILER_PATH": str(programs)}

    def _add_types(self, kernel: Path) -> None:
        """Give ``kernel`` the types of one object instead of debug information."""
        types = kernel.with_name("types.btf")
        process.run(
            [
                "pahole", f"--btf_encode_detached={types}",
                str(self.objects / self.configuration.arch.types_from),
            ],
            hint="apt-get install dwarves",
        )  # fmt: skip
        process.run(["objcopy", "--strip-debug", f"--add-section=.BTF={types}", str(kernel)])
        types.unlink()

    def _pack(self, modules: Path, packed: Path, *, modular: bool) -> None:
        """Pack ``modules``, the future /lib/modules/RELEASE, with headers in it."""
        if modular and not (modules / "modules.dep").exists():
            # The kernel's own modules_install only warns.
            raise InfrastructureError("depmod is not installed", hint="apt-get install kmod")
        for link in ("build", "source"):
            (modules / link).unlink(missing_ok=True)
        packing.add_headers([self.directory, self.objects], modules)
        packing.squash(modules, packed)

    def _make(  # type: ignore[no-untyped-def]
        self,
        command: list[str],
        more_env: Mapping[str, str],
        output,
        log: Path,
        compiled: Callable[[], None] | None,
    ) -> None:
        # scripts/setlocalversion calls git, which must not find a repository around the tree.
        env = {**process.building(), **variables(self.directory), **more_env}
        env |= {
            "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
            "KBUILD_BUILD_USER": "harness",
            "KBUILD_BUILD_HOST": "harness",
        }
        with process.start(
            command,
            cwd=self.directory,
            env=env,
            hint="apt-get install make",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=False,
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
        """How many objects make has to compile after ``written`` changed, if known.

        For a first build, the count of the last first build with this configuration.
        """
        commands = list(self.objects.rglob(".*.o.cmd"))
        if not commands:
            counted = self._counted
            return int(counted.read_text(encoding="utf-8")) if counted.exists() else None
        # ccache may have made the paths relative, so only the part from the tree on is compared.
        top = self.directory.parent
        names = [b"/" + str(path.relative_to(top)).encode() for path in written]
        return sum(
            # Each module contains the release, which changes.
            command.name.endswith(".mod.o.cmd")
            or any(name in command.read_bytes() for name in names)
            for command in commands
        )


def _write_script(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)


def _build_error(log: Path, status: int) -> KernelError:
    shown = "\n".join(
        f"  | {line[:300]}" for line in causes(log.read_text(encoding="utf-8", errors="replace"))
    )
    return KernelError(
        f"the kernel does not build (make: {status})\n{process.harmless(shown)}",
        hint=f"the whole log: {log}",
    )


def causes(log: str) -> list[str]:
    """The lines of a build's ``log`` that say why it failed.

    The first line that names a cause with the lines around it, then further causes; if no line
    names one, the last lines before make stopped.
    """
    lines = log.splitlines()
    told = [line for line in lines if not _SAID_BY_MAKE.match(line) or "No rule to make" in line]
    at = [i for i, line in enumerate(told) if _CAUSE.search(line) and not _STEP.search(line)]
    if not at:
        last = [line for line in told if not _STEP.search(line)]
        return [*last[-_CONTEXT:], *lines[-1:]]
    first = at[0]
    around = list(range(max(0, first - 1), min(len(told), first + _CONTEXT)))
    beyond = [i for i in at if i > around[-1]][: _CAUSES - 1]
    return [told[i] for i in (*around, *beyond)]
