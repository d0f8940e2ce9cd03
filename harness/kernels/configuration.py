# SPDX-License-Identifier: MIT
"""Makes a kernel's ``.config`` and checks that it has the options asked for.

Hides how the configuration of another machine's kernel is reduced to what that machine
uses and made buildable here. It comes from a host or a user and is not trusted: only plain
options reach kconfig and make, and none that name files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base import cache
from harness.base.errors import ConfigurationError, KernelError
from harness.config import Kernel
from harness.kernels.arch import UM, X86, Arch

FRAGMENT = X86.fragment
MACHINE = Path(__file__).with_name("machine.config")

Make = Callable[[Path, Sequence[str], Mapping[str, str]], None]
"""Runs make with an object directory, more arguments and more environment."""

_MAX_BYTES = 2 << 20
_MAX_MODULES = 4096
_PAHOLE = 122
"""1.22 in the form of CONFIG_PAHOLE_VERSION: lib/Kconfig.debug wants 1.16, 1.21 with DWARF 5."""
_UNSET = re.compile(r"# (CONFIG_\w+) is not set", re.ASCII)
_SET = re.compile(
    # Strings end up in make and in shells, some of them without their quotes.
    r'(CONFIG_\w+)=(y|m|n|-?\d{1,20}|0[xX][0-9A-Fa-f]{1,16}|"[\w ./,:=+@%~()!*-]{0,1024}")',
    re.ASCII,
)
_MODULE = re.compile(r"\w{1,63}", re.ASCII)
_FILES_OF_THE_BUILD = {
    f"CONFIG_{name}"
    for name in (
        "ACPI_CUSTOM_DSDT_FILE",
        "BOOT_CONFIG_EMBED_FILE",
        "CFG80211_EXTRA_REGDB_KEYDIR",
        "EFI_SBAT_FILE",
        "EXTRA_FIRMWARE",
        "EXTRA_FIRMWARE_DIR",
        "INITRAMFS_SOURCE",
        "INTEGRITY_PLATFORM_KEYS",
        "MODULE_SIG_KEY",
        "SYSTEM_BLACKLIST_HASH_LIST",
        "SYSTEM_REVOCATION_KEYS",
        "SYSTEM_TRUSTED_KEYS",
        "UNUSED_KSYMS_WHITELIST",
    )
}


@dataclass(frozen=True)
class HostConfig:
    """A host's own kernel: the text of its configuration and its loaded modules."""

    config: str
    modules: tuple[str, ...]

    @classmethod
    def kept(cls, name: str) -> HostConfig | None:
        """The last result of :meth:`settled` for the host ``name``."""
        try:
            said = json.loads(_kept(name).read_text(encoding="utf-8"))
            return cls(config=str(said["config"]), modules=tuple(said["modules"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def settled(self, name: str) -> HostConfig:
        """The same with all modules seen before on the host ``name`` under this config.

        The kernel to build must not depend on which modules are loaded at this moment.
        """
        kept = _kept(name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with cache.locked(kept, what=f"the configuration of {name}"):
            before = HostConfig.kept(name) or self
            seen = set(before.modules) if before.config == self.config else set()
            whole = replace(self, modules=tuple(sorted(seen | set(self.modules))))
            new = kept.with_name(f".{kept.name}.new")
            new.write_text(
                json.dumps({"config": whole.config, "modules": whole.modules}), encoding="utf-8"
            )
            new.replace(kept)
        return whole


def _kept(name: str) -> Path:
    return cache.root() / "hosts" / f"{name}.json"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How the ``.config`` is made: the fragments over ``base``, or over allnoconfig."""

    identity: str
    fragments: tuple[Path, ...]
    """If several set an option, the last one counts."""
    base: str | None = None
    modules: tuple[str, ...] | None = None
    """The only modules to build; None: all."""
    arch: Arch = X86
    options: tuple[str, ...] = ()
    """Lines that count more than all fragments."""

    def with_options(self, *options: str) -> Configuration:
        """The same with ``options``, each such as CONFIG_X=y; =n leaves X out."""
        if not options:
            return self
        lines = tuple(
            f"# {name} is not set" if value == "n" else f"{name}={value}"
            for name, _, value in (option.partition("=") for option in options)
        )
        return replace(self, identity=cache.digest(self.identity, *lines), options=lines)

    def on(self, kernel: str) -> Configuration:
        """The same for a ``kernel`` such as linux-6.1, with that version's own fragment."""
        own = self.arch.fragment_of(kernel)
        if self.fragments != (self.arch.fragment,) or not own.is_file():
            return self
        identity = cache.digest(self.identity, cache.file_sha256(own))
        return replace(self, identity=identity, fragments=(*self.fragments, own))

    @property
    def asked(self) -> str:
        """The text of all fragments, and the options over them."""
        texts = [fragment.read_text(encoding="utf-8") for fragment in self.fragments]
        return "".join([*texts, *(f"{line}\n" for line in self.options)])

    def write(self, objects: Path, make: Make) -> None:
        """Write ``objects/.config`` atomically."""
        if self.base is None:
            fragment = objects.with_name(f"{objects.name}-fragment")
            fragment.write_text(self.asked, encoding="utf-8")
            make(objects, [f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"], {})
            fragment.unlink()
            return
        aside = objects.with_name(f"{objects.name}-config")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        made = aside / ".config"
        made.write_text(self.base, encoding="utf-8")
        make(aside, ["olddefconfig"], {})
        if self.modules is not None:
            loaded = aside / "modules"
            loaded.write_text("".join(f"{name} 0 0\n" for name in self.modules), encoding="utf-8")
            make(aside, ["localmodconfig"], {"LSMOD": str(loaded)})
        made.write_text(merged(made.read_text(encoding="utf-8"), self.asked), encoding="utf-8")
        make(aside, ["olddefconfig"], {})
        made.rename(objects / ".config")
        shutil.rmtree(aside)

    def check(self, config: str) -> None:
        """Raise a :class:`KernelError` if ``config`` lacks an option of the fragments."""
        have = options(config)
        asked = options(self.asked)
        lost = [line for name, line in asked.items() if not _given(line, have.get(name))]
        if lost:
            pahole = _pahole_problem(lost, have)
            raise KernelError(
                f"the kernel's configuration does not take {', '.join(lost)}"
                + (f"\n  {pahole}" if pahole else ""),
                hint="apt-get install dwarves; if it is too old, from a newer release (backports)"
                if pahole
                else "the source does not have them, or what they depend on; is it a known base?",
            )


def benchmark(arch: Arch = X86) -> Configuration:
    """The configuration of the small kernel that a virtual or native bed boots."""
    fragment = arch.fragment
    return Configuration(identity=cache.file_sha256(fragment), fragments=(fragment,), arch=arch)


def chosen(kernel: Kernel, host: HostConfig | None = None, arch: Arch = X86) -> Configuration:
    """The configuration that ``kernel.config`` names; ``auto`` is the host's if one is given.

    Raises:
        ConfigurationError: ``host`` is asked for but not given, the file does not exist, or it
            is not a kernel configuration or not for ``arch``.
    """
    if arch is UM:
        if kernel.config not in ("auto", "benchmark"):
            raise ConfigurationError(
                f"kernel.config is {kernel.config}, but a user-mode kernel has its own",
                hint="set kernel.config: auto, or choose a bed of another kind with --bed",
            )
        return benchmark(arch)
    if isinstance(kernel.config, Path):
        return _over(_read(kernel.config), None, str(kernel.config))
    if kernel.config == "benchmark" or (kernel.config == "auto" and host is None):
        return benchmark()
    if host is None:
        raise ConfigurationError(
            "kernel.config is host, but this bed has no host with a kernel of its own",
            hint="name a bed whose dut is of kind ssh; for a virtual bed set config: benchmark",
        )
    for name in host.modules[:_MAX_MODULES]:
        if not _MODULE.fullmatch(name):
            raise ConfigurationError(f"the host reports a module named {name[:80]!a}")
    if len(host.modules) > _MAX_MODULES:
        raise ConfigurationError(f"the host reports {len(host.modules)} modules")
    return _over(host.config, tuple(sorted(set(host.modules))), "the host's configuration")


def _over(text: str, modules: tuple[str, ...] | None, whose: str) -> Configuration:
    base = clean(text, whose)
    return Configuration(
        identity=cache.digest(base, modules, cache.file_sha256(MACHINE)),
        fragments=(MACHINE,),
        base=base,
        modules=modules,
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1).decode(errors="replace")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def clean(text: str, whose: str) -> str:
    """The options in ``text``, without those that name files of the building machine.

    Raises:
        ConfigurationError: it is not a kernel configuration, or has an option that is not plain.
    """
    if len(text) > _MAX_BYTES:
        raise ConfigurationError(f"{whose} is larger than {_MAX_BYTES >> 20} MiB")
    kept = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("CONFIG_"):
            if line.partition("=")[0] in _FILES_OF_THE_BUILD:
                continue
            if not _SET.fullmatch(line):
                raise ConfigurationError(
                    f"line {number} of {whose} is not a plain option: {line[:80]!a}",
                    hint="expected y, m, n, a number, or a string without quotes, $ and similar",
                )
            kept.append(line)
        elif _UNSET.fullmatch(line):
            kept.append(line)
    if not any(line.startswith("CONFIG_") for line in kept):
        raise ConfigurationError(
            f"{whose} has no options", hint="expected a .config, such as /boot/config-RELEASE"
        )
    return "".join(f"{line}\n" for line in kept)


def options(text: str) -> dict[str, str]:
    """The lines of a configuration by the option they set or unset; the last line counts."""
    found = {}
    for line in text.splitlines():
        if match := _SET.fullmatch(line) or _UNSET.fullmatch(line):
            found[match[1]] = line
    return found


def merged(base: str, fragment: str) -> str:
    """``base`` with the options of ``fragment``; an option built in does not become a module."""
    have = options(base)
    for name, line in options(fragment).items():
        if not _given(line, have.get(name)):
            have.pop(name, None)  # of a choice's options, kconfig takes the last one set
            have[name] = line
    return "".join(f"{line}\n" for line in have.values())


def _pahole_problem(lost: Sequence[str], have: Mapping[str, str]) -> str | None:
    """Why BTF was not taken: kconfig only knows the version of pahole."""
    if not any(line.startswith("CONFIG_DEBUG_INFO_BTF=") for line in lost):
        return None
    said = have.get("CONFIG_PAHOLE_VERSION", "").rpartition("=")[2]
    if not said.isdigit() or int(said) >= _PAHOLE:
        return None
    if int(said) == 0:
        return "types (BTF) need pahole, which is not installed or reports no version"
    return f"pahole is {int(said) / 100:.2f}, too old for types (BTF): 1.22 or later is needed"


def _given(asked: str, have: str | None) -> bool:
    """Does the line ``have``, if any, satisfy the line ``asked``?"""
    if have is None:
        return asked.startswith("#")
    return have == asked or (asked.endswith("=m") and have.endswith("=y"))
