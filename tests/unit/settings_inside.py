# SPDX-License-Identifier: MIT
"""Every setting of the agent broken in turn, on a veth of the network namespace this runs in.

Run as a program in a namespace of its own; prints one line of JSON. What a veth has not
(interrupts, frequencies, sysctls of the first namespace) is a tree of files beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.agent import cpus, inventory, setting, settings
from harness.agent.faults import AgentError, ControllerGone
from harness.agent.interface import in_the_way
from harness.agent.interface.ethtool import Ethtool
from harness.agent.setting import Setting, write_each
from harness.agent.settings import irq_affinity, journal, registry

DUT = "dut"
WANTED: dict[str, Any] = {
    "interface": DUT,
    "address": "10.0.0.2/24",
    "address6": "2001:2::2/64",
    "forwarding": True,
    "segmentation": False,
    "peer": {"address": "10.0.0.1", "mac": "02:00:00:00:00:0A", "also": ["2001:2::1"]},
    "rx_queues": 1,
    "rx_ring": 256,
    "offloads": {"udp_gro_forwarding": True},
    "irq_cpu": cpus.online()[0],
    "process_cpus": [cpus.online()[0]],
    "coalesce": {"adaptive_rx": False, "rx_usecs": 0},
    "rps": False,
    "rfs": False,
    "threaded": False,
    "napi_defer_hard_irqs": 0,
    "gro_flush_timeout_ns": 0,
    "busy_read_us": 0,
    "busy_poll_us": 0,
    "pacing_bytes_per_s": 1_000_000,
    "irqbalance": "off",
    "governor": "performance",
    "sysctl": {"net.core.dev_weight": 16},
}
FILES = {
    "cpu/cpu0/cpufreq/scaling_governor": "powersave",
    "cpu/cpu1/cpufreq/scaling_governor": "schedutil",
    "irq/24/smp_affinity_list": "1-3",
    "irq/25/smp_affinity_list": "0,2-5",
    "sys/net/core/busy_read": "50",
    "sys/net/core/dev_weight": "64",
    "sys/net/core/busy_poll": "40",
    "sys/net/core/rps_sock_flow_entries": "32768",
}
SET_UP = f"""
ip link add gen type veth peer name {DUT} numrxqueues 2 numtxqueues 2
ip link set gen up
ip address add 192.0.2.5/24 dev {DUT}
ip -6 address add 2001:db8::5/64 dev {DUT}
"""
ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    AgentError,
    KeyboardInterrupt,
    ControllerGone,
)


class World:
    """The veth and the tree, and settings that no veth has."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.plain: dict[str, Any] = {}
        (at / "sys/net").mkdir(parents=True)
        (at / "sys/net/ipv6").symlink_to("/proc/sys/net/ipv6")
        (at / "sys/net/ipv4").symlink_to("/proc/sys/net/ipv4")
        setting.PROC_SYS = at / "sys"
        setting.CPU, setting.IRQ = at / "cpu", at / "irq"
        inventory._CPUFREQ = str(at / "cpu")
        journal._JOURNALS = at / "run"
        settings._CARRIER_S = 0.1
        for module, name, instead in (
            (irq_affinity, "interface_irqs", lambda _: {24: "dut-0", 25: "dut-1"}),
            (registry, "interface_irqs", lambda _: {24: "dut-0", 25: "dut-1"}),
            (journal, "in_first_namespace", lambda: True),
            (settings, "_known", self.known),
        ):
            setattr(module, name, instead)
        self.wrapped: Callable[[Setting], Setting] = lambda setting: setting
        for line in SET_UP.strip().splitlines():
            subprocess.run(line.split(), check=True)
        Ethtool(DUT).set_channels(rx=2, combined=0)
        queue = Path("/sys/class/net", DUT, "queues/rx-0")
        (queue / "rps_cpus").write_text("1")
        (queue / "rps_flow_cnt").write_text("32")
        for name, text in (("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "1000")):
            Path("/sys/class/net", DUT, name).write_text(text)
        self.reset()

    def reset(self) -> None:
        for name, text in FILES.items():
            path = self.at / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.plain.update(
            irqbalance="active",
            coalesce={"adaptive_rx": True, "rx_usecs": 60},
            rings={"rx": 1024, "tx": 512, "max_rx": 4096, "max_tx": 2048},
            threaded=1,
        )

    def known(self, interface: str) -> dict[str, Setting]:
        all_ = registry.known(interface)
        for name in self.plain:
            all_[name] = replace(
                all_[name],
                read=partial(self.plain.__getitem__, name),
                write=partial(self.plain.__setitem__, name),
            )
        return {name: self.wrapped(one) for name, one in all_.items()}

    def now(self) -> dict[str, Any]:
        """Everything there is, read past the agent wherever that can be."""

        def ip(*words: str) -> Any:
            said = subprocess.run(
                ["ip", "-json", *words], capture_output=True, text=True, check=True
            )
            return json.loads(said.stdout or "[]")

        rows = [row for row in ip("address", "show", "dev", DUT) if row]
        queues = Path("/sys/class/net", DUT, "queues")
        at = Path("/sys/class/net", DUT)
        return {
            "up": "UP" in rows[0]["flags"],
            "addresses": sorted(
                f"{one['local']}/{one['prefixlen']}"
                for one in rows[0]["addr_info"]
                if one["scope"] == "global"
            ),
            "neighbours": sorted(
                f"{row['dst']} {row.get('lladdr')}"
                for row in ip("neigh", "show", "dev", DUT, "nud", "permanent")
            ),
            "queues": {
                str(path.relative_to(queues)): path.read_text()
                for path in sorted(queues.glob("rx-*/rps_*"))
            },
            "napi": [
                (at / name).read_text() for name in ("napi_defer_hard_irqs", "gro_flush_timeout")
            ],
            "files": {name: (self.at / name).read_text().strip() for name in FILES},
            "plain": dict(self.plain),
            "read": {
                name: one.read()
                for name, one in registry.known(DUT).items()
                if name not in self.plain
            },
            "journals": sorted(path.name for path in (self.at / "run").glob("*")),
            "ipv6": Path("/proc/sys/net/ipv6/conf", DUT, "disable_ipv6").read_text(),
            "cpus": sorted(os.sched_getaffinity(0)),
        }


@contextmanager
def broken(world: World, name: str, how: Callable[[Setting], Setting]) -> Iterator[None]:
    world.wrapped = lambda one: how(one) if one.name == name else one
    try:
        yield
    finally:
        world.wrapped = lambda one: one


def ways(one: BaseException) -> Iterator[tuple[str, Callable[[Setting], Setting]]]:
    """How a setting may fail, each once; what comes after that works."""

    def raising(setting: Setting, *, done: bool) -> Setting:
        left = [one]

        def write(value: Any) -> None:
            if not left or done:
                setting.write(value)
            if left:
                raise left.pop()

        return replace(setting, write=write)

    def idle(setting: Setting) -> Setting:
        left = [one]

        def write(value: Any) -> None:
            if left:
                left.pop()
            else:
                setting.write(value)

        return replace(setting, write=write)

    def blind(setting: Setting) -> Setting:
        left: list[BaseException] = []
        armed = [one]

        def write(value: Any) -> None:
            setting.write(value)
            left.extend(armed)
            armed.clear()

        def read() -> Any:
            if left:
                raise left.pop()
            return setting.read()

        return replace(setting, read=read, write=write)

    yield "raises", lambda setting: raising(setting, done=False)
    yield "raises once it is done", lambda setting: raising(setting, done=True)
    yield "does nothing", idle
    yield "cannot be read back", blind


def made(world: World) -> list[str]:
    """The settings that a run changes here, in their order."""
    names: list[str] = []

    def noting(one: Setting) -> Setting:
        def write(value: Any) -> None:
            names.append(one.name)
            one.write(value)

        return replace(one, write=write)

    world.wrapped = noting
    before = world.now()
    agent = settings.Settings()
    agent.apply(**WANTED)
    during = world.now()
    order = list(dict.fromkeys(names))
    done = agent.restore()
    world.wrapped = lambda one: one
    assert done["failed"] == [], done
    assert world.now() == before, (before, world.now())
    assert during["addresses"] == ["10.0.0.2/24", "192.0.2.5/24", "2001:2::2/64"], during
    assert during["neighbours"] == [
        "10.0.0.1 02:00:00:00:00:0a",
        "2001:2::1 02:00:00:00:00:0a",
    ], during
    return order


def each_in_turn(world: World) -> list[str]:
    before = world.now()
    problems: list[str] = []
    tried = 0
    order = made(world)
    for position, name in enumerate(order):
        for error in ERRORS:
            for number, (what, how) in enumerate(ways(error("broken by the test"))):
                # Raising is tried with the usual three at each position, and all the rest
                # with one for each, every class in its turn.
                turn = error is ERRORS[(position + number) % len(ERRORS)]
                if not turn and not (what == "raises" and error in ERRORS[:3]):
                    continue
                tried += 1
                raised: BaseException | None = None
                with broken(world, name, how):
                    agent = settings.Settings()
                    try:
                        agent.apply(**WANTED)
                    except BaseException as caught:  # noqa: BLE001 - it is judged below
                        raised = caught
                after = world.now()
                told = f"{name} {what} ({error.__name__})"
                if raised is None:
                    problems.append(f"{told}: no error")
                elif issubclass(error, Exception) and not isinstance(raised, AgentError):
                    problems.append(f"{told}: {raised!r}")
                if after != before:
                    differ = [key for key in before if before[key] != after[key]]
                    problems.append(f"{told}: differs: {differ}")
                    agent.restore()
                    world.reset()
    assert tried >= 6 * len(order), "every setting at its position, in every way"
    return problems


def for_ever(world: World) -> list[str]:
    """One that cannot be put back is named, and stops nothing."""
    problems: list[str] = []
    order = made(world)
    for name in order[:-1]:
        before = world.now()

        def once(setting: Setting) -> Setting:
            done: list[int] = []

            def write(value: Any, setting: Setting = setting) -> None:
                if done:
                    raise OSError("it stays")
                done.append(1)
                setting.write(value)

            return replace(setting, write=write)

        def last(setting: Setting) -> Setting:
            def write(value: Any, setting: Setting = setting) -> None:
                raise RuntimeError("the last one")

            return replace(setting, write=write)

        ways: dict[str, Callable[[Setting], Setting]] = {order[-1]: last, name: once}

        def wrapped(one: Setting, ways: dict[str, Callable[[Setting], Setting]] = ways) -> Setting:
            return ways[one.name](one) if one.name in ways else one

        world.wrapped = wrapped
        try:
            settings.Settings().apply(**WANTED)
            problems.append(f"{name}: no error")
        except AgentError as error:
            if f"{name}: it stays" not in str(error) or "the last one" not in str(error):
                problems.append(f"{name}: not named in {error}")
        world.wrapped = lambda one: one
        after = world.now()
        if after["journals"] != [f"settings-{DUT}.jsonl"]:
            problems.append(f"{name}: the journal does not keep it: {after['journals']}")
        done = settings.Settings().recover()
        if done["failed"] or world.now() != before:
            problems.append(f"{name}: {done} then {world.now()} was {before}")
            world.reset()
    return problems


def after_the_last(world: World) -> list[str]:
    """What fails once all is set takes it back, too."""
    problems: list[str] = []
    before = world.now()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken by the test")

    places: list[tuple[Any, str]] = [
        (settings, "_carrier"),
        (settings.Settings, "_stay_off"),
        (in_the_way, "found"),
        (cpus, "apart_from"),
    ]
    for module, name in places:
        was = getattr(module, name)
        setattr(module, name, fail)
        try:
            settings.Settings().apply(**WANTED)
            problems.append(f"{name}: no error")
        except AgentError:
            pass
        finally:
            setattr(module, name, was)
        if world.now() != before:
            problems.append(f"{name}: differs")
    calls: list[int] = []
    readings = registry.readings

    def second(*words: Any) -> Any:
        calls.append(1)
        return readings(*words) if len(calls) == 1 else fail()

    setattr(settings, "_readings", second)  # noqa: B010
    with suppress(AgentError):
        settings.Settings().apply(**WANTED)
        problems.append("readings: no error")
    setattr(settings, "_readings", readings)  # noqa: B010
    if world.now() != before:
        problems.append("readings: differs")
    return problems


def killed(world: World) -> list[str]:
    """An agent that is killed at each of its writes; the next one puts all back."""
    problems: list[str] = []
    before = world.now()
    plain = world.at / "plain.json"
    order = made(world)
    for position, name in enumerate(order):
        for when in ("before", "after"):
            for recovered in [("apply", "recover")[(position + (when == "after")) % 2]]:
                pid = os.fork()
                if pid == 0:

                    def dying(one: Setting, name: str = name, when: str = when) -> Setting:
                        def write(value: Any) -> None:
                            if when == "after":
                                one.write(value)
                            plain.write_text(json.dumps(world.plain))
                            os.kill(os.getpid(), signal.SIGKILL)

                        return replace(one, write=write) if one.name == name else one

                    world.wrapped = dying
                    settings.Settings().apply(**WANTED)
                    os._exit(0)
                _, status = os.waitpid(pid, 0)
                if not os.WIFSIGNALED(status):
                    problems.append(f"{name} {when}: was not killed")
                # What is no file died with the child, as it would not on a host.
                world.plain.update(json.loads(plain.read_text()))
                told = f"killed {when} {name} was written, then {recovered}"
                if recovered == "recover":
                    done = settings.Settings().recover()
                    if done["failed"] or not done["restored"]:
                        problems.append(f"{told}: {done}")
                else:
                    agent = settings.Settings()
                    if not agent.apply(**WANTED)["recovered"]:
                        problems.append(f"{told}: nothing recovered")
                    if agent.restore()["failed"]:
                        problems.append(f"{told}: not restored")
                after = world.now()
                if after != before:
                    differ = [key for key in before if before[key] != after[key]]
                    problems.append(f"{told}: differs: {differ}")
                    world.reset()
    return problems


def managed(world: World) -> list[str]:
    """An interrupt that its driver manages refuses every write, that of its own value too."""
    before = world.now()
    refused: list[str] = []

    def refusing(values: Any, same: Any) -> None:
        values = list(values)
        one = [row for row in values if "irq/25" in str(row[0])]
        write_each([row for row in values if row not in one], same)
        if any(not same(path.read_text().strip(), text) for path, text in one):
            refused.append("25")
            raise OSError(5, "Input/output error")

    setattr(irq_affinity, "write_each", refusing)  # noqa: B010
    agent = settings.Settings()
    try:
        agent.apply(**WANTED)
    except AgentError as error:
        told = str(error)
    else:
        return ["no error"]
    finally:
        setattr(irq_affinity, "write_each", write_each)  # noqa: B010
    problems = [] if "irq_affinity was refused" in told else [told]
    problems += ["said to be not put back: " + told] if "could not be put back" in told else []
    return problems + ([] if world.now() == before and refused else ["differs"])


def main() -> int:
    inventory.see_own_interfaces()
    world = World(Path(sys.argv[2]))
    checks: dict[str, Callable[[World], Any]] = {
        "made": made,
        "each_in_turn": each_in_turn,
        "for_ever": for_ever,
        "after_the_last": after_the_last,
        "killed": killed,
        "managed": managed,
    }
    print(json.dumps(checks[sys.argv[1]](world)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
