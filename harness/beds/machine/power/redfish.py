# SPDX-License-Identifier: MIT
"""One act on a BMC by Redfish, a program of its own that :mod:`harness.beds.machine.power` starts.

One login serves for looking, acting and seeing it done: on many BMCs it takes seconds.
A BMC that was just reset, or whose machine was, refuses, drops connections and forgets
sessions for a while: :mod:`harness.beds.machine.power.patience` waits that out.

As a process it can be ended whatever the BMC does: it never answers, or without
end. Standard input has what to do as JSON, the password in it; standard output
gets ``{"on": bool}`` or ``{"refused": text, "hint": text or null}``, the latter with
``"configuration": true`` where hosts.yaml does not say which system is meant.
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
"""Within so long an order shows that was taken and not answered."""
_LAST_WORDS_S = 2.0
_UNAUTHORISED = (401, 403)

WAYS = {
    "on": ("On", "ForceOn"),
    "off": ("ForceOff",),
    # What removes power from all of the machine first; a restart also ends a hang.
    "cycle": ("PowerCycle", "ForceRestart"),
}
"""The values of ResetType that do each act, the best first."""


def main() -> None:
    """Do what standard input says."""
    logging.getLogger("sushy").addHandler(logging.NullHandler())
    logging.getLogger("sushy").propagate = False
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    asked = json.load(sys.stdin)
    signal.alarm(int(asked["within_s"]) + 5)  # also where nobody is left to end it
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
            hint = "name the certificate that vouches for it as ca, or the name it is made out to"
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
        # Whatever a broken BMC says; the library lets several kinds of error through.
        return {
            "refused": f"does not speak Redfish as it should: {type(error).__name__}: {error}",
            "hint": None,
        }


class _RefusedError(Exception):
    pass


class _UnnamedError(_RefusedError):
    """There are systems, and which is meant is not known."""


def _act(asked: dict[str, Any]) -> bool:
    """Do it; whether the system is on now."""
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
                        f"took “{act}”, but the host is still {'on' if act == 'off' else 'off'} "
                        f"after {asked['within_s']:.0f} s"
                    )
                time.sleep(_POLL_S)
        except (refusals.SushyError, TooLateError) as error:
            raise _RefusedError(
                f"took “{act}” and could not be asked since whether that was done: {error}"
            ) from error
        return act != "off"
    finally:
        with contextlib.suppress(refusals.SushyError):
            login.close()


def _settled(system: Any, deadline: float, *, anew: bool = False) -> bool:
    """Whether the system is on, once it says so: while a BMC starts it may not know."""
    while True:
        try:
            if anew:
                system.refresh(force=True)
            if system.power_state is not None:
                # All between on and off has power.
                return bool(system.power_state is not sushy.PowerState.OFF)
        except (refusals.MissingAttributeError, refusals.MalformedAttributeError):
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise _RefusedError("does not say whether the system is on")
        anew = True
        time.sleep(_POLL_S)


def _path(root: sushy.Sushy, wanted: str | None, deadline: float) -> str:
    """Where the system is: the only one, or that whose address ends in ``wanted``.

    Raises:
        _UnnamedError: there are several, or others than that.
    """
    collection = root.get_system_collection()
    while not collection.members_identities and time.monotonic() < deadline:
        time.sleep(_POLL_S)  # one that starts has yet to find them
        collection.refresh(force=True)
    paths = collection.members_identities
    if not paths:
        raise _RefusedError("has no system")
    found = [path for path in paths if wanted in {None, path.rstrip("/").rpartition("/")[2]}]
    if len(found) != 1:
        names = ", ".join(path.rstrip("/").rpartition("/")[2] for path in paths[:20])
        asked = f"no system {wanted}" if wanted else "not one system, so name it as system"
        raise _UnnamedError(f"has {asked}; there are: {names}")
    return str(found[0])


def _ordered(system: Any, act: str, deadline: float) -> None:
    """Have ``act`` begun. It is not ordered again where the first order may have been taken,
    unless the system has shown that it was not.
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
                # It cannot be seen whether the machine began anew; this way it can.
                _ordered(system, "off", deadline)
                while _settled(system, deadline, anew=True):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_POLL_S)
                act = "on"


def _shows(system: Any, act: str, before: object, deadline: float) -> bool:
    """Whether ``act``, which was perhaps taken, is seen to have been within a while."""
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
            # Systems that do not say what they allow refuse what they do not know.
            if way is ways[-1]:
                raise
        else:
            return


if __name__ == "__main__":
    main()
