# SPDX-License-Identifier: MIT
"""The power of a machine: by Redfish, by IPMI, or by a command of the user's.

Each act is a program of its own. It is ended, with its children, if it takes too
long; only the end of its output is kept. It gets passwords in its environment or on
standard input, never as arguments.
"""

from __future__ import annotations

import abc
import json
import os
import subprocess
import sys
import time

from harness import config
from harness.base import process
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.machine.power import secrets

_WITHIN_S = 30.0
_POLL_S = 0.5
_LEAST_S = 1.0
_LEAST_ANSWER_S = 5.0
_SHOWS_S = 8.0
"""Within this time an accepted but unanswered order shows its effect."""
_TAIL_BYTES = 16 << 10
_LAST_LINES = 3


def connect(power: config.Power, host: str, *, within_s: float = _WITHIN_S) -> Power:
    """What switches ``host`` on and off; no call takes longer than ``within_s``.

    Does not contact the BMC yet.

    Raises:
        ConfigurationError: the password is not where hosts.yaml says.
    """
    if isinstance(power, config.RedfishPower):
        return _Redfish(power.redfish, host, within_s)
    if isinstance(power, config.IpmiPower):
        return _Ipmi(power.ipmi, host, within_s)
    return _Command(power.command, host, within_s)


class Power(abc.ABC):
    """The power of one host.

    Every method raises :class:`InfrastructureError`, naming host and BMC, when
    the BMC refuses or does not answer in time.
    """

    def __init__(self, host: str, bmc: str, within_s: float) -> None:
        self.host = host
        self.bmc = bmc
        """The BMC or command, for messages."""
        self._within_s = within_s

    @abc.abstractmethod
    def status(self) -> bool:
        """Whether the host is on."""

    @abc.abstractmethod
    def on(self) -> None:
        """Switch it on, if it is off, and wait until it is on."""

    @abc.abstractmethod
    def off(self) -> None:
        """Switch it off at once, if it is on, and wait until it is off."""

    @abc.abstractmethod
    def cycle(self) -> None:
        """Power-cycle it, or switch it on if it is off."""

    def _refused(self, what: str, *, hint: str | None = None) -> InfrastructureError:
        return InfrastructureError(
            f"{self.host}: {self.bmc} {process.harmless(what)}",
            hint=hint or "check the BMC; it may be unreachable, busy or in need of a reset",
        )

    def _run(
        self,
        command: list[str],
        within_s: float,
        *,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
        hint: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` to its end, whatever its status."""
        try:
            return process.run(
                command,
                env=env,
                stdin=stdin,
                timeout_s=within_s,
                tail_bytes=_TAIL_BYTES,
                check=False,
                hint=hint,
            )
        except InfrastructureError as error:
            if isinstance(error.__cause__, subprocess.TimeoutExpired):
                raise self._refused(f"did not answer in {self._within_s:.0f} s") from error
            raise InfrastructureError(f"{self.host}: {error.message}", hint=error.hint) from error


class _Redfish(Power):
    def __init__(self, bmc: config.Redfish, host: str, within_s: float) -> None:
        super().__init__(host, f"the BMC {bmc.url}", within_s)
        self._config = bmc
        self._password = secrets.read(bmc.password)
        if bmc.ca is not None and not bmc.ca.is_file():
            raise ConfigurationError(f"{host}: {bmc.ca}, the certificate of its BMC, is not a file")

    def status(self) -> bool:
        return self._act("status")

    def on(self) -> None:
        self._act("on")

    def off(self) -> None:
        self._act("off")

    def cycle(self) -> None:
        self._act("cycle")

    def _act(self, act: str) -> bool:
        bmc = self._config
        asked = {
            "act": act, "url": bmc.url, "user": bmc.user, "password": self._password,
            "system": bmc.system, "ca": str(bmc.ca) if bmc.ca else None, "within_s": self._within_s,
            "until": time.monotonic() + self._within_s,  # the same clock for every process
        }  # fmt: skip
        done = self._run(
            [sys.executable, "-m", "harness.beds.machine.power.redfish"],
            self._within_s,
            stdin=json.dumps(asked),
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError as error:
            raise self._refused(f"crashed the Redfish client: {_last(done.stderr)}") from error
        if "on" in answer:
            return bool(answer["on"])
        if answer.get("configuration"):
            raise ConfigurationError(
                f"{self.host}: {self.bmc} {process.harmless(str(answer['refused']))[:1000]}",
                hint=f"set hosts.{self.host}.power.redfish.system in hosts.yaml",
            )
        raise self._refused(
            _without(self._password, str(answer["refused"]))[:1000], hint=answer["hint"]
        )


class _PassingError(InfrastructureError):
    """A temporary refusal, for example of a busy or starting BMC; a retry may succeed."""

    def __init__(self, error: InfrastructureError, *, maybe_done: bool) -> None:
        super().__init__(error.message, hint=error.hint)
        self.maybe_done = maybe_done
        """Whether the order may have been accepted all the same; it is not repeated then."""


class _Polled(Power):
    """Power that only takes orders: after an order, its effect is polled for.

    Temporary refusals are retried until the time is up. If an order may have been accepted,
    its effect is looked for; the order is repeated only if there was none.
    """

    def status(self) -> bool:
        return self._known(self._deadline())

    def on(self) -> None:
        self._switch("on", self._deadline())

    def off(self) -> None:
        self._switch("off", self._deadline())

    def cycle(self) -> None:
        deadline = self._deadline()
        if self._known(deadline):
            self._order("cycle", deadline)
            self._await("cycle", deadline)
        else:
            self._switch("on", deadline)

    def _switch(self, act: str, deadline: float) -> None:
        if self._known(deadline) is not (act == "on"):
            self._order(act, deadline)
            self._await(act, deadline)

    def _known(self, deadline: float) -> bool:
        """Whether the host is on; retries temporary refusals."""
        while True:
            try:
                return self._ask(self._left(deadline))
            except _PassingError:
                if self._left(deadline) < _POLL_S + _LEAST_S:
                    raise
                time.sleep(_POLL_S)

    def _order(self, act: str, deadline: float) -> None:
        """Give the order, and repeat it after temporary refusals while there is time. An order
        that may have been accepted is left to :meth:`_await`.
        """
        while True:
            try:
                return self._tell(act, self._left(deadline))
            except _PassingError as error:
                if self._left(deadline) < _POLL_S + _LEAST_S:
                    raise
                if error.maybe_done:
                    if act == "cycle" or self._seen(act, deadline):
                        return None
                else:
                    time.sleep(_POLL_S)

    def _seen(self, act: str, deadline: float) -> bool:
        """Whether an order that may have been accepted shows within :data:`_SHOWS_S`."""
        until = min(deadline - _POLL_S - _LEAST_S, time.monotonic() + _SHOWS_S)
        while self._known(deadline) is (act == "off"):
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        return True

    def _await(self, act: str, deadline: float) -> None:
        """Return when the accepted order ``act`` has taken effect."""
        trouble: InfrastructureError | None = None
        while True:
            try:
                if self._ask(self._left(deadline)) is not (act == "off"):
                    return
                trouble = None
            except InfrastructureError as error:  # only the query failed, not the order
                trouble = error
            if self._left(deadline) < _POLL_S + _LEAST_S:
                break
            time.sleep(_POLL_S)
        if trouble is not None:
            raise InfrastructureError(
                f"{trouble.message}\n  it accepted “{act}” before; whether it did it is not known",
                hint=trouble.hint,
            ) from trouble
        raise self._refused(
            f"accepted “{act}”, but the host is still {'on' if act == 'off' else 'off'} "
            f"after {self._within_s:.0f} s"
        )

    def _deadline(self) -> float:
        return time.monotonic() + self._within_s

    def _left(self, deadline: float) -> float:
        return max(_LEAST_S, deadline - time.monotonic())

    @abc.abstractmethod
    def _ask(self, within_s: float) -> bool:
        """Whether the host is on; raises :class:`_PassingError` if a retry may succeed."""

    @abc.abstractmethod
    def _tell(self, act: str, within_s: float) -> None:
        """Order ``act`` (on, off or cycle); raises as :meth:`_ask` does."""


class _Ipmi(_Polled):
    def __init__(self, bmc: config.Ipmi, host: str, within_s: float) -> None:
        super().__init__(host, f"the BMC {bmc.hostname}", within_s)
        self._config = bmc
        self._env = ipmi_environment(bmc)

    def _ask(self, within_s: float) -> bool:
        said = self._ipmitool("status", within_s).strip()
        for state in ("on", "off"):
            if said.endswith(f"is {state}"):
                return state == "on"
        raise _PassingError(
            self._refused(f"does not report whether the host is on: {said[:200]}"), maybe_done=False
        )

    def _tell(self, act: str, within_s: float) -> None:
        self._ipmitool(act, within_s)

    def _ipmitool(self, act: str, within_s: float) -> str:
        # Only -v distinguishes a wrong password from a BMC that does not answer.
        command = [*ipmi_command(self._config), "-v", "chassis", "power", act]
        # Leaves time to repeat a lost request.
        patience_s = min(within_s, max(_LEAST_ANSWER_S, self._within_s / 2))
        try:
            done = self._run(command, patience_s, env=self._env, hint=IPMITOOL_HINT)
        except InfrastructureError as error:
            if isinstance(getattr(error.__cause__, "__cause__", None), subprocess.TimeoutExpired):
                raise _PassingError(error, maybe_done=True) from error
            raise
        if done.returncode != 0:
            said = _without(self._env["IPMI_PASSWORD"], _last(done.stderr or done.stdout))
            refused = self._refused(f"refused “{act}”: {said}", hint=_ipmi_hint(said))
            if any(word in said for word in _IPMI_FINAL):
                raise refused
            sent = "Unable to establish" not in said and "failed:" not in said
            raise _PassingError(refused, maybe_done=sent)
        return done.stdout


class _Command(_Polled):
    def __init__(self, command: tuple[str, ...], host: str, within_s: float) -> None:
        super().__init__(host, f"the power command {process.quoted(command)}", within_s)
        self._command = command

    def _ask(self, within_s: float) -> bool:
        words = self._say("status", within_s).split()
        if len(words) != 1 or words[0].lower() not in {"on", "off"}:
            raise self._refused(
                f"answered “status” with neither on nor off, but: {' '.join(words)[:200]}"
            )
        return words[0].lower() == "on"

    def _tell(self, act: str, within_s: float) -> None:
        self._say(act, within_s)

    def _say(self, act: str, within_s: float) -> str:
        # The user's own program gets the user's environment.
        done = self._run([*self._command, act], within_s, env=dict(os.environ))
        if done.returncode != 0:
            raise self._refused(
                f"ended with status {done.returncode} on “{act}”: "
                f"{_last(done.stderr or done.stdout)}",
                hint="run it by hand",
            )
        return done.stdout


IPMITOOL_HINT = "apt-get install ipmitool"
_IPMI_PRIVILEGE_HINT = (
    "set `privilege: operator` (or user, administrator) next to its user in hosts.yaml: ipmitool "
    "requests administrator unless told otherwise; power control needs operator"
)
IPMI_REFUSED_HINT = (
    "it is unreachable, or the user, password or cipher suite is wrong, or the account is not an "
    "administrator (then set `privilege: operator` in hosts.yaml); IPMI does not tell which"
)
# Permanent refusals, from ipmitool's plugins/lanplus/lanplus_strings.c and the completion
# codes of lib/ipmi_strings.c. All others (node busy, timeout, out of space, initialization in
# progress, not supported in present state, no session at all) may be temporary.
_IPMI_PRIVILEGE = (
    "Insufficient privilege", "nvalid role", "nauthorized role", "privilege level"
)  # fmt: skip
_IPMI_FINAL = (
    *_IPMI_PRIVILEGE, "HMAC is invalid", "nauthorized name", "nvalid name length",
    "no cipher suite match", "o matching authentication", "o matching integrity",
    "o matching cipher", "invalid authentication algorithm", "invalid integrity algorithm",
    "invalid confidentiality algorithm", "Address lookup for", "Invalid command", "Unknown command",
    "Could not open", "nvalid option", "Usage:", "usage:", "lib not found", "BMC does not support",
)  # fmt: skip


def _ipmi_hint(said: str) -> str | None:
    if any(word in said for word in _IPMI_PRIVILEGE):
        return _IPMI_PRIVILEGE_HINT
    return IPMI_REFUSED_HINT if "Unable to establish" in said else None


def ipmi_command(bmc: config.Ipmi) -> list[str]:
    """``ipmitool`` with its options; :func:`ipmi_environment` has the password."""
    suite = [] if bmc.cipher_suite is None else ["-C", str(bmc.cipher_suite)]
    level = [] if bmc.privilege is None else ["-L", bmc.privilege.upper()]
    return [
        "ipmitool", "-I", "lanplus", "-H", bmc.hostname, "-p", str(bmc.port), "-U", bmc.user,
        "-E", *suite, *level,
    ]  # fmt: skip


def ipmi_environment(bmc: config.Ipmi) -> dict[str, str]:
    """The environment for :func:`ipmi_command`; raises what :func:`secrets.read` does."""
    inherited = process.environment()
    inherited.pop("IPMITOOL_PASSWORD", None)
    return inherited | {"IPMI_PASSWORD": secrets.read(bmc.password)}


def _last(said: str) -> str:
    return "; ".join(said.strip().splitlines()[-_LAST_LINES:])[-1000:] or "no output"


def _without(password: str, text: str) -> str:
    return text.replace(password, "••••")
