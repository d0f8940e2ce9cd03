# SPDX-License-Identifier: MIT
"""One act on a BMC by Redfish, as a program of its own that :mod:`harness.hosts.power` starts.

As a process it can be ended whatever the BMC does: it never answers, or without
end. Standard input has what to do as JSON, the password in it; standard output
gets ``{"on": bool}`` or ``{"refused": text, "hint": text or null}``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import signal
import ssl
import sys
from typing import Any
from urllib.parse import urlsplit

import sushy
import sushy.auth
import sushy.exceptions as refusals

_MEMORY = 512 << 20
_CONNECT_S = 10
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


def _act(asked: dict[str, Any]) -> bool:
    """Whether the system was on before the act."""
    trusted = ssl.get_default_verify_paths()
    path = urlsplit(asked["url"]).path.strip("/")
    login = sushy.auth.SessionOrBasicAuth(asked["user"], asked["password"])
    root = sushy.Sushy(
        asked["url"],
        auth=login,
        root_prefix=f"/{path or 'redfish/v1'}/",
        verify=asked["ca"] or trusted.cafile or trusted.capath or True,
        # One try, no more: an act that did not answer may have been done.
        server_side_retries=1,
        server_side_retries_delay=1,
        connect_timeout=_CONNECT_S,
        read_timeout=asked["within_s"],
    )
    try:
        system = root.get_system(_path(root, asked["system"]))
        if system.power_state is None:
            raise _RefusedError("does not say whether the system is on")
        if asked["act"] != "status":
            _reset(system, asked["act"])
        return system.power_state is not sushy.PowerState.OFF
    finally:
        with contextlib.suppress(refusals.SushyError):
            login.close()


def _path(root: sushy.Sushy, wanted: str | None) -> str:
    """Where the system is: the only one, or that whose address ends in ``wanted``."""
    paths = root.get_system_collection().members_identities
    found = [path for path in paths if wanted in {None, path.rstrip("/").rpartition("/")[2]}]
    if len(found) != 1:
        names = ", ".join(path.rstrip("/").rpartition("/")[2] for path in paths[:20]) or "none"
        asked = f"no system {wanted}" if wanted else "not one system, so name it as system"
        raise _RefusedError(f"has {asked}; there are: {names}")
    return str(found[0])


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
