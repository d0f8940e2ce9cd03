# SPDX-License-Identifier: MIT
"""Kernel command lines: as the kernel reads them, and as each way of booting takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.agent.faults import AgentError

OURS = "receive_batching.release"
"""Marks a boot as one of ours. The dot makes the kernel ignore it: it looks like a module's."""

TOKEN = "receive_batching.boot"  # noqa: S105
"""Tells one boot of ours from every other: kernels print their command line as they begin."""

_LIMIT = 2048  # COMMAND_LINE_SIZE on x86, arch/x86/include/asm/setup.h
_ADDED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,:/=@+%-]{0,255}")
# What the loader itself puts there, and what marks another boot of ours.
_LOADERS_OWN = ("BOOT_IMAGE", "initrd", OURS, TOKEN)
# Of these each one given counts; of all others the last.
_MANY = ("console", "earlycon", "earlyprintk", "netconsole")
# What on the host's own line undoes a parameter that is added, whichever comes last.
_UNDOES = {
    "loglevel": ("quiet", "console=null", "console=ttynull", "console="),
    "softlockup_panic": ("nowatchdog", "nosoftlockup", "watchdog_thresh=0"),
    "nmi_watchdog": ("nowatchdog", "watchdog_thresh=0"),
}
_A_TOKEN = re.compile(r"[0-9a-f]{8,32}")


def words(line: str) -> list[str]:
    """The parameters of a command line without their quotes; quotes keep spaces together."""
    return [
        word.replace('"', "")
        for word in re.findall(r'(?:"[^"]*"?|[^\s"])+', line)
        if word.replace('"', "")
    ]


def is_ours(line: str) -> bool:
    """Is /proc/cmdline that of a boot of ours?"""
    return any(word.partition("=")[0] == OURS for word in words(line))


def known_good(line: str) -> list[str]:
    """The parameters of /proc/cmdline that another kernel on this host needs, too."""
    return [word for word in words(line) if word.partition("=")[0] not in _LOADERS_OWN]


def composed(known: Sequence[str], added: Sequence[str], release: str) -> list[str]:
    """The parameters for ``release``: the known good ones, with ``added`` in place of its own.

    Raises:
        AgentError: the kernel would cut the line short, or a word of ``added`` is not one.
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
    names = {word.partition("=")[0] for word in added}
    replaced = names - {*_MANY}
    undoing = {word for name in names for word in _UNDOES.get(name, ())}
    kept = [
        word
        for word in known
        if word.partition("=")[0] not in replaced and word not in added and word not in undoing
    ]
    # What stands behind -- is for init.
    end = kept.index("--") if "--" in kept else len(kept)
    whole = [*kept[:end], *added, f"{OURS}={release}", *kept[end:]]
    if len(for_kernel(whole)) >= _LIMIT:
        raise AgentError(f"the command line for {release} is longer than {_LIMIT} characters")
    return whole


def marked(parameters: Sequence[str], token: str) -> list[str]:
    """The same for the one boot that ``token`` names.

    Raises:
        AgentError: it is none.
    """
    if not isinstance(token, str) or not _A_TOKEN.fullmatch(token):
        raise AgentError(f"{token!r:.80} is no mark of a boot", kind="configuration")
    kept = [word for word in parameters if word.partition("=")[0] != TOKEN]
    end = kept.index("--") if "--" in kept else len(kept)
    return [*kept[:end], f"{TOKEN}={token}", *kept[end:]]


def mounted_by_kernel(parameters: Sequence[str], partition: str) -> list[str]:
    """The same for a kernel without initramfs, which knows partitions by their PARTUUID alone."""
    kept = [word for word in parameters if word.partition("=")[0] not in ("root", "rootwait")]
    return [f"root=PARTUUID={partition}", "rootwait", *kept]


def for_kernel(parameters: Sequence[str]) -> str:
    """One line the kernel takes apart again."""
    return " ".join(f'"{word}"' if re.search(r"\s", word) else word for word in parameters)


def for_grub(parameters: Sequence[str]) -> str:
    """Words of a GRUB script. GRUB itself quotes for the kernel what holds a space."""
    return " ".join(
        word if re.fullmatch(r"[A-Za-z0-9._,:/=@+%-]+", word) else _single_quoted(word)
        for word in parameters
    )


def _single_quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
