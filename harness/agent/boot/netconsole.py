# SPDX-License-Identifier: MIT
"""Sends the running kernel's messages by UDP to the console log of the controller."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from harness.agent import programs
from harness.agent.faults import AgentError
from harness.agent.interface.links import Links

_CONFIG = Path("/sys/kernel/config")
_TARGET = "receive-batching"
_ANSWERS_S = 5.0
_POLL_S = 0.2


def netconsole(*, interface: str, address: str, port: int) -> dict[str, Any]:
    """Make this kernel send its messages through ``interface`` to ``address``.

    One datagram with the kernel's version goes first: it proves that the path works and says
    which kernel the messages are from. Returns the netconsole parameters.

    Raises:
        AgentError: this kernel cannot, or ``interface`` does not lead to ``address``.
    """
    targets = _CONFIG / "netconsole"
    if not targets.is_dir():
        programs.run(["modprobe", "netconsole"], timeout_s=30)
        if not os.path.ismount(_CONFIG):
            programs.run(["mount", "-t", "configfs", "configfs", str(_CONFIG)], timeout_s=30)
    if not targets.is_dir():
        raise AgentError(
            "this kernel has no netconsole that can be configured while it runs",
            hint="it needs CONFIG_NETCONSOLE and CONFIG_NETCONSOLE_DYNAMIC",
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.sendto(Path("/proc/version").read_bytes(), (address, port))
    source, mac = _way(interface, address)
    wanted = {
        "dev_name": interface,
        "local_ip": source,
        "remote_ip": address,
        "remote_port": str(port),
        "remote_mac": mac,
    }
    target = targets / _TARGET
    target.mkdir(exist_ok=True)
    if (target / "enabled").read_text().strip() == "1":
        (target / "enabled").write_text("0")
    for name, value in wanted.items():
        (target / name).write_text(value)
    try:
        (target / "enabled").write_text("1")
    except OSError as error:
        raise AgentError(
            f"netconsole through {interface}: {error.strerror}",
            hint="its driver may not support netpoll; the kernel's log says why",
        ) from error
    return wanted


def _way(interface: str, address: str) -> tuple[str, str]:
    """This host's address and the MAC address of the next hop, once ARP has found it."""
    links = Links(interface)
    deadline = time.monotonic() + _ANSWERS_S
    while True:
        through, source, mac = links.way_to(address)
        if through != interface:
            raise AgentError(
                f"netconsole: {address} is reached through {through}, not {interface}",
                kind="configuration",
                hint=f"set console.netconsole.interface: {through}",
            )
        if mac:
            return source, mac
        if time.monotonic() > deadline:
            raise AgentError(f"netconsole: no ARP answer for {address} on {interface}")
        time.sleep(_POLL_S)
