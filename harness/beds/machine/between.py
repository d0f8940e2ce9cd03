# SPDX-License-Identifier: MIT
"""The network between the two machines of a bed, tested with packets: the doctor's checks of both.

Both get their test addresses for some seconds, as in a run; their agents restore them, also
when the connection is lost.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.beds.access.channel import RemoteAgent
from harness.beds.access.ssh import SshTarget
from harness.beds.machine import lease
from harness.beds.machine.doctor import Finding
from harness.config import Bed, Load, SshHost

_PORT = 12865
_LINK_S = 15.0
_FLOOD_S = 2.0
_RAMP_S = 1.5
_LOST = 0.001


def examine(bed: Bed, load: Load, *, flood: bool = False) -> Iterator[Finding]:
    """Check the path from generator to dut and back; with ``flood``, also two seconds of load."""
    hosts = {"dut": (bed.dut_name, bed.dut), "generator": (bed.generator_name, bed.generator)}
    with contextlib.ExitStack() as up:
        agents: dict[str, RemoteAgent] = {}
        try:
            scratch = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="rb-doctor-")))
            for role, (name, host) in hosts.items():
                assert isinstance(host, SshHost)
                lease.asked(name, host).require_not_anothers()
                agent = SshTarget.of(host).start_agent(host=name, log=scratch / role)
                up.enter_context(contextlib.closing(agent))
                agents[role] = agent
            yield _linked(bed, agents)
            yield from way(bed, agents)
            if flood:
                yield from flooded(bed, load, agents)
        except HarnessError as error:
            yield Finding(
                check="path", ok=False, detail=error.message, remedy=error.hint, needed=False
            )


def _linked(bed: Bed, agents: dict[str, RemoteAgent]) -> Finding:
    """Configure both, and compare their link speeds."""
    found = {role: _inventory(bed, role, agent) for role, agent in agents.items()}
    for role, other in (("dut", "generator"), ("generator", "dut")):
        peer = getattr(bed, other).address
        agents[role].settings_apply(
            interface=getattr(bed, role).interface,
            address=str(getattr(bed, role).address),
            peer={"address": str(peer.ip), "mac": found[other]["mac"]},
        )
    until = time.monotonic() + _LINK_S
    while time.monotonic() < until:
        found = {role: _inventory(bed, role, agent) for role, agent in agents.items()}
        if all(one["link"] for one in found.values()):
            break
        time.sleep(0.5)
    speeds = {role: one["speed_mbps"] for role, one in found.items()}
    down = [role for role, one in found.items() if not one["link"]]
    ok = not down and len(set(speeds.values())) == 1
    told = ", ".join(f"{role} {speed or 'unknown'}" for role, speed in speeds.items())
    return Finding(
        check="links of both",
        ok=ok,
        detail=f"no carrier: {', '.join(down)}" if down else f"Mbit/s: {told}",
        remedy=None
        if ok
        else "use one cable between the two, or the same speed on both: a faster sender fills the "
        "queue of the switch between them",
        needed=bool(down),
    )


def _inventory(bed: Bed, role: str, agent: RemoteAgent) -> Any:
    return agent.inventory(interface=getattr(bed, role).interface)


def way(bed: Bed, agents: dict[str, RemoteAgent]) -> Iterator[Finding]:
    """Check that TCP and UDP reach the dut as netperf sends them, and that its answers return."""
    dut, generator = agents["dut"], agents["generator"]
    assert isinstance(bed.dut, SshHost)
    assert isinstance(bed.generator, SshHost)
    target, source = str(bed.dut.address.ip), str(bed.generator.address.ip)
    try:
        listens = dut.way_listen(address=target, port=_PORT)
        ports = {"tcp": listens["tcp"], "udp": listens["udp"]}
        said = generator.way_try(target=target, source=source, word=listens["word"], **ports)
    finally:
        heard = dut.way_end()
    for protocol, what in (("tcp", "control"), ("udp", "data")):
        why, arrived = said[protocol], heard.get(protocol, 0) > 0
        yield Finding(
            check=f"{what} to the dut",
            ok=why is None,
            detail=f"{protocol.upper()} from {source} to {target} port {ports[protocol]}: "
            + ("answered" if why is None else _told(why, arrived=arrived)),
            remedy=None if why is None else _remedy(bed, agents, arrived=arrived),
        )


def _told(why: str, *, arrived: bool) -> str:
    if arrived:
        return f"{why}; the packet arrived, but the dut's answer did not come back"
    return f"{why}; nothing arrived"


def _remedy(bed: Bed, agents: dict[str, RemoteAgent], *, arrived: bool) -> str:
    """The command that opens the blocked direction, if there is a firewall."""
    role = "generator" if arrived else "dut"
    name = bed.generator_name if arrived else bed.dut_name
    found = agents[role].firewall(interface=getattr(bed, role).interface)
    if found["opens"]:
        return f"{found['kind']} on {name} blocks it: sudo {found['opens']}"
    other = bed.dut_name if arrived else bed.generator_name
    return (
        f"no firewall was found on {name}: is the cable in the right port, does a switch in "
        f"between filter, does {other} filter its outgoing packets?"
    )


def flooded(bed: Bed, load: Load, agents: dict[str, RemoteAgent]) -> Iterator[Finding]:
    """Two seconds of ``load``: rates offered and received, interrupts a packet, saturation."""
    dut, generator = agents["dut"], agents["generator"]
    assert isinstance(bed.dut, SshHost)
    assert isinstance(bed.generator, SshHost)
    cpus = bed.placement.netperf_cpus
    target = str(bed.dut.address.ip)
    dut.netserver_start(address=target, port=_PORT, cpu=bed.netserver_cpu)
    try:
        generator.netperf_start(
            target=target,
            port=_PORT,
            streams=load.streams,
            message_bytes=load.message_bytes,
            cpus=[] if cpus == "auto" else list(cpus),
            duration_s=60,
        )
        time.sleep(_RAMP_S)
        sends = bed.generator.interface
        before = generator.counters(interface=sends)
        window = dut.window(interface=bed.dut.interface, duration_s=_FLOOD_S)
        after = generator.counters(interface=sends)
    finally:
        generator.netperf_stop()
        dut.netserver_stop()
    yield judged_flood(before, after, window)


def judged_flood(before: Any, after: Any, window: Any) -> Finding:
    """The finding from the generator's counters around the dut's window."""
    offered_pps = _rate(before, after, lambda one: one["link"]["tx_packets"])
    start, end = window["start"], window["end"]
    taken_pps = _rate(start, end, lambda one: one["link"]["rx_packets"])
    udp_pps = _rate(start, end, lambda one: one["snmp"]["Udp"]["InDatagrams"])
    interrupts_s = _rate(start, end, _interrupts)
    lost = 1 - udp_pps / offered_pps if offered_pps else 0.0
    # Independent of interrupt moderation: a saturated receiver drops, in the ring or the socket.
    saturated = lost > _LOST
    per = f"{interrupts_s / taken_pps:.4f}" if taken_pps else "no packets, so no"
    return Finding(
        check="flood",
        ok=saturated,
        detail=f"offered {offered_pps:,.0f} packets/s, {taken_pps:,.0f} at the NIC, {udp_pps:,.0f} "
        f"read; {per} interrupts a packet; "
        + (f"{lost:.1%} lost: saturated" if saturated else "nothing is lost: not saturated"),
        remedy=None
        if saturated
        else "the load would limit the rates, not the kernel: use more placement.netperf_cpus or "
        "load.streams, a faster generator, no pause frames",
        needed=False,
    )


def _interrupts(one: Any) -> int:
    return sum(sum(row["counts"].values()) for row in one["interrupts"].values())


def _rate(start: Any, end: Any, of: Any) -> float:
    took_s = (end["monotonic_ns"] - start["monotonic_ns"]) / 1e9
    return float(of(end) - of(start)) / took_s if took_s > 0 else 0.0
