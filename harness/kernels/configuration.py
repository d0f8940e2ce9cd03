# SPDX-License-Identifier: MIT
"""What a kernel's ``.config`` is made from, and whether it became what was asked for.

Hides how the configuration of another machine's kernel is cut down to what that
machine uses and made fit to be built here. Such a configuration is what a host or a
user sent: only plain options of it reach kconfig and make, none that name files.
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
"""As in CONFIG_PAHOLE_VERSION: lib/Kconfig.debug asks for 1.16, and for 1.21 with DWARF 5."""
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
    """A host's own kernel: the text of its configuration, the modules it has loaded."""

    config: str
    modules: tuple[str, ...]

    @classmethod
    def kept(cls, name: str) -> HostConfig | None:
        """What :meth:`settled` gave for the host ``name`` last."""
        try:
            said = json.loads(_kept(name).read_text(encoding="utf-8"))
            return cls(config=str(said["config"]), modules=tuple(said["modules"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def settled(self, name: str) -> HostConfig:
        """The same with all modules that the host ``name`` had loaded before under this config.

        What happens to be loaded when a host is asked must not make another kernel of it.
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
    """How the ``.config`` comes to be: the fragments over ``base``, or over nothing."""

    identity: str
    fragments: tuple[Path, ...]
    """Of an option in several of them the last one counts."""
    base: str | None = None
    modules: tuple[str, ...] | None = None
    """Modules other than these are left out; None leaves out none."""
    arch: Arch = X86

    def on(self, kernel: str) -> Configuration:
        """The same for a ``kernel`` such as linux-6.1, with what that names otherwise."""
        own = self.arch.fragment_of(kernel)
        if self.fragments != (self.arch.fragment,) or not own.is_file():
            return self
        identity = cache.digest(self.identity, cache.file_sha256(own))
        return replace(self, identity=identity, fragments=(*self.fragments, own))

    @property
    def asked(self) -> str:
        """The text of all fragments."""
        return "".join(fragment.read_text(encoding="utf-8") for fragment in self.fragments)

    def write(self, objects: Path, make: Make) -> None:
        """Write ``objects/.config``, whole or not at all."""
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
            raise KernelError(
                f"the kernel's configuration does not take {', '.join(lost)}"
                + "".join(f"\n  {why}" for why in _lacking_tools(lost, have)),
                hint="the source lacks them, or what they depend on; is it one of the known bases?"
                if not _lacking_tools(lost, have)
                else "apt-get install dwarves, of a newer release (backports) if it has too old a "
                "one",
            )


def benchmark(arch: Arch = X86) -> Configuration:
    """The small kernel that a virtual or native bed boots."""
    fragment = arch.fragment
    return Configuration(identity=cache.file_sha256(fragment), fragments=(fragment,), arch=arch)


def chosen(kernel: Kernel, host: HostConfig | None = None, arch: Arch = X86) -> Configuration:
    """The configuration that ``kernel.config`` names; ``auto`` is the host's if one is given.

    Raises:
        ConfigurationError: it is the host's and no host is given, there is no such
            file, or it is not a kernel's configuration or not of ``arch``.
    """
    if arch is UM:
        if kernel.config not in ("auto", "benchmark"):
            raise ConfigurationError(
                f"kernel.config is {kernel.config}, and a user-mode kernel has one of its own",
                hint="say kernel.config: auto, or name a bed of another kind with --bed",
            )
        return benchmark(arch)
    if isinstance(kernel.config, Path):
        return _over(_read(kernel.config), None, str(kernel.config))
    if kernel.config == "benchmark" or (kernel.config == "auto" and host is None):
        return benchmark()
    if host is None:
        raise ConfigurationError(
            "kernel.config is the host's, and there is no host to ask",
            hint="name a bed whose dut is of kind ssh; for a virtual bed write config: benchmark",
        )
    for name in host.modules[:_MAX_MODULES]:
        if not _MODULE.fullmatch(name):
            raise ConfigurationError(f"the host names a module {name[:80]!a}")
    if len(host.modules) > _MAX_MODULES:
        raise ConfigurationError(f"the host names {len(host.modules)} modules")
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
    """The options in ``text``, without those that name files of the machine that builds.

    Raises:
        ConfigurationError: it is no kernel's configuration, or not a harmless one.
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
                    f"line {number} of {whose} is no plain option: {line[:80]!a}",
                    hint="expected y, m, n, a number, or a string without quotes, $ and the like",
                )
            kept.append(line)
        elif _UNSET.fullmatch(line):
            kept.append(line)
    if not any(line.startswith("CONFIG_") for line in kept):
        raise ConfigurationError(
            f"{whose} holds no options", hint="expected a .config, such as /boot/config-RELEASE"
        )
    return "".join(f"{line}\n" for line in kept)


def options(text: str) -> dict[str, str]:
    """The lines of a configuration by the option they set or unset; the last one counts."""
    found = {}
    for line in text.splitlines():
        if match := _SET.fullmatch(line) or _UNSET.fullmatch(line):
            found[match[1]] = line
    return found


def merged(base: str, fragment: str) -> str:
    """``base`` with the options of ``fragment``, which make no module of what is built in."""
    have = options(base)
    for name, line in options(fragment).items():
        if not _given(line, have.get(name)):
            have.pop(name, None)  # of the options of a choice kconfig takes the last
            have[name] = line
    return "".join(f"{line}\n" for line in have.values())


def _lacking_tools(lost: Sequence[str], have: Mapping[str, str]) -> list[str]:
    """Why options were not taken, of which kconfig only asks a program's version."""
    if not any(line.startswith("CONFIG_DEBUG_INFO_BTF=") for line in lost):
        return []
    said = have.get("CONFIG_PAHOLE_VERSION", "").rpartition("=")[2]
    if not said.isdigit() or int(said) >= _PAHOLE:
        return []
    if int(said) == 0:
        return ["types (BTF) are made by pahole, which is not installed or says no version"]
    return [f"pahole is {int(said) / 100:.2f}, too old for types (BTF): 1.22 or later is needed"]


def _given(asked: str, have: str | None) -> bool:
    """Does the line ``have`` (None: there is none) give what the line ``asked`` asks for?"""
    if have is None:
        return asked.startswith("#")
    return have == asked or (asked.endswith("=m") and have.endswith("=y"))
