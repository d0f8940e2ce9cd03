# SPDX-License-Identifier: MIT
"""Faults on demand: what a card does to its driver on a bad day.

Hides how each fault is brought about, and when it ends. :data:`FAULTS` is their table. They
are for tests and for a control call of a live model (``server``). Nothing here happens by
itself, and each fault is counted as ``fault_NAME``.

``faults`` is another subject: there it is the client that takes its memory away.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from harness.nic import queues
from harness.nic.journal import Journal
from harness.nic.registers import Field
from harness.nic.transmit import TxQueue

MAX_NUMBER = 1_000_000
MAX_MS = 600_000

# MCDI_EVENT_CODE_*.
_BADASSERT, _SENSOREVT, _TX_ERR, _RX_ERR, _MC_REBOOT = 0x01, 0x05, 0x0B, 0x11, 0x15
# MCDI_EVENT_SENSOREVT_*: which sensor (0 is CONTROLLER_TEMP), WARNING, and its value.
_SENSOR_STATE, _SENSOR_VALUE, _WARNING = Field(8, 8), Field(16, 16), 1
# MCDI_EVENT_RX_ERR_TYPE and TX_ERR_TYPE: the descriptor could not be fetched.
_ERR_TYPE, _DL_FAIL = Field(12, 4), 1
_ECRC_ERR = Field(24, 1)
_GET_ASSERTS, _REBOOT = 0x06, 0x3D
_EV_CODE_TX = 2
_TX_LABEL, _TX_INDEX = Field(16, 5), Field(0, 16)


class Mishap(Enum):
    """What happens to one MCDI request."""

    STUCK = "it is never answered"
    LATE = "it is answered after some time"
    SILENT = "it is answered, without the event"
    TWICE = "its event comes twice"
    REBOOT = "the management CPU restarts instead of answering"
    DEAD = "the management CPU has failed an assertion and refuses all but two commands"


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for.

    Args:
        number: how many: times, requests, events or descriptors, as the fault has it.
        ms: how long it lasts, or how late it is.
        command: the MCDI command it waits for; None: the next one, whatever it is.
    """

    number: int = 1
    ms: int = 0
    command: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The parts of the device that faults act on."""

    plug: Callable[[bool], None]
    evqs: Mapping[int, queues.EventQueue]
    rxqs: Mapping[int, queues.RxQueue]
    txqs: Mapping[int, TxQueue]
    mc_reboot: Callable[[], None]
    conditions_changed: Callable[[], None]
    """Called when one of :class:`Injector`'s conditions begins or ends."""


class Injector:
    """Brings faults about.

    Attributes:
        asserted: the management CPU has failed an assertion.
        starved: no descriptor of a receive queue is used.
        halted: nothing is transmitted or completed.
        muted: interrupts wait.
        cut_off: every access of the function to memory fails.
        removed: the card is no longer there.
    """

    def __init__(self, card: Card, journal: Journal, clock_ns: Callable[[], int]) -> None:
        self._card = card
        self._journal = journal
        self._clock_ns = clock_ns
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._armed: deque[tuple[Mishap, Request]] = deque()
        self._until_ns = dict.fromkeys(("starved", "halted", "muted", "cut_off"), 0)
        self.asserted = self.removed = False
        self.starved = self.halted = self.muted = self.cut_off = False

    def inject(self, name: str, request: Request) -> None:
        """Begin the fault ``name``.

        Raises:
            KeyError: there is no such fault.
            ValueError: a number is out of range.
        """
        fault = FAULTS[name]
        if not 1 <= request.number <= MAX_NUMBER or not 0 <= request.ms <= MAX_MS:
            raise ValueError(f"number is 1 to {MAX_NUMBER}, ms 0 to {MAX_MS}")
        self._journal.tell(f"fault_{name.replace('-', '_')}", "%s", request)
        fault.begin(self, request)

    # The loop of the device.

    def due_ns(self) -> int | None:
        """When :meth:`tick` is due; None: it has nothing to do."""
        return self._later[0][0] if self._later else None

    def tick(self, now_ns: int) -> None:
        while self._later and self._later[0][0] <= now_ns:
            heapq.heappop(self._later)[2]()

    def after(self, ms: int, action: Callable[[], None]) -> None:
        """Do it later, never in the same :meth:`tick`: an action may ask for the next one."""
        due_ns = self._clock_ns() + max(ms * 1_000_000, 1)
        heapq.heappush(self._later, (due_ns, next(self._order), action))

    # The mailbox.

    def mishap(self, command: int) -> tuple[Mishap, int] | None:
        """What happens to a request, and the ms of the fault; None: it is served."""
        if self.asserted and command not in (_GET_ASSERTS, _REBOOT):
            return Mishap.DEAD, 0
        for at, (mishap, request) in enumerate(self._armed):
            if request.command in (None, command):
                del self._armed[at]
                if request.number > 1:
                    left = Request(request.number - 1, request.ms, request.command)
                    self._armed.insert(at, (mishap, left))
                if mishap is Mishap.REBOOT:
                    self.reboot(Request())
                return mishap, request.ms
        return None

    def rebooted(self) -> None:
        """The management CPU has restarted."""
        self.asserted = False

    # The faults.

    def arm(self, mishap: Mishap, request: Request) -> None:
        self._armed.append((mishap, request))

    def hold(self, condition: str, request: Request) -> None:
        """A condition that ends after a time; the longest of several counts."""
        until_ns = self._clock_ns() + request.ms * 1_000_000
        self._until_ns[condition] = max(self._until_ns[condition], until_ns)

        def end() -> None:
            if self._until_ns[condition] <= self._clock_ns():
                setattr(self, condition, False)
                self._card.conditions_changed()

        setattr(self, condition, True)
        self._card.conditions_changed()
        self.after(request.ms, end)

    def flap(self, request: Request) -> None:
        self._card.plug(False)

        def up() -> None:
            self._card.plug(True)
            if request.number > 1:
                again = Request(request.number - 1, request.ms)
                self.after(request.ms, lambda: self.flap(again))

        self.after(request.ms, up)

    def reboot(self, _: Request) -> None:
        """The event comes first: afterwards there is no event queue."""
        self._management_event(_MC_REBOOT)
        self._card.mc_reboot()

    def fail_assertion(self, _: Request) -> None:
        self.asserted = True
        self._management_event(_BADASSERT, 0x1000)

    def warm(self, _: Request) -> None:
        self._management_event(_SENSOREVT, _SENSOR_STATE.put(_WARNING) | _SENSOR_VALUE.put(95))

    def dma_error(self, code: int, request: Request) -> None:
        for _ in range(min(request.number, 16)):
            self._management_event(code, _ERR_TYPE.put(_DL_FAIL))

    def cut_off_dma(self, request: Request) -> None:
        """As if an IOMMU refused every access; then the card reports it."""
        self.hold("cut_off", request)
        self.after(request.ms, lambda: self.dma_error(_RX_ERR, Request()))

    def remove(self, _: Request) -> None:
        self.removed = True
        self._card.conditions_changed()

    def lose_rx(self, request: Request) -> None:
        """Frames have used descriptors, but there are no events of them."""
        for rxq in self._card.rxqs.values():
            rxq.skip(request.number)

    def repeat_rx(self, request: Request) -> None:
        for _ in range(min(request.number, 16)):
            self._rx_events(octets=64, used=0)

    def corrupt_rx(self, octets: int, error: int, request: Request) -> None:
        for _ in range(min(request.number, 64)):
            self._rx_events(octets=octets, used=1, error=error)

    def _rx_events(self, *, octets: int, used: int, error: int = 0) -> None:
        """An event of each receive queue that has descriptors, for ``used`` of them."""
        for rxq in self._card.rxqs.values():
            if rxq.skip(used) == used:
                event = queues.ESF_DZ_RX_BYTES.put(octets) | error
                event |= queues.ESF_DZ_RX_QLABEL.put(rxq.label)
                event |= queues.ESF_DZ_RX_DSC_PTR_LBITS.put(rxq.completed)
                rxq.evq.push_one(event, self._clock_ns())

    def lose_tx(self, _: Request) -> None:
        """Descriptors that wait are used without their frames and events."""
        for txq in self._card.txqs.values():
            txq.skip(txq.posted)

    def complete_tx(self, ahead: int, request: Request) -> None:
        """Events of each transmit queue: the last one again, or one of what is not posted."""
        for txq in self._card.txqs.values():
            for _ in range(min(request.number, 16)):
                event = queues.ESF_DZ_EV_CODE.put(_EV_CODE_TX) | _TX_LABEL.put(txq.label)
                event |= _TX_INDEX.put((txq.completed - 1 + ahead) % txq.entries)
                txq.evq.push_one(event, self._clock_ns())

    def _management_event(self, code: int, data: int = 0) -> None:
        if evq := self._card.evqs.get(0):
            evq.push_one(queues.mcdi_event(code) | data, self._clock_ns())


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what happens, and how it begins."""

    what: str
    begin: Callable[[Injector, Request], None]


def _request(mishap: Mishap) -> Callable[[Injector, Request], None]:
    return lambda injector, request: injector.arm(mishap, request)


def _condition(name: str) -> Callable[[Injector, Request], None]:
    return lambda injector, request: injector.hold(name, request)


FAULTS: dict[str, Fault] = {
    "link-flap": Fault("the link goes down for ms, number times", Injector.flap),
    "mc-reboot": Fault("the management CPU restarts", Injector.reboot),
    "mc-reboot-in-command": Fault(Mishap.REBOOT.value, _request(Mishap.REBOOT)),
    "mc-assertion": Fault("the management CPU fails an assertion", Injector.fail_assertion),
    "sensor-warning": Fault("a sensor reports 95 °C", Injector.warm),
    "mcdi-stuck": Fault("the next number of requests are never answered", _request(Mishap.STUCK)),
    "mcdi-late": Fault("the next number of requests are answered ms late", _request(Mishap.LATE)),
    "mcdi-no-event": Fault(
        "the next number of requests are answered without an event", _request(Mishap.SILENT)
    ),
    "mcdi-event-twice": Fault(
        "the events of the next number of requests come twice", _request(Mishap.TWICE)
    ),
    "rx-event-lost": Fault("number events of received frames are lost", Injector.lose_rx),
    "rx-event-twice": Fault("an event of a received frame comes again", Injector.repeat_rx),
    "rx-length": Fault(
        "an event of a frame says 16383 octets, more than its buffer has",
        lambda injector, request: injector.corrupt_rx(0x3FFF, 0, request),
    ),
    "rx-crc": Fault(
        "a frame has a wrong frame check sequence",
        lambda injector, request: injector.corrupt_rx(64, _ECRC_ERR.put(1), request),
    ),
    "rx-error": Fault(
        "a receive descriptor could not be fetched",
        lambda injector, request: injector.dma_error(_RX_ERR, request),
    ),
    "rx-starved": Fault("for ms no receive descriptor is used", _condition("starved")),
    "tx-event-lost": Fault("waiting frames are lost, with their events", Injector.lose_tx),
    "tx-event-twice": Fault(
        "the last event of a transmit queue comes again",
        lambda injector, request: injector.complete_tx(0, request),
    ),
    "tx-event-ahead": Fault(
        "an event says that a frame was sent that was not posted",
        lambda injector, request: injector.complete_tx(1, request),
    ),
    "tx-error": Fault(
        "a transmit descriptor could not be fetched",
        lambda injector, request: injector.dma_error(_TX_ERR, request),
    ),
    "tx-halted": Fault("for ms nothing is transmitted or completed", _condition("halted")),
    "interrupts-late": Fault("for ms interrupts wait", _condition("muted")),
    "removal": Fault("the card is pulled out, for good: every read gives ones", Injector.remove),
    "dma-fault": Fault(
        "for ms every access to memory fails; then the card reports it", Injector.cut_off_dma
    ),
}
