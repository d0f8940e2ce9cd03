# SPDX-License-Identifier: MIT
"""Boots a kernel of the harness once, so that any power cycle returns to the known-good one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from harness.agent import packages, programs
from harness.agent.faults import AgentError

from . import cmdline
from .kernels import a_release
from .loaders import loader_of
from .record import Places, Record, changing
from .systemd_boot import secure_boot

_KEXEC_S = 60.0
_GO_AFTER_S = 0.5
_LOADED = "sys/kernel/kexec_loaded"


class BootControl:
    """The calls ``boot_*``."""

    def __init__(self, places: Places | None = None) -> None:
        self._places = places or Places()

    def can(self) -> dict[str, Any]:
        """Which ways of booting are safe on this host, and why the others are not."""
        loader = loader_of(self._places)
        why = self._loader_why_not()
        kexec_why = self._kexec_why_not()
        return {
            "kexec": kexec_why is None,
            "kexec_why": kexec_why,
            "loader": loader.name if loader and why is None else None,
            "loader_why": why,
        }

    def prepare(self, *, release: str, method: str, token: str | None = None) -> dict[str, Any]:
        """Load ``release`` for kexec, or set it as the boot loader's one-shot entry.

        ``token`` goes on its command line, which the kernel prints when it starts.

        Raises:
            AgentError: the host cannot do that, the kernel is not installed completely, or
                a one-shot boot is set that is not of the harness.
        """
        _one_of(method, "kexec", "one-shot")
        with changing(self._places) as record:
            entry = record.data["kernels"].get(a_release(release))
            if entry is None or not entry["complete"]:
                have = ", ".join(record.data["kernels"]) or "none"
                raise AgentError(
                    f"{release} is not installed", kind="configuration", hint=f"installed: {have}"
                )
            self._disarm(record)
            why = self._kexec_why_not() if method == "kexec" else self._loader_why_not()
            if why is not None:
                raise AgentError(f"{method} cannot be used on this host: {why}")
            if token is not None:
                entry["cmdline"] = cmdline.marked(entry["cmdline"], token)
            boot_id = self._boot_id()
            record.data["armed"] = {"release": release, "method": method, "boot_id": boot_id}
            record.data["left"] = None
            record.save()
            if method == "kexec":
                self._kexec_load(release, entry["cmdline"])
            else:
                loader = loader_of(self._places)
                assert loader is not None
                if (other := loader.pending()) is not None:
                    raise AgentError(
                        f"a one-shot boot that is not of the harness is set already: {other!r}",
                        hint="boot it, or clear it with grub-editenv … unset next_entry",
                    )
                loader.entries(record.complete())
                loader.arm(release)
            return {"release": release, "method": method, "cmdline": entry["cmdline"]}

    def go(self, *, method: str) -> dict[str, Any]:
        """Leave this kernel within a second after the answer.

        ``known-good`` disarms everything and reboots into the default.

        Raises:
            AgentError: the boot that was prepared is no longer set.
        """
        _one_of(method, "kexec", "one-shot", "known-good")
        with changing(self._places) as record:
            if method == "known-good":
                self._disarm(record)
                if self._runs_ours(record):
                    left = {"release": self._places.release(), "boot_id": self._boot_id()}
                    record.data["left"] = left
                    record.save()
            else:
                self._check_armed(record, method)
            if method != "kexec" and (switch := self._kexec_instead()) is not None:
                switch.touch(mode=0o600)
            systemd = (self._places.root / "run/systemd/system").is_dir()
            self._leave(_leaving(method, systemd=systemd))
        return {"method": method, "boot_id": self._boot_id()}

    def cancel(self) -> dict[str, Any]:
        """Clear a one-shot boot of the harness and unload a kexec kernel."""
        with changing(self._places) as record:
            was = record.data["armed"]
            self._disarm(record)
            return {"was": was}

    def state(self) -> dict[str, Any]:
        """What runs, what boots next, and whether the default is unchanged.

        ``ours``: the harness installed or booted the running kernel. ``left``: the last boot of
        the harness that ended on request. ``missed``: the release that was prepared, if another
        one booted. ``one_shot_pending``: a release of the harness, or the name of another entry.
        ``one_shot_taken``: the release whose entry the loader booted last, if it records that.
        """
        record = Record(self._places)
        loader = loader_of(self._places)
        known = record.data["known_good"]
        default = loader.default() if loader else None
        release, boot_id = self._places.release(), self._boot_id()
        armed = record.data["armed"]
        happened = armed is not None and armed["boot_id"] != boot_id
        missed = armed["release"] if happened and armed["release"] != release else None
        return {
            "release": release,
            "boot_id": boot_id,
            "ours": self._runs_ours(record),
            "left": record.data["left"],
            "known_good": known["release"] if known else None,
            "default": default,
            "default_untouched": (known is None or known["default"] == default)
            and "receive-batching" not in str(default),
            "default_recorded": known["default"] if known else None,
            "one_shot_pending": loader.pending() if loader else None,
            "one_shot_taken": loader.taken() if loader else None,
            "kexec_loaded": self._places.text(_LOADED) == "1",
            "armed": None if happened else armed,
            "missed": missed,
        }

    def _runs_ours(self, record: Record) -> bool:
        booted_by_us = cmdline.is_ours(self._places.text("proc/cmdline") or "")
        return booted_by_us or self._places.release() in record.data["kernels"]

    def _check_armed(self, record: Record, method: str) -> None:
        armed = record.data["armed"]
        if armed is None or (armed["method"], armed["boot_id"]) != (method, self._boot_id()):
            raise AgentError(f"nothing is prepared for {method} since this host started")
        loader = loader_of(self._places)
        if method == "kexec" and self._places.text(_LOADED) != "1":
            raise AgentError(f"{armed['release']} is no longer loaded for kexec")
        if method == "one-shot" and (loader is None or loader.pending() != armed["release"]):
            raise AgentError(f"the one-shot boot of {armed['release']} is no longer set")

    def _disarm(self, record: Record) -> None:
        loader = loader_of(self._places)
        if loader is not None:
            loader.disarm()
        if self._places.text(_LOADED) == "1" and programs.found("kexec"):
            programs.run(["kexec", "--unload"], timeout_s=_KEXEC_S)
        if record.data["armed"] is not None:
            record.data["armed"] = None
            record.save()

    def _kexec_load(self, release: str, words: list[str]) -> None:
        at = self._places.kernels / release
        initramfs = at / "initrd.img"
        arguments = [
            "--load",
            *([f"--initrd={initramfs}"] if initramfs.is_file() else []),
            f"--command-line={cmdline.for_kernel(words)}",
            str(at / "vmlinuz"),
        ]
        try:
            # The kernel reads the file itself; older kernels and some configurations cannot.
            programs.run(["kexec", "--kexec-file-syscall", *arguments], timeout_s=_KEXEC_S)
        except AgentError as first:
            try:
                programs.run(["kexec", "--kexec-syscall", *arguments], timeout_s=_KEXEC_S)
            except AgentError as error:
                raise AgentError(f"{first}; then {error}") from error
        if self._places.text(_LOADED) != "1":
            raise AgentError(f"kexec reports success for {release}, but no kernel is loaded")

    def _kexec_why_not(self) -> str | None:
        if programs.found("kexec") is None:
            return f"kexec is not installed: {packages.install('kexec-tools')}"
        if self._places.text(_LOADED) is None:
            return "the running kernel has no kexec (CONFIG_KEXEC, CONFIG_KEXEC_FILE)"
        if self._places.text("proc/sys/kernel/kexec_load_disabled") == "1":
            return "kexec is switched off until the next boot (kernel.kexec_load_disabled)"
        lockdown = re.search(
            r"\[(\w+)\]", self._places.text("sys/kernel/security/lockdown") or "[none]"
        )
        if lockdown and lockdown[1] != "none":
            return f"lockdown is {lockdown[1]}: only signed kernels (Secure Boot?)"
        return None

    def _loader_why_not(self) -> str | None:
        loader = loader_of(self._places)
        if loader is None:
            return "neither GRUB nor systemd-boot was found"
        if secure_boot(self._places):
            return "Secure Boot is on, and kernels under test are not signed"
        return loader.why_not()

    def _kexec_instead(self) -> Path | None:
        """The file that stops Debian's kexec-tools from turning the next reboot into a kexec.

        None if they would not do so. They remove the file themselves.
        """
        defaults = self._places.text("etc/default/kexec") or ""
        last = re.findall(r"^\s*LOAD_KEXEC=(\S*)", defaults, re.MULTILINE)
        if not last or last[-1].strip("'\"") != "true":
            return None
        script = self._places.text("etc/init.d/kexec-load") or ""
        named = re.search(r"^NOKEXECFILE=/([\w.-]+)$", script, re.MULTILINE)
        return self._places.root / named[1] if named else None

    def _leave(self, command: list[str]) -> None:
        """Run ``command`` after the answer was sent, in a process that outlives this agent."""
        os.sync()
        script = 'sleep "$1"; shift; exec "$@"'
        subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", str(_GO_AFTER_S), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "SYSTEMCTL_SKIP_AUTO_KEXEC": "1"},
        )

    def _boot_id(self) -> str | None:
        return self._places.text("proc/sys/kernel/random/boot_id")


def _leaving(method: str, *, systemd: bool) -> list[str]:
    if systemd:
        return ["systemctl", "--no-block", "kexec" if method == "kexec" else "reboot"]
    return [programs.found("kexec") or "kexec", "-e"] if method == "kexec" else ["reboot"]


def _one_of(method: object, *methods: str) -> None:
    if method not in methods:
        raise AgentError(
            f"unknown way to boot {method!r:.40}",
            kind="configuration",
            hint=f"one of: {', '.join(methods)}",
        )
