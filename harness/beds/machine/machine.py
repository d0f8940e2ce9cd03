# SPDX-License-Identifier: MIT
"""A machine reached by ssh: a kernel installed next to its own, booted once, and left again.

Hides how a machine boots: kexec or the boot loader's one-shot entry, waiting for a host that
goes away and comes back, and recognising which kernel came back. Any power cycle returns to
the kernel that the machine ran when the campaign began (the known-good one).
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import (
    ConfigurationError,
    DiedLeavingError,
    HarnessError,
    HostLostError,
    HostRefusedError,
    InfrastructureError,
    KernelError,
)
from harness.base.progress import Progress
from harness.beds.access.channel import RemoteAgent
from harness.beds.access.ssh import UPLOADS, SshTarget
from harness.beds.bed import kernel_death
from harness.beds.machine import console, firmware_time, power
from harness.config import NetconsoleConsole, SshHost
from harness.kernels import Image, packed

_ASK_AGAIN_S = 2.0
_SILENT_S = 120.0
_BANNER = "Linux version "
_FIRMWARE = 1.0
"""Factor on ``boot.timeout_s``: the time allowed for the firmware until it was measured. Servers
take up to ten minutes.
"""
_REFUSALS = 5
"""A booting system may refuse this many logins before it accepts one."""
_CMDLINE = [
    "panic=10",
    "oops=panic",
    "softlockup_panic=1",
    # The parameter for kernel.hardlockup_panic in all bases (kernel/watchdog.c).
    "nmi_watchdog=panic",
    # On a host that boots quiet, neither the kernel's start nor warnings would be seen.
    "loglevel=7",
    "systemd.watchdog_sec=60",
]
"""A dying kernel says so and reboots into the known-good one. A hanging kernel should do the same
where the machine has a watchdog and the kernel its driver; that was not tried.
"""


class Machine:
    """One machine: reached, watched, booted, power-cycled."""

    def __init__(self, name: str, config: SshHost, directory: Path, progress: Progress) -> None:
        self.name, self.config = name, config
        self.ssh = SshTarget.of(config)
        self.known_good: str | None = None
        self.boot_id: str | None = None
        self.release: str | None = None
        self._log = directory / f"{name}-agent.log"
        self._console_log = directory / f"{name}-console.log"
        self._progress = progress
        self._power = power.connect(config.power, name) if config.power else None
        self._console: console.Console | None = None
        self._since = 0
        self._left_behind = False
        self._token: str | None = None
        self._own_from: int | None = None
        self._by_firmware, self._cycled, self._under_way, self._left_at_s = True, False, False, 0.0
        self._begun_s: float | None = None
        self._booted: list[str] = []
        self._mac: str | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def longest_boot_s(self) -> float:
        """The longest duration of :meth:`boot`, including a power cycle."""
        return 2.0 * (self.config.boot.timeout_s + self.patience_s)

    @property
    def patience_s(self) -> float:
        """The longest time until a rebooting machine answers, including its firmware."""
        return self.config.boot.timeout_s + self._firmware_s

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record its console, if it has one."""
        if self.config.console is None:
            yield
            return
        with console.start(self.config.console, self.name, self._console_log) as self._console:
            self._console.check()
            self._mark()
            yield

    def said(self) -> str:
        """The console output since it was last told to boot."""
        if self._console is None:
            return ""
        return self._console.text(since=self._since)

    def said_since_start(self) -> str:
        """The same from the start of the new kernel on, without the old kernel's output."""
        return self._parted()[1]

    def _parted(self) -> tuple[str, str]:
        """The console output of the kernel that was left, and that of the new one.

        A kernel of ours is recognised by the token of its boot or by its release. The host's own
        may boot quiet: until a kernel is seen to start, all output counts for the old one.
        """
        said = self.said()
        if not self._left_behind:
            before, banner, begun = said.partition(_BANNER)
            return (before, banner + begun) if banner else ("", said)
        begins = self._beginning(said)
        if begins is not None:
            return said[:begins], said[begins:]
        if self._own_from is not None and self._console is not None:
            return said, self._console.text(since=self._own_from)
        return said, ""

    def _beginning(self, said: str) -> int | None:
        """The offset in ``said`` at which the ordered kernel starts; None: not seen yet."""
        if self._token is None:
            at = said.find(_BANNER)
            return None if at < 0 else at
        if (marked := said.find(self._token)) >= 0:
            return max(said.rfind(_BANNER, 0, marked), 0) or marked
        at = said.find(f"{_BANNER}{self.release} ")
        return None if at < 0 else at

    def check(self) -> None:
        """Raise a :class:`KernelError` if its console shows that its kernel died."""
        if death := kernel_death(self.said_since_start()):
            raise KernelError(
                f"{self.name}: the kernel died: {death}", hint=f"console: {self._console_log}"
            )

    def reached(self) -> RemoteAgent:
        """An agent on it; waits for a host that does not answer, then power-cycles it.

        Raises:
            InfrastructureError: it does not come back, or answers and refuses the login.
        """
        agent = self._reached()
        self._mark()  # earlier console output does not belong to what follows
        return agent.watched_by(self.check)

    def _reached(self) -> RemoteAgent:
        try:
            self.ssh.run(["true"])
            return self.ssh.start_agent(host=self.name, log=self._log)
        except HostLostError:
            pass
        try:
            return self._answering(lambda _: True)
        except HostLostError as error:
            self._progress.say(f"{self.name}: {error.message}")
            self.cycle(error)
            return self._answering(lambda _: True)

    def cycle(self, why: HarnessError) -> None:
        """Power-cycle it.

        Raises:
            HarnessError: ``why``, if hosts.yaml has no power for it.
        """
        if self._power is None:
            raise InfrastructureError(
                f"{why.message}\n  and {self.name} has no power in hosts.yaml",
                hint=f"boot {self.name} by hand, and set hosts.{self.name}.power in hosts.yaml",
            ) from why
        self._progress.say(f"{self.name}: power cycle")
        self._power.cycle()
        self._cycled = True
        self.ssh.forget()

    def boot(self, agent: RemoteAgent, image: Image, note: Callable[..., None]) -> RemoteAgent:
        """Install ``image`` by ``agent`` if it is missing, boot it once; an agent on it.

        Raises:
            KernelError: the kernel did not come up; the known-good one is up again.
            DiedLeavingError: the previous kernel died on reboot; the known-good one is up again.
            InfrastructureError: the host does not answer, or booted something else than asked.
        """
        with contextlib.closing(agent):
            before = self.boot_id = str(agent.ready["boot_id"])
            method = self._method(agent)
            there = agent.kernel_list()
            if image.release not in {one["release"] for one in there if one["complete"]}:
                self._install(agent, image, [one["release"] for one in there])
            self._booted = [one for one in self._booted if one != image.release] + [image.release]
            token = secrets.token_hex(8)
            agent.boot_prepare(release=image.release, method=method, token=token)
            note("leaving", boot_id=before, release=image.release)
            self.boot_id, self.release = None, image.release
            self._leave(agent, method, token)
        up = self._came_up(image.release, agent)
        with contextlib.ExitStack() as refused:
            refused.callback(up.close)
            self.boot_id = up.ready["boot_id"]
            note("up", boot_id=self.boot_id)
            state = up.boot_state()
            stays = "an entry is still armed" if state["one_shot_pending"] else None
            if stays or not state["default_untouched"]:
                raise InfrastructureError(
                    f"{self.name}: {image.release} would be booted again: "
                    f"{stays or 'the default entry has changed'}",
                    hint=f"harness restore {self.name}; then check its boot loader",
                )
            self._send_console(up)
            refused.pop_all()
        return up

    def runs_its_own(self, agent: RemoteAgent) -> bool:
        """Cancel a prepared boot; whether the known-good kernel runs."""
        agent.boot_cancel()
        if self.known_good is None:
            return True
        as_met = agent.ready["release"] == self.known_good
        return as_met and not agent.boot_state()["ours"]

    def back_to_known_good(self, agent: RemoteAgent) -> None:
        """Boot the known-good kernel.

        Raises:
            KernelError: another one came up, or the previous kernel died on reboot.
        """
        with contextlib.closing(agent):
            self._progress.say(f"{self.name}: back to {self.known_good}")
            self._leave(agent, "known-good")
        try:
            self._came_up(str(self.known_good), agent).close()
        except DiedLeavingError as error:
            raise KernelError(error.message, hint=error.hint) from error
        except KernelError as error:
            # A power cycle may have brought it back.
            with contextlib.closing(self._answering(lambda _: True)) as now:
                if now.ready["release"] != self.known_good:
                    raise
            self._progress.say(error.message)

    def meet(self) -> None:
        """Record its known-good kernel, to be booted in the end.

        Raises:
            ConfigurationError: it lacks the interface that hosts.yaml names.
        """
        agent = self.reached()
        with contextlib.closing(agent):
            self._mac = self._inventory(agent).get("mac")
            state = agent.boot_state()
            self.known_good = state["known_good"] if state["ours"] else agent.ready["release"]

    def interface(self, agent: RemoteAgent) -> tuple[str, str]:
        """Name and MAC address of its interface.

        Another kernel may use another name: it is then found by its MAC address.
        """
        try:
            return self.config.interface, str(self._inventory(agent)["mac"])
        except ConfigurationError as error:
            if self._mac is not None:
                with contextlib.suppress(ConfigurationError):
                    found = agent.inventory(mac=self._mac)
                    name = str(found["interface"])
                    self._progress.say(f"{self.name}: {self.config.interface} is now {name}")
                    return name, str(found["mac"])
            raise InfrastructureError(
                f"{error.message}, but there was one before",
                hint="did the NIC fail, or does this kernel lack its driver? See the console",
            ) from error

    def became(self) -> KernelError | None:
        """What happened to it since its last boot; ``None``: its kernel still runs."""
        try:
            agent = self._answering(lambda _: True)
        except HostLostError as error:
            return self._did_not_come_back(self.release, error)
        with contextlib.closing(agent):
            if agent.ready["boot_id"] == self.boot_id:
                return None
            return self._fell_back(self.release, agent.ready["release"])

    def _inventory(self, agent: RemoteAgent) -> Any:
        return agent.inventory(interface=self.config.interface)

    def _leave(self, agent: RemoteAgent, method: str, token: str | None = None) -> None:
        """Tell it to boot; ``agent`` is unusable afterwards."""
        self._mark()
        self._left_behind, self._token = True, token
        self._by_firmware, self._cycled, self._under_way = method != "kexec", False, True
        self._left_at_s = time.monotonic()
        agent.boot_go(method=method)
        self.ssh.forget()

    def _mark(self) -> None:
        self._since = self._console.position if self._console else 0
        self._left_behind, self._own_from, self._under_way = False, None, False

    def _send_console(self, agent: RemoteAgent) -> None:
        """Netconsole is set up anew in each kernel."""
        if isinstance(self.config.console, NetconsoleConsole):
            to = self.config.console.netconsole
            agent.netconsole(interface=to.interface, address=str(to.address), port=to.port)

    def _method(self, agent: RemoteAgent) -> str:
        can = agent.boot_can()
        wanted = self.config.boot.method
        if wanted in ("auto", "kexec") and can["kexec"]:
            return "kexec"
        if wanted in ("auto", "one-shot") and can["loader"]:
            return "one-shot"
        why = [f"kexec: {can['kexec_why']}"] * (wanted != "one-shot")
        why += [f"one-shot: {can['loader_why']}"] * (wanted != "kexec")
        raise InfrastructureError(
            f"{self.name} cannot boot a kernel once: {'; '.join(why)}",
            hint=f"harness doctor {self.name}",
        )

    def _install(self, agent: RemoteAgent, image: Image, there: Sequence[str]) -> None:
        """If /boot is full, the agent removes kernels of ours: first those that this campaign has
        not booted, then those booted longest ago. They are sent again when needed.
        """
        may_go = [one for one in there if one not in self._booted] + self._booted
        with self._progress.task(f"{self.name}: installing {image.release}"):
            directory = self.ssh.send(packed(image), f"{UPLOADS}/{image.release}")
            try:
                done = agent.kernel_install(
                    release=image.release,
                    directory=directory,
                    cmdline_add=self._added(),
                    may_go=may_go,
                )
            finally:
                self.ssh.run(["rm", "-rf", directory])
        for release in done.get("evicted") or ():
            self._progress.say(f"{self.name}: removed {release}, to make room in /boot")

    def _added(self) -> list[str]:
        console = self.config.boot.console
        return [*_CMDLINE, f"console={console}"] if console else _CMDLINE

    def _came_up(self, release: str, left: RemoteAgent) -> RemoteAgent:
        before = left.ready
        try:
            agent = self._answering(lambda ready: ready["boot_id"] != before["boot_id"])
        except HostLostError as error:
            gone = self._did_not_come_back(release, error)
            self._require_well_left(before["release"])
            raise gone from error
        with contextlib.ExitStack() as refused:
            refused.callback(agent.close)
            self._require_well_left(before["release"])
            refused.pop_all()
        if agent.ready["release"] != release:
            with contextlib.closing(agent):
                self._require_started(release, agent)
            raise self._fell_back(release, agent.ready["release"])
        if self._by_firmware:
            # Until the kernel's first console output if that was seen, else until it answered.
            firmware_time.keep(self.name, (self._begun_s or time.monotonic()) - self._left_at_s)
        self._under_way = False
        # Needed where the kernel's start was not seen, or is no longer in memory.
        self._own_from = self._console.position if self._console else None
        return agent.watched_by(self.check)

    def _require_well_left(self, release: str) -> None:
        """Raise a :class:`DiedLeavingError` if ``release`` died on reboot."""
        if death := kernel_death(self._parted()[0]):
            raise DiedLeavingError(
                f"{self.name}: {release} died when it was told to boot another kernel: {death}",
                release,
                hint=f"console: {self._console_log}",
            )

    def _require_started(self, release: str, agent: RemoteAgent) -> None:
        """Raise an :class:`InfrastructureError` if ``release`` was not started at all."""
        running, said, state = agent.ready["release"], self.said(), agent.boot_state()
        hint = f"harness doctor {self.name} checks its boot loader"
        if state["one_shot_pending"] == release:
            why = "the boot loader ignored its one-shot entry"
        elif state["ours"]:
            why = "another kernel was started instead"
        elif (
            _BANNER in said
            and f"{_BANNER}{release} " not in said
            and state["one_shot_taken"] != release
        ):
            why = "its console does not show that it was started"
            hint += "; or did the kernel die before its console was up?"
        else:
            return
        raise InfrastructureError(
            f"{self.name}: {release} was never booted, {running} runs: {why}", hint=hint
        )

    @property
    def _firmware_s(self) -> float:
        """How long the firmware may take before a kernel starts, unless kexec skips it."""
        known_s = self._known_firmware_s
        return _FIRMWARE * self.config.boot.timeout_s if known_s is None else known_s

    @property
    def _known_firmware_s(self) -> float | None:
        if self.config.boot.firmware_s is not None:
            return float(self.config.boot.firmware_s)
        measured_s = firmware_time.measured(self.name)
        return None if measured_s is None else firmware_time.MARGIN * measured_s

    def _late_s(self, began_s: float) -> float:
        """The deadline of a kernel that was awaited from ``began_s`` on.

        The kernel's own time counts from its start, if the console shows it, so that the
        firmware's time is not counted.
        """
        awaited = self._under_way and not self._cycled
        if self._begun_s is None and awaited and self._beginning(self.said()) is not None:
            self._begun_s = time.monotonic()
        if self._begun_s is not None:
            return self._begun_s + self.config.boot.timeout_s
        return began_s + self.config.boot.timeout_s + self._allowed_s()

    def _allowed_s(self) -> float:
        """Time for the firmware: of an ordered boot, or of an unexpected reset, if known."""
        if self._cycled or (self._under_way and self._by_firmware):
            return self._firmware_s
        return 0.0 if self._under_way else self._known_firmware_s or 0.0

    def _answering(self, as_wanted: Callable[[Mapping[str, Any]], bool]) -> RemoteAgent:
        """An agent whose greeting is ``as_wanted``, within the time a boot may take.

        Raises:
            HostLostError: none came in time.
        """
        began_s, self._begun_s = time.monotonic(), None
        last: HarnessError | None = None
        refusals = 0
        while time.monotonic() < self._late_s(began_s):
            try:
                agent = self.ssh.start_agent(host=self.name, log=self._log)
            except HostRefusedError as error:
                last, refusals = error, refusals + 1
                if refusals == _REFUSALS:
                    raise
            except HarnessError as error:  # for example, a system that is not ready yet
                last = error
            else:
                if as_wanted(agent.ready):
                    self._cycled = False
                    return agent
                agent.close()
                last = HostLostError(f"{self.name} still runs its previous kernel")
            time.sleep(_ASK_AGAIN_S)
        self._cycled = False
        raise HostLostError(
            f"{self.name} did not come up in {time.monotonic() - began_s:.0f} s"
            + (f": {last.message}" if last else "")
        )

    def _did_not_come_back(self, release: str | None, lost: HostLostError) -> KernelError:
        """Recover it by a power cycle; the error says how ``release`` ended."""
        death = kernel_death(self.said_since_start())
        silent = self._console is not None and self._console.silence_s > _SILENT_S
        how = death or ("it hangs: its console is silent" if silent else "it does not answer")
        self.cycle(lost)
        self._answering(lambda _: True).close()
        return KernelError(
            f"{self.name}: {release} is gone: {how}; after a power cycle the host is back",
            hint=f"console: {self._console_log}" if self._console else None,
        )

    def _fell_back(self, release: str | None, running: str) -> KernelError:
        death = kernel_death(self.said_since_start())
        if self._console is None:
            how, hint = "it has no console", f"set hosts.{self.name}.console to see why next time"
        else:
            how, hint = "its console does not show why", f"console: {self._console_log}"
        return KernelError(
            f"{self.name}: {release} is gone and {running} runs: {death or how}", hint=hint
        )
