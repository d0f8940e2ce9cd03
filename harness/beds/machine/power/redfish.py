# SPDX-License-Identifier: MIT
"""One act on a BMC by Redfish: a program that :mod:`harness.beds.machine.power` starts.

One login serves for the query, the order and the check of its effect: on many BMCs a login
takes seconds. A BMC that was just reset, or whose machine was, refuses requests, drops
connections and forgets sessions for a while:
:mod:`harness.beds.machine.power.patience` handles that.

A process can be ended even if the BMC never answers or answers without end. Standard
input has the act as JSON, with the password. Standard output gets ``{"on": bool}`` or
``{"refused": text, "hint": text or null}``, the latter with ``"configuration": true`` if
hosts.yaml does not say which system is meant.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import signal
import ssl
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import sushy
import sushy.auth
import sushy.exceptions as refusals

from harness.beds.machine.power.patience import MaybeDoneError, Patient, TooLateError

_MEMORY = 512 << 20
_POLL_S = 0.5
_SHOWS_S = 8.0
"""Within this time an accepted but unanswered order shows its effect."""
_LAST_WORDS_S = 2.0
_UNAUTHORISED = (401, 403)

WAYS = {
    "on": ("On", "ForceOn"),
    "off": ("ForceOff",),
    # PowerCycle removes power from the whole machine; a restart also ends a hang.
    "cycle": ("PowerCycle", "ForceRestart"),
}
"""The values of ResetType for each act, the preferred one first."""


def main() -> None:
    """Do the act on standard input."""
    logging.getLogger("sushy").addHandler(logging.NullHandler())
    logging.getLogger("sushy").propagate = False
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    asked = json.load(sys.stdin)
    signal.alarm(int(asked["within_s"]) + 5)  # in case the harness that started this is gone
    json.dump(_answer(asked), sys.stdout)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"on": _act(asked)}
    except refusals.HTTPError as error:
        hint = None
        if error.status_code in _UNAUTHORISED:
            hint = "check user and password, and that this user may switch the power"
        said = f": {error.detail}" if error.detail else ""
        return {"refused": f"answered {error.status_code}{said}", "hint": hint}
    except refusals.ConnectionError as error:
        hint = None
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "set ca to the certificate that signed the BMC's, or use the name in the BMC's"
        return {"refused": f"cannot be reached: {error}", "hint": hint}
    except TooLateError as error:
        return {"refused": f"did not answer in {asked['within_s']:.0f} s: {error}", "hint": None}
    except MaybeDoneError as error:
        return {"refused": f"{error}; whether it was done is not known", "hint": None}
    except _UnnamedError as error:
        return {"refused": str(error), "hint": None, "configuration": True}
    except _RefusedError as error:
        return {"refused": str(error), "hint": None}
    except MemoryError:
        return {"refused": "answers without end", "hint": None}
    except Exception as error:  # noqa: BLE001
        # The library passes on several kinds of error for the answers of a broken BMC.
        return {
            "refused": f"violates the Redfish protocol: {type(error).__name__}: {error}",
            "hint": None,
        }


class _RefusedError(Exception):
    pass


class _UnnamedError(_RefusedError):
    """It is not known which of the BMC's systems is meant."""


def _act(asked: dict[str, Any]) -> bool:
    """Do the act; returns whether the system is on now."""
    deadline = asked["until"] - _LAST_WORDS_S
    trusted = ssl.get_default_verify_paths()
    path = urlsplit(asked["url"]).path.strip("/")
    login = sushy.auth.SessionOrBasicAuth(asked["user"], asked["password"])
    patient = Patient(
        asked["url"],
        verify=asked["ca"] or trusted.cafile or trusted.capath or True,
        within_s=asked["within_s"],
        deadline=deadline,
    )
    root = sushy.Sushy(
        asked["url"],
        auth=login,
        connector=patient,
        root_prefix=f"/{path or 'redfish/v1'}/",
    )
    try:
        system = root.get_system(_path(root, asked["system"], deadline))
        on = _settled(system, deadline)
        act = "on" if asked["act"] == "cycle" and not on else asked["act"]
        if act == "status" or (act != "cycle" and on is (act == "on")):
            return on
        _ordered(system, act, deadline)
        try:
            while _settled(system, deadline, anew=True) is (act == "off"):
                if time.monotonic() > deadline:
                    raise _RefusedError(
                        f"accepted “{act}”, but the host is still "
                        f"{'on' if act == 'off' else 'off'} after {asked['within_s']:.0f} s"
                    )
                time.sleep(_POLL_S)
        except (refusals.SushyError, TooLateError) as error:
            raise _RefusedError(
                f"accepted “{act}”, but did not answer since whether it was done: {error}"
            ) from error
        return act != "off"
    finally:
        with contextlib.suppress(refusals.SushyError):
            login.close()


def _settled(system: Any, deadline: float, *, anew: bool = False) -> bool:
    """Whether the system is on; waits until the BMC knows, which may be starting."""
    while True:
        try:
            if anew:
                system.refresh(force=True)
            if system.power_state is not None:
                # States between on and off have power.
                return bool(system.power_state is not sushy.PowerState.OFF)
        except (refusals.MissingAttributeError, refusals.MalformedAttributeError):
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise _RefusedError("does not report whether the system is on")
        anew = True
        time.sleep(_POLL_S)


def _path(root: sushy.Sushy, wanted: str | None, deadline: float) -> str:
    """The path of the system: the only one, or the one whose path ends in ``wanted``.

    Raises:
        _UnnamedError: there are several, or none of that name.
    """
    collection = root.get_system_collection()
    while not collection.members_identities and time.monotonic() < deadline:
        time.sleep(_POLL_S)  # a starting BMC has not found them yet
        collection.refresh(force=True)
    paths = collection.members_identities
    if not paths:
        raise _RefusedError("has no system")
    found = [path for path in paths if wanted in {None, path.rstrip("/").rpartition("/")[2]}]
    if len(found) != 1:
        names = ", ".join(path.rstrip("/").rpartition("/")[2] for path in paths[:20])
        asked = f"no system {wanted}" if wanted else "several systems, so name one as system"
        raise _UnnamedError(f"has {asked}; it has: {names}")
    return str(found[0])


def _ordered(system: Any, act: str, deadline: float) -> None:
    """Order ``act``. If the order may have been accepted, it is repeated only after the system
    has shown that it was not.
    """
    before = system.json.get("LastResetTime")
    while True:
        try:
            return _reset(system, act)
        except MaybeDoneError as error:
            if _shows(system, act, before, deadline) or (act == "cycle" and not error.refused):
                return None
            if time.monotonic() > deadline:
                raise
            if act == "cycle" and before is None:
                # Without LastResetTime a restart cannot be seen; off and on can.
                _ordered(system, "off", deadline)
                while _settled(system, deadline, anew=True):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_POLL_S)
                act = "on"


def _shows(system: Any, act: str, before: object, deadline: float) -> bool:
    """Whether ``act``, which may have been accepted, shows its effect within ``_SHOWS_S``."""
    until = min(deadline, time.monotonic() + _SHOWS_S)
    while True:
        on = _settled(system, deadline, anew=True)
        if act == "cycle":
            seen = not on or system.json.get("LastResetTime") != before
        else:
            seen = on is (act == "on")
        if seen or time.monotonic() > until:
            return seen
        time.sleep(_POLL_S)


def _reset(system: Any, act: str) -> None:
    allowed = {kind.value: kind for kind in system.get_allowed_reset_system_values()}
    ways = [allowed[way] for way in WAYS[act] if way in allowed]
    if not ways:
        raise _RefusedError(f"allows no {act}, only {', '.join(sorted(allowed))}")
    for way in ways:
        try:
            system.reset_system(way)
        except refusals.BadRequestError:
            # Systems that do not list the allowed values refuse unknown ones.
            if way is ways[-1]:
                raise
        else:
            return


if __name__ == "__main__":
    main()
