# SPDX-License-Identifier: MIT
"""Power and console of a labgrid place as commands, as hosts.yaml's ``command`` expects them.

python -m harness.beds.labgrid.resource --place P power NAME on|off|cycle|status
python -m harness.beds.labgrid.resource --place P console NAME
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time

from harness.beds.labgrid.client import client_command, environment

_CALL_S = 28.0
_AGAIN_S = 2.0


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--place", required=True)
    parser.add_argument("--coordinator")
    parser.add_argument("what", choices=["power", "console"])
    parser.add_argument("name")
    parser.add_argument("action", nargs="?", choices=["on", "off", "cycle", "status"])
    asked = parser.parse_args()
    if asked.coordinator:
        os.environ["LG_COORDINATOR"] = asked.coordinator
    if asked.what == "power":
        _power(asked.place, asked.name, asked.action or "status")
    else:
        _console(asked.place, asked.name)


def _power(place: str, name: str, action: str) -> None:
    verb = "get" if action == "status" else action
    try:
        done = subprocess.run(
            [*client_command(), "--place", place, "power", verb, "--name", name],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_CALL_S,
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"labgrid-client did not end in {_CALL_S:.0f} s")
    if done.returncode != 0:
        sys.exit((done.stderr.strip() or done.stdout.strip() or "labgrid-client failed")[-400:])
    if action == "status":
        told = re.search(r" is (on|off)$", done.stdout.strip())
        sys.stdout.write(f"{told[1]}\n" if told else f"unknown: {done.stdout[-200:]!r}\n")


def _console(place: str, name: str) -> None:
    """Print the serial port's output while the parent process lives."""
    starter = os.getppid()
    try:
        _read_console(place, name, starter)
    except Exception as error:  # noqa: BLE001 - whatever broke, the console must continue
        sys.stderr.write(f"console {name}: {error}\n")
    time.sleep(_AGAIN_S)
    if os.getppid() == starter:
        # A new process, because labgrid keeps its session for the life of a process.
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]])  # noqa: S606


def _read_console(place: str, name: str, starter: int) -> None:
    import labgrid
    from labgrid.driver import SerialDriver
    from labgrid.resource.remote import RemotePlace
    from pexpect import TIMEOUT

    target = labgrid.Target(place)
    RemotePlace(target, name=place)
    target.set_binding_map({"port": name})
    port = SerialDriver(target, name)
    target.activate(port)
    while os.getppid() == starter:
        try:
            said = port.read(timeout=1.0, max_size=65536)
        except TIMEOUT:
            continue
        os.write(1, said)


if __name__ == "__main__":
    main()
