# SPDX-License-Identifier: MIT
"""Kernel command lines, as the kernel parses them and as each boot loader needs them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.agent.faults import AgentError

OURS = "receive_batching.release"
"""Marks a boot of the harness. The kernel ignores a name with a dot: a module's parameter."""

TOKEN = "receive_batching.boot"  # noqa: S105
"""Identifies one boot on the console: a kernel prints its command line when it starts."""

_LIMIT = 2048  # COMMAND_LINE_SIZE on x86, arch/x86/include/asm/setup.h
_ADDED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,:/=@+%-]{0,255}")
# Added by the loader, or the marks of an earlier boot of the harness.
_LOADERS_OWN = ("BOOT_IMAGE", "initrd", OURS, TOKEN)
# Every occurrence of these counts; of all others only the last.
_MANY = ("console", "earlycon", "earlyprintk", "netconsole")
# Parameters of the host's own line that would undo an added one, in either order.
_UNDOES = {
    "loglevel": ("quiet", "console=null", "console=ttynull", "console="),
    "softlockup_panic": ("nowatchdog", "nosoftlockup", "watchdog_thresh=0"),
    "nmi_watchdog": ("nowatchdog", "watchdog_thresh=0"),
}
_A_TOKEN = re.compile(r"[0-9a-f]{8,32}")


def words(line: str) -> list[str]:
    """The parameters of a command line without their quotes; a quoted one may hold spaces."""
    found = re.findall(r'(?:"[^"]*"?|[^\s"])+', line)
    return [plain for word in found if (plain := word.replace('"', ""))]


def is_ours(line: str) -> bool:
    """Was the kernel with this /proc/cmdline booted by the harness?"""
    return any(_name(word) == OURS for word in words(line))


def known_good(line: str) -> list[str]:
    """The parameters of /proc/cmdline that other kernels on this host need too."""
    return [word for word in words(line) if _name(word) not in _LOADERS_OWN]


def composed(known: Sequence[str], added: Sequence[str], release: str) -> list[str]:
    """The parameters for ``release``: the known-good ones, with ``added`` replacing same names.

    Raises:
        AgentError: the line is too long for the kernel, or a word of ``added`` is no parameter.
    """
    if len(added) > 64:
        raise AgentError("more than 64 parameters", kind="configuration")
    for word in added:
        if not isinstance(word, str) or not _ADDED.fullmatch(word):
            raise AgentError(
                f"{word!r:.80} is not a kernel parameter",
                kind="configuration",
                hint="NAME or NAME=VALUE without spaces and quotes",
            )
    names = {_name(word) for word in added}
    dropped = {*added, *(word for name in names for word in _UNDOES.get(name, ()))}
    replaced = names - {*_MANY}
    kept = [word for word in known if _name(word) not in replaced and word not in dropped]
    whole = _before_init(kept, *added, f"{OURS}={release}")
    if len(for_kernel(whole)) >= _LIMIT:
        raise AgentError(f"the command line for {release} is longer than {_LIMIT} characters")
    return whole


def marked(parameters: Sequence[str], token: str) -> list[str]:
    """``parameters`` with ``token`` as the mark of this boot.

    Raises:
        AgentError: ``token`` has another form.
    """
    if not isinstance(token, str) or not _A_TOKEN.fullmatch(token):
        raise AgentError(f"{token!r:.80} is not a boot token", kind="configuration")
    kept = [word for word in parameters if _name(word) != TOKEN]
    return _before_init(kept, f"{TOKEN}={token}")


def mounted_by_kernel(parameters: Sequence[str], partition: str) -> list[str]:
    """``parameters`` for a kernel without initramfs, which finds its root only by PARTUUID."""
    kept = [word for word in parameters if _name(word) not in ("root", "rootwait")]
    return [f"root=PARTUUID={partition}", "rootwait", *kept]


def for_kernel(parameters: Sequence[str]) -> str:
    """One line that the kernel parses back into ``parameters``."""
    return " ".join(f'"{word}"' if re.search(r"\s", word) else word for word in parameters)


def for_grub(parameters: Sequence[str]) -> str:
    """``parameters`` as words of a GRUB script; GRUB adds the kernel's quotes around spaces."""
    return " ".join(
        word if re.fullmatch(r"[A-Za-z0-9._,:/=@+%-]+", word) else _single_quoted(word)
        for word in parameters
    )


def _single_quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _name(word: str) -> str:
    return word.partition("=")[0]


def _before_init(kept: list[str], *added: str) -> list[str]:
    """``added`` behind ``kept``, but before ``--``: what follows that goes to init."""
    end = kept.index("--") if "--" in kept else len(kept)
    return [*kept[:end], *added, *kept[end:]]
