# SPDX-License-Identifier: MIT
"""The calls of the agent: their names, arguments, results and time limits.

A contract test holds both sides to this class. The agent implements the calls on a host; the
controller calls the same methods on its connection to that agent. Arguments and results are
plain JSON values. A failed call is an :class:`~harness.agent.faults.AgentError` with a kind,
which the controller raises as its own class of error.
"""

# The methods only declare: the controller replaces each of them.
# mypy: disable-error-code="empty-body"

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

PROTOCOL = 1
_LIMIT = "_within_s"
_WAITS = "_waits"
_F = TypeVar("_F", bound=Callable[..., Any])


def within(seconds: float, *, beyond: str | None = None) -> Callable[[_F], _F]:
    """The call is answered within ``seconds``, plus the seconds in its argument ``beyond``."""

    def limited(call: _F) -> _F:
        setattr(call, _LIMIT, seconds)
        setattr(call, _WAITS, beyond)
        return call

    return limited


class LeaseState(TypedDict, total=False):
    """Who holds a host; all None if it is free."""

    owner: str | None
    holder: str | None
    campaign: str | None
    left_s: float
    held: bool
    freed: bool


class FailedSetting(TypedDict):
    """A setting and why it was not applied or not restored."""

    setting: str
    why: str


class Applied(TypedDict):
    """Settings before and after; those this host does not have; those a killed agent had left.

    ``packet_taps`` and ``in_the_way`` are what others have set up between NIC and stack.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    skipped: list[FailedSetting]
    recovered: list[str]
    packet_taps: list[dict[str, Any]] | None
    in_the_way: list[dict[str, Any]] | None


class Restored(TypedDict):
    """Settings that were restored, and those that could not be."""

    restored: list[str]
    failed: list[FailedSetting]


class Calls:
    """All calls of an agent."""

    # The host

    @within(60)
    def inventory(
        self,
        *,
        interface: str | None = None,
        mac: str | None = None,
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The interface, named or found by its MAC address, and the host around it."""

    @within(60)
    def kernel_config(self) -> dict[str, Any]:
        """``release``, ``config`` (text) and ``modules`` (names; ``[]`` without modules)."""

    @within(120)
    def doctor(
        self,
        *,
        interface: str,
        role: str,
        irq_cpu: int | None = None,
        now_s: float | None = None,
    ) -> list[dict[str, Any]]:
        """All checks of a host in its ``role``; ``now_s`` is the controller's time of day."""

    @within(30)
    def others(self, *, interface: str) -> dict[str, Any]:
        """Programs that would interfere with a run on ``interface`` or hold netserver's port."""

    @within(30)
    def firewall(self, *, interface: str) -> dict[str, Any]:
        """The firewall here, and the command that opens it for ``interface``."""

    @within(30)
    def drivers(self, *, interface: str) -> dict[str, str]:
        """The drivers this host needs to boot and to be reached: name to what needs it."""

    @within(30)
    def dmesg(self) -> dict[str, str]:
        """The kernel's log as ``text``."""

    @within(60)
    def symbols(self, *, addresses: Sequence[int]) -> list[tuple[str, int]]:
        """For each address its function and offset; all user addresses are one function."""

    # The lease

    @within(30)
    def lease_take(
        self, *, owner: str, holder: str, ttl_s: float, campaign: str | None = None
    ) -> LeaseState:
        """Take the lease for ``ttl_s`` seconds; its ``holder`` may take it again."""

    @within(30)
    def lease_refresh(self, *, holder: str, ttl_s: float) -> LeaseState:
        """Extend it to ``ttl_s`` seconds from now; ``held`` is False if ``holder`` has it not."""

    @within(30)
    def lease_free(self, *, holder: str) -> LeaseState:
        """End the lease of ``holder``; ``freed`` is False if there was none."""

    @within(30)
    def lease_break(self) -> LeaseState:
        """End any lease, by an operator's decision; returns what it was."""

    @within(30)
    def lease_state(self) -> LeaseState:
        """The current lease."""

    # Settings

    @within(60)
    def settings_apply(
        self,
        *,
        interface: str,
        process_cpus: Sequence[int] = (),
        **wanted: Any,
    ) -> Applied:
        """Apply the settings ``wanted``; None leaves a setting alone. Idempotent.

        The names in ``wanted`` are the arguments that the modules of ``agent/settings`` declare.
        """

    @within(30)
    def settings_read(self, *, interface: str) -> dict[str, Any]:
        """All settings of the host and the interface, including those that are only read."""

    @within(60)
    def settings_restore(self) -> Restored:
        """Undo every change, the last one first; a failure does not stop the rest."""

    @within(120)
    def settings_recover(self, *, end_others: bool = False) -> Restored:
        """Undo the changes that ended agents left, on every interface of this host."""

    # The load, and its path

    @within(30)
    def way_listen(self, *, address: str, port: int) -> dict[str, Any]:
        """Echo on ``address`` for a minute, on TCP ``port`` and a UDP port."""

    @within(60)
    def way_try(self, *, target: str, source: str, tcp: int, udp: int, word: str) -> dict[str, Any]:
        """Send ``word`` to both ports of ``target``: None or what failed, by protocol."""

    @within(30)
    def way_end(self) -> dict[str, int]:
        """Stop listening; returns how often the word was received, by protocol."""

    @within(60)
    def netserver_start(
        self,
        *,
        address: str,
        port: int,
        cpu: int | None = None,
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Start netserver on ``address``, pinned with all it forks; returns once it listens."""

    @within(30)
    def netserver_end(self) -> dict[str, Any]:
        """End every stream that is being received."""

    @within(30)
    def netserver_stop(self) -> dict[str, Any]:
        """Idempotent."""

    @within(90)
    def netperf_start(
        self,
        *,
        target: str,
        port: int,
        duration_s: float,
        cpus: Sequence[int],
        streams: int = 10,
        message_bytes: int = 1,
        send_buffer_bytes: int = 0,
        nice: int = 0,
        settle_s: int = 1,
        watched_s: float | None = None,
        data_to: str | None = None,
        test: str = "UDP_STREAM",
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Start ``streams`` netperf tests, stream i on ``cpus[i % len(cpus)]`` (empty: any)."""

    @within(60, beyond="duration_s")
    def netperf_rr(
        self,
        *,
        target: str,
        port: int,
        duration_s: float,
        cpu: int | None = None,
        command_prefix: Sequence[str] = (),
    ) -> dict[str, float]:
        """Run one UDP_RR test: transactions a second, and round trips in µs."""

    @within(30)
    def netperf_sending(self) -> dict[str, int]:
        """How many ``streams`` have finished their set-up."""

    @within(30)
    def netperf_pause(self) -> dict[str, Any]:
        """Stop all streams until :meth:`netperf_resume`."""

    @within(30)
    def netperf_resume(self) -> dict[str, Any]:
        """Idempotent."""

    @within(30)
    def netperf_end(self) -> dict[str, Any]:
        """End every stream now; those that have ended already are ``early``."""

    @within(30, beyond="timeout_s")
    def netperf_wait(self, *, timeout_s: float) -> list[dict[str, Any]]:
        """The result of each stream, once all have ended."""

    @within(30)
    def netperf_stop(self) -> dict[str, Any]:
        """Idempotent."""

    # Counters and probes

    @within(30)
    def counters(self, *, interface: str) -> dict[str, Any]:
        """All counters of the host at one moment."""

    @within(60, beyond="duration_s")
    def window(
        self,
        *,
        interface: str,
        duration_s: float,
        sample_s: float = 0.2,
        netserver: bool = False,
        pmu_cpu: int | None = None,
        emulated: bool = False,
    ) -> dict[str, Any]:
        """The counters at both ends of ``duration_s``, and samples between them."""

    @within(60, beyond="duration_s")
    def trace(
        self, *, interface: str, duration_s: float, program_dir: str | None = None
    ) -> dict[str, Any]:
        """List lengths over ``duration_s``, counted by the probes."""

    @within(240)
    def trace_can(self, *, program_dir: str | None = None) -> dict[str, Any]:
        """Compile, attach and detach all probes, and report the result."""

    @within(240)
    def trace_attach(
        self, *, interface: str | None = None, program_dir: str | None = None
    ) -> dict[str, Any]:
        """Attach the probes without counting, until :meth:`trace_detach` or the agent's end."""

    @within(60)
    def trace_detach(self) -> dict[str, Any]:
        """Idempotent."""

    @within(240)
    def trace_watch(self, *, interface: str, program_dir: str | None = None) -> dict[str, Any]:
        """Count what arrives on ``interface`` from now on, until :meth:`trace_detach`."""

    @within(30)
    def trace_read(self) -> dict[str, Any]:
        """All counts since :meth:`trace_watch`, including splits and drops."""

    @within(240, beyond="duration_s")
    def sample(
        self, *, cpu: int, duration_s: float, program_dir: str | None = None
    ) -> dict[str, Any]:
        """How often ``cpu`` is found in each function of the kernel; ``event`` says by what."""

    # Kernels and boots

    @within(30)
    def netconsole(self, *, interface: str, address: str, port: int) -> dict[str, Any]:
        """Make this kernel send its messages through ``interface`` to ``address``."""

    @within(900)
    def kernel_install(
        self,
        *,
        release: str,
        directory: str,
        cmdline_add: Sequence[str] = (),
        may_go: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Install ``bzImage``, ``config`` and ``modules.tar`` of ``directory`` as ``release``.

        If /boot is full, kernels in ``may_go`` are removed first.
        """

    @within(30)
    def kernel_list(self) -> list[dict[str, Any]]:
        """Every kernel of the harness on this host, incomplete ones included."""

    @within(30)
    def kernel_room(self) -> dict[str, Any]:
        """How many more kernels fit in /boot."""

    @within(300)
    def kernel_remove(self, *, releases: Sequence[str] | None = None) -> dict[str, Any]:
        """Remove ``releases`` (None: all of the harness) with their boot entries."""

    @within(60)
    def boot_can(self) -> dict[str, Any]:
        """Which ways of booting are safe on this host, and why the others are not."""

    @within(120)
    def boot_prepare(
        self, *, release: str, method: str, token: str | None = None
    ) -> dict[str, Any]:
        """Load ``release`` for kexec, or set it as the boot loader's one-shot entry.

        ``token`` marks this boot on the kernel's command line.
        """

    @within(30)
    def boot_go(self, *, method: str) -> dict[str, Any]:
        """Leave this kernel within a second after the answer."""

    @within(120)
    def boot_cancel(self) -> dict[str, Any]:
        """Clear a one-shot boot of the harness and unload a kexec kernel."""

    @within(60)
    def boot_state(self) -> dict[str, Any]:
        """What runs, what boots next, and whether the default is unchanged."""


NAMES = tuple(name for name in vars(Calls) if not name.startswith("_"))


def limit_s(name: str, arguments: Mapping[str, Any]) -> float:
    """Seconds within which ``name`` is answered: its own limit plus what its arguments wait."""
    call = getattr(Calls, name)
    return float(getattr(call, _LIMIT) + arguments.get(getattr(call, _WAITS), 0))


def bound(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise TypeError if ``arguments`` do not fit the call ``name``."""
    inspect.signature(getattr(Calls, name)).bind(None, **arguments)
