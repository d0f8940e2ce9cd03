# SPDX-License-Identifier: MIT
"""Beds of a lab that uses labgrid: a place is acquired, and its resources describe the hosts.

A coordinator that restarts forgets who had a place. So the place is polled while it is
used, acquired again if it is free, and given up if somebody else has it. The hosts' own
leases (:mod:`harness.beds.machine.lease`), taken as on any bed, protect the time in between.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from harness.base.errors import (
    BusyError,
    ConfigurationError,
    HarnessError,
    InfrastructureError,
    LeaseLostError,
)
from harness.beds.labgrid.client import Client, Ours
from harness.config import Bed, CommandConsole, CommandPower, LabgridHost, SshHost

_LOOK_EVERY_S = 30.0
_LOOK_BETWEEN_ACTS_S = 10.0
_FREE_S = 300.0
"""How long acquiring a free place may fail: its exporters have to reconnect first."""
_POWER = {
    "NetworkPowerPort",
    "NetworkSiSPMPowerPort",
    "NetworkSysfsGPIO",
    "NetworkUSBPowerPort",
    "NetworkYKUSHPowerPort",
    "PDUDaemonPort",
    "TasmotaPowerPort",
}


@contextmanager
def acquired(bed: Bed) -> Iterator[Place]:
    """``bed`` with its place acquired, as :attr:`Place.bed`; without a place, unchanged.

    Raises:
        InfrastructureError: somebody else has the place (named), or there is no coordinator.
        ConfigurationError: there is no such place, or it lacks a resource that the hosts name.
    """
    place = Place(bed)
    try:
        yield place._begin()
    finally:
        place._end()


class Place:
    """The place of a bed while it is used; for a bed without a place, one that is always ours."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        """The bed with the place's resources: both hosts are of kind ssh."""
        self.trouble: str | None = None
        """Why it is unknown whether the place is still ours, if it is."""
        self.times_regained = 0
        self._client = Client(bed.labgrid) if bed.labgrid else None
        self._lost: LeaseLostError | None = None
        self._ours: Ours | None = None
        self._looked_s = time.monotonic()
        self._free_since_s: float | None = None
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="labgrid")

    def check(self) -> None:
        """Raise if the place is known to be lost; asks nobody, for use during an act.

        Raises:
            LeaseLostError: from now on nothing may be done to the hosts.
        """
        if self._lost is not None:
            raise self._lost

    def still_mine(self) -> None:
        """To be called before each act: asks labgrid, if the last time is long ago.

        Raises:
            LeaseLostError: from now on nothing may be done to the hosts.
        """
        self.check()
        if self._client and time.monotonic() - self._looked_s > _LOOK_BETWEEN_ACTS_S:
            self._look(self._client)
            self.check()

    def _begin(self) -> Place:
        client = self._client
        if client is None:
            return self
        self._ours = Ours(client)
        by = client.acquired_by()
        if by is None:
            by = self._ours.acquire()
        elif by == client.me and self._ours.left_by_a_killed_harness():
            self._ours.guard()
        # Otherwise a place that we hold was acquired by hand: use it, and do not release it.
        if by != client.me:
            host, _, user = by.rpartition("/")
            raise BusyError(
                f"labgrid place {client.place} is held by {user} on {host}",
                hint=f"wait for it with --wait, or ask {user} to release it",
            )
        self.bed = _with_resources(self.bed, client)
        self._thread.start()
        return self

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._ours:
            self._ours.release()

    def _watch(self) -> None:
        assert self._client
        while not self._ended.wait(_LOOK_EVERY_S) and self._lost is None:
            self._look(self._client)

    def _look(self, client: Client) -> None:
        assert self._ours
        with self._looking:
            self._looked_s = time.monotonic()
            try:
                by = client.acquired_by()
                if by is None:
                    self._free_since_s = self._free_since_s or self._looked_s
                    by = self._ours.acquire()
                    self.times_regained += by == client.me
            except ConfigurationError as error:
                self._lose(client, error.message)
                return
            except HarnessError as error:
                # A coordinator that does not answer us does not give the place to others either.
                self.trouble = error.message
                if self._free_since_s and self._looked_s - self._free_since_s > _FREE_S:
                    self._lose(client, error.message)
                return
            if by != client.me:
                self._lose(client, f"it is held by {by} now")
            self.trouble = self._free_since_s = None

    def _lose(self, client: Client, why: str) -> None:
        self._lost = LeaseLostError(
            f"labgrid place {client.place} was lost: {why}",
            hint="nothing more was done to the hosts; `labgrid-client who` shows the holder",
        )


def _with_resources(bed: Bed, client: Client) -> Bed:
    """``bed`` with its hosts of kind labgrid replaced by hosts of kind ssh."""
    resources = client.resources()
    found = {
        role: _resolved(name, host, client, resources)
        for role, name, host in (
            ("dut", bed.dut_name, bed.dut),
            ("generator", bed.generator_name, bed.generator),
        )
        if isinstance(host, LabgridHost)
    }
    return bed.model_copy(update=found)


def _resolved(
    name: str,
    host: LabgridHost,
    client: Client,
    resources: list[tuple[str, str, dict[str, Any]]],
) -> SshHost:
    def having(called: str, kinds: set[str]) -> dict[str, Any] | None:
        return next((p for n, kind, p in resources if n == called and kind in kinds), None)

    def required(called: str | None, kinds: set[str], what: str) -> str | None:
        """The name of a resource; the place must have it if hosts.yaml names it."""
        chosen = called or host.resource
        if having(chosen, kinds) is not None:
            return chosen
        if called:
            raise _lacks(client, name, f"{what} {called}", resources)
        return None

    service = having(host.resource, {"NetworkService"})
    if service is None:
        raise _lacks(client, name, f"NetworkService {host.resource}", resources)
    power = required(host.power_resource, _POWER, "power port")
    console = required(host.console_resource, {"NetworkSerialPort"}, "NetworkSerialPort")
    shim = [sys.executable, "-m", "harness.beds.labgrid.resource", *client.options]
    try:
        return SshHost(
            kind="ssh",
            hostname=str(service.get("address")),
            user=service.get("username"),
            port=service.get("port"),
            known_hosts=host.known_hosts,
            interface=host.interface,
            address=host.address,
            boot=host.boot,
            power=CommandPower(command=(*shim, "power", power)) if power else None,
            console=CommandConsole(command=(*shim, "console", console)) if console else None,
        )
    except ValidationError as error:
        wrong = ", ".join(f"{e['loc'][0]} {e['input']!r}"[:80] for e in error.errors())
        raise InfrastructureError(
            f"labgrid place {client.place}: NetworkService {host.resource} cannot be used: {wrong}",
            hint="it must be reachable by ssh; put jump hosts and the like into ~/.ssh/config",
        ) from error


def _lacks(
    client: Client, host: str, what: str, resources: list[tuple[str, str, dict[str, Any]]]
) -> ConfigurationError:
    held = sorted(f"{kind} {called}" for called, kind, _ in resources)
    return ConfigurationError(
        f"hosts.{host}: labgrid place {client.place} has no {what}",
        hint=f"it has: {', '.join(held) or 'nothing'}",
    )
