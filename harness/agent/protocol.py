# SPDX-License-Identifier: MIT
"""The calls of the agent: their names, arguments, results and time limits, said once.

Both sides are held to this class. The agent implements it on a host; whoever controls the host
calls the same methods on a line to that agent. Arguments and results are plain JSON values.
A call fails as an :class:`~harness.agent.faults.AgentError`, which the controller raises as the
error of the class that it names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

PROTOCOL = 1
_LIMIT = "_within_s"
_WAITS = "_waits"
_F = TypeVar("_F", bound=Callable[..., Any])


def within(seconds: float, *, beyond: str | None = None) -> Callable[[_F], _F]:
    """The call has an answer in ``seconds``, beyond what its argument ``beyond`` has it wait."""

    def limited(call: _F) -> _F:
        setattr(call, _LIMIT, seconds)
        setattr(call, _WAITS, beyond)
        return call

    return limited


class LeaseState(TypedDict, total=False):
    """Who has a host; all None where it is free."""

    owner: str | None
    holder: str | None
    campaign: str | None
    left_s: float
    held: bool
    freed: bool


class FailedSetting(TypedDict):
    """A setting and why it was not made or not put back."""

    setting: str
    why: str


class Applied(TypedDict):
    """Settings before and after; what this host does not have; what a killed agent had left.

    ``packet_taps`` and ``in_the_way`` are what others have put between the NIC and the stack.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    skipped: list[FailedSetting]
    recovered: list[str]
    packet_taps: list[dict[str, Any]] | None
    in_the_way: list[dict[str, Any]] | None


class Restored(TypedDict):
    """Settings put back, and those that could not be."""

    restored: list[str]
    failed: list[FailedSetting]


class Calls:
    """Everything an agent can be asked to do."""

    # What the host is

    @within(60)
    def inventory(
        self,
        *,
        interface: str | None = None,
        mac: str | None = None,
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The interface, named or found by its MAC address, and the host around it."""
        raise NotImplementedError

    @within(60)
    def kernel_config(self) -> dict[str, Any]:
        """``release``, ``config`` (text) and ``modules`` (names; ``[]`` without modules)."""
        raise NotImplementedError

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
        raise NotImplementedError

    @within(30)
    def others(self, *, interface: str) -> dict[str, Any]:
        """Whoever would undo a run on ``interface``, and who has netserver's port."""
        raise NotImplementedError

    @within(30)
    def firewall(self, *, interface: str) -> dict[str, Any]:
        """What filters packets here, and what would let them in on ``interface``."""
        raise NotImplementedError

    @within(30)
    def drivers(self, *, interface: str) -> dict[str, str]:
        """By name what each is for: drivers without which this host is not up, or not reached."""
        raise NotImplementedError

    @within(30)
    def dmesg(self) -> dict[str, str]:
        """The kernel's log as ``text``."""
        raise NotImplementedError

    @within(60)
    def symbols(self, *, addresses: Sequence[int]) -> list[tuple[str, int]]:
        """For each address the function it lies in, and how far; the user's programs are one."""
        raise NotImplementedError

    # Who may use it

    @within(30)
    def lease_take(
        self, *, owner: str, holder: str, ttl_s: float, campaign: str | None = None
    ) -> LeaseState:
        """Have the lease for ``ttl_s`` seconds. ``holder`` may take again what it has."""
        raise NotImplementedError

    @within(30)
    def lease_refresh(self, *, holder: str, ttl_s: float) -> LeaseState:
        """Have it for ``ttl_s`` seconds from now; ``held`` is False where it is not ours."""
        raise NotImplementedError

    @within(30)
    def lease_free(self, *, holder: str) -> LeaseState:
        """End the lease of ``holder``; ``freed`` is False where there was none."""
        raise NotImplementedError

    @within(30)
    def lease_break(self) -> LeaseState:
        """End whatever lease there is, by an operator's decision; says what it was."""
        raise NotImplementedError

    @within(30)
    def lease_state(self) -> LeaseState:
        """Who has it."""
        raise NotImplementedError

    # Its settings

    @within(60)
    def settings_apply(
        self,
        *,
        interface: str,
        process_cpus: Sequence[int] = (),
        **wanted: Any,
    ) -> Applied:
        """Bring the host to what is ``wanted``; None leaves a setting alone. Idempotent.

        ``wanted`` goes by the arguments that the modules of ``agent/settings`` declare.
        """
        raise NotImplementedError

    @within(30)
    def settings_read(self, *, interface: str) -> dict[str, Any]:
        """All settings of the host and the interface, those never changed included."""
        raise NotImplementedError

    @within(60)
    def settings_restore(self) -> Restored:
        """Put back every change, the last one first; a failure does not stop the rest."""
        raise NotImplementedError

    @within(120)
    def settings_recover(self, *, end_others: bool = False) -> Restored:
        """Put back what agents that are gone left changed, on every interface of this host."""
        raise NotImplementedError

    # The load, and the way it takes

    @within(30)
    def way_listen(self, *, address: str, port: int) -> dict[str, Any]:
        """Answer on ``address`` for a minute, on TCP ``port`` and a UDP port."""
        raise NotImplementedError

    @within(60)
    def way_try(self, *, target: str, source: str, tcp: int, udp: int, word: str) -> dict[str, Any]:
        """Say ``word`` to both ports of ``target``: None, or why not, by protocol."""
        raise NotImplementedError

    @within(30)
    def way_end(self) -> dict[str, int]:
        """Stop listening; how often the word was heard, by protocol."""
        raise NotImplementedError

    @within(60)
    def netserver_start(
        self,
        *,
        address: str,
        port: int,
        cpu: int | None = None,
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A netserver on ``address``, pinned with all it will fork; returns once it listens."""
        raise NotImplementedError

    @within(30)
    def netserver_end(self) -> dict[str, Any]:
        """Let every stream that is being received count as over."""
        raise NotImplementedError

    @within(30)
    def netserver_stop(self) -> dict[str, Any]:
        """Idempotent."""
        raise NotImplementedError

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
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """``streams`` UDP_STREAM tests, stream i on ``cpus[i % len(cpus)]`` (any CPU if empty)."""
        raise NotImplementedError

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
        """One UDP_RR test: transactions a second, and round trips in µs."""
        raise NotImplementedError

    @within(30)
    def netperf_sending(self) -> dict[str, int]:
        """How many ``streams`` are past their set-up."""
        raise NotImplementedError

    @within(30)
    def netperf_pause(self) -> dict[str, Any]:
        """Stop all streams where they are; :meth:`netperf_resume` lets them go on."""
        raise NotImplementedError

    @within(30)
    def netperf_resume(self) -> dict[str, Any]:
        """Idempotent."""
        raise NotImplementedError

    @within(30)
    def netperf_end(self) -> dict[str, Any]:
        """Let every stream end now, as its own timer would; those that had are ``early``."""
        raise NotImplementedError

    @within(30, beyond="timeout_s")
    def netperf_wait(self, *, timeout_s: float) -> list[dict[str, Any]]:
        """What each stream reported, once all have ended."""
        raise NotImplementedError

    @within(30)
    def netperf_stop(self) -> dict[str, Any]:
        """Idempotent."""
        raise NotImplementedError

    # What is counted

    @within(30)
    def counters(self, *, interface: str) -> dict[str, Any]:
        """Every counter of the host at one moment."""
        raise NotImplementedError

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
        """The counters at both ends of ``duration_s``, and what was sampled between."""
        raise NotImplementedError

    @within(60, beyond="duration_s")
    def trace(
        self, *, interface: str, duration_s: float, program_dir: str | None = None
    ) -> dict[str, Any]:
        """List lengths over ``duration_s`` by the probes that are attached."""
        raise NotImplementedError

    @within(240)
    def trace_can(self, *, program_dir: str | None = None) -> dict[str, Any]:
        """Compile, attach and detach everything, and say what came of it."""
        raise NotImplementedError

    @within(240)
    def trace_attach(
        self, *, interface: str | None = None, program_dir: str | None = None
    ) -> dict[str, Any]:
        """Attach now and stay attached, silent, until :meth:`trace_detach` or the agent's end."""
        raise NotImplementedError

    @within(60)
    def trace_detach(self) -> dict[str, Any]:
        """Idempotent."""
        raise NotImplementedError

    @within(240)
    def trace_watch(self, *, interface: str, program_dir: str | None = None) -> dict[str, Any]:
        """Count from now on what arrives on ``interface``, until :meth:`trace_detach`."""
        raise NotImplementedError

    @within(30)
    def trace_read(self) -> dict[str, Any]:
        """All that was counted since :meth:`trace_watch`, splits and drops too."""
        raise NotImplementedError

    # Kernels and boots

    @within(30)
    def netconsole(self, *, interface: str, address: str, port: int) -> dict[str, Any]:
        """Have this kernel send its messages through ``interface`` to ``address``."""
        raise NotImplementedError

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

        Where /boot is full, kernels that ``may_go`` are removed first.
        """
        raise NotImplementedError

    @within(30)
    def kernel_list(self) -> list[dict[str, Any]]:
        """Every kernel of ours on this host, those half installed included."""
        raise NotImplementedError

    @within(30)
    def kernel_room(self) -> dict[str, Any]:
        """How many more kernels /boot takes."""
        raise NotImplementedError

    @within(300)
    def kernel_remove(self, *, releases: Sequence[str] | None = None) -> dict[str, Any]:
        """Remove ``releases`` (None: all of ours) with their boot entries."""
        raise NotImplementedError

    @within(60)
    def boot_can(self) -> dict[str, Any]:
        """Which ways of booting can be trusted on this host, and why others cannot."""
        raise NotImplementedError

    @within(120)
    def boot_prepare(
        self, *, release: str, method: str, token: str | None = None
    ) -> dict[str, Any]:
        """Load ``release`` for kexec, or set it as the boot loader's one-shot entry.

        ``token`` marks this boot on the kernel's command line.
        """
        raise NotImplementedError

    @within(30)
    def boot_go(self, *, method: str) -> dict[str, Any]:
        """Leave this kernel within a second of the answer."""
        raise NotImplementedError

    @within(120)
    def boot_cancel(self) -> dict[str, Any]:
        """Nothing of ours boots next: the one-shot is disarmed, the kexec kernel unloaded."""
        raise NotImplementedError

    @within(60)
    def boot_state(self) -> dict[str, Any]:
        """What runs, what boots next, and whether the default is as it was."""
        raise NotImplementedError


NAMES = tuple(name for name in vars(Calls) if not name.startswith("_"))


def limit_s(name: str, arguments: Mapping[str, Any]) -> float:
    """Seconds within which ``name`` has an answer: its own limit and what it is asked to wait."""
    call = getattr(Calls, name)
    return float(getattr(call, _LIMIT) + arguments.get(getattr(call, _WAITS), 0))


def bound(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise TypeError where ``arguments`` are not those of the call ``name``."""
    inspect.signature(getattr(Calls, name)).bind(None, **arguments)
