# SPDX-License-Identifier: MIT
"""Checks of addresses that are syntactically correct but not usable for a host.

Each function returns or yields what is wrong in words, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    ip_address,
)
from urllib.parse import urlsplit

from harness.config.machine import (
    CommandConsole,
    CommandPower,
    Console,
    IpmiPower,
    NetconsoleConsole,
    RedfishPower,
    SolConsole,
)
from harness.config.models import Host, LabgridHost, QemuHost, SshHost, UmlHost

GENERATOR_MAC = "02:00:00:00:00:01"
"""The MAC address of a virtual bed's generator."""

_WIDEST, _SINGLE = 8, 32
_BENCHMARK = "198.18.0.2/24"
_SSH_PORT = 22
_REDFISH_PORTS = {"http": 80, "https": 443}
_NOT_FOR_TESTS = ("lo", "all", "default")
# The secret is the next word, or follows = in the same word.
_SECRET_OPTION = re.compile(r"--?(pass|passwd|password|secret|token|api-?key)(=.*)?", re.IGNORECASE)
_SECRETS_OF = {"ipmitool": "-P", "sshpass": "-p", "curl": "-u", "ipmipower": "-p"}
_USERINFO = re.compile(r"://[^/\s]*@")

Told = tuple[tuple[str, ...], str]
"""The key path under the host, and what is wrong there with what is expected."""


def of_test(address: IPv4Interface) -> str | None:
    """Why ``address`` cannot be that of a test interface."""
    network, ip = address.network, address.ip
    expected = f"expected the address of one host, such as {_BENCHMARK}"
    if network.prefixlen == _SINGLE:
        return f"{address} leaves no address for the other host; expected a prefix of 8 to 31"
    if network.prefixlen < _WIDEST:
        return f"{address} would capture other traffic of the host; expected a prefix of 8 to 31"
    if odd := _no_host(ip):
        return f"{address} is {odd}; {expected}"
    if ip.is_link_local:
        return f"{address} is a link-local address; {expected}"
    if network.prefixlen < _SINGLE - 1 and ip == network.network_address:
        return f"{address} is the address of its network; {expected}"
    if network.prefixlen < _SINGLE - 1 and ip == network.broadcast_address:
        return f"{address} is the broadcast address of its network; {expected}"
    return None


def of_host(host: Host) -> Iterator[Told]:
    """What is wrong with the addresses of ``host``, its BMC and its console."""
    if why := of_test(host.address):
        yield ("address",), why
    if isinstance(host, QemuHost) and host.nic.mac in ("00:00:00:00:00:00", GENERATOR_MAC):
        whose = "the generator's address" if host.nic.mac == GENERATOR_MAC else "not an address"
        yield ("nic", "mac"), f"{host.nic.mac} is {whose}; expected one such as 02:00:00:00:00:02"
    if isinstance(host, SshHost | LabgridHost) and host.interface in _NOT_FOR_TESTS:
        yield ("interface",), f"{host.interface} has no NIC; expected an interface such as eth1"
    if isinstance(host, SshHost):
        yield from _of_machine(host)


def machine_of(host: SshHost) -> tuple[str, int]:
    """Equal for two host entries that lead to the same machine."""
    name = host.hostname.lower().rstrip(".")
    return str(_address(name) or name), host.port or _SSH_PORT


def shared(one: Host, other: Host) -> Iterator[tuple[str, str]]:
    """What two hosts of a bed wrongly share: the key, and what is wrong."""
    if isinstance(one, LabgridHost) and isinstance(other, LabgridHost):
        if one.resource == other.resource:
            yield "resource", f"{other.resource} is the dut itself; expected another one"
        return
    if isinstance(one, UmlHost) and isinstance(other, UmlHost) and one.nic.mac == other.nic.mac:
        yield "nic", f"{other.nic.mac} is the dut's MAC address; expected {{mac: {GENERATOR_MAC}}}"
    if not isinstance(one, SshHost) or not isinstance(other, SshHost):
        return
    if machine_of(one) == machine_of(other):
        yield "hostname", f"{other.hostname} is the dut itself; expected another machine"
        return
    if other.power is not None and other.power == one.power:
        yield "power", "the same as the dut's; expected its own, or none"
    if other.console is not None and _end_of(other.console) == _end_of(one.console):
        yield "console", "the same as the dut's; expected its own, or none"


def _end_of(console: Console | None) -> object:
    """Our end of ``console``, which only one host can use."""
    if isinstance(console, NetconsoleConsole):
        return console.netconsole.address, console.netconsole.port
    return console


def _of_machine(host: SshHost) -> Iterator[Told]:
    network = host.address.network
    reached: list[Told] = [(("hostname",), host.hostname)]
    if isinstance(host.power, IpmiPower):
        reached.append((("power", "ipmi", "hostname"), host.power.ipmi.hostname))
    elif isinstance(host.power, RedfishPower):
        where: tuple[str, ...] = ("power", "redfish", "url")
        if why := _of_url(host.power.redfish.url):
            yield where, why
        else:
            reached.append((where, urlsplit(host.power.redfish.url).hostname or ""))
    elif isinstance(host.power, CommandPower):
        yield from _of_command(("power", "command"), host.power.command)
    if isinstance(host.console, SolConsole):
        reached.append((("console", "sol", "hostname"), host.console.sol.hostname))
    elif isinstance(host.console, NetconsoleConsole):
        ours = host.console.netconsole
        at = ("console", "netconsole")
        reached.append(((*at, "address"), str(ours.address)))
        if ours.address.is_loopback:
            yield (
                (*at, "address"),
                f"{ours.address} is the host itself; expected an address of this machine",
            )
        if ours.interface == host.interface:
            yield (*at, "interface"), "the test interface; expected another one"
    elif isinstance(host.console, CommandConsole):
        yield from _of_command(("console", "command"), host.console.command)
    for key, name in reached:
        if why := _unreachable(name, network):
            yield key, why


def _unreachable(name: str, test: IPv4Network) -> str | None:
    address = _address(name)
    if address is None:
        if ":" in name or re.fullmatch(r"[0-9.]+", name):
            return f"{name} is not an address; expected a name or an address"
        return None
    if odd := _no_host(address, loopback=True):
        return f"{name} is {odd}; expected the address of one host"
    if isinstance(address, IPv4Address) and address in test:
        return f"{name} is in the network of the test, {test}; expected one outside it"
    return None


def _of_url(url: str) -> str | None:
    expected = "expected a URL such as https://bmc.lab.example"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"its host or port is not valid; {expected}, a port of 1 to 65535"
    name = parts.hostname or ""
    if port == 0:
        return f"its port is not valid; {expected}, a port of 1 to 65535"
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", name) and _address(name) is None:
        return f"it does not name a host; {expected}"
    if parts.netloc.endswith(":"):
        return f"its port is missing; {expected}"
    return None


def _of_command(key: tuple[str, ...], command: tuple[str, ...]) -> Iterator[Told]:
    """Refuse secrets: they would be in this file, in messages and in the process list."""
    told = "looks like a secret; expected none in this file: let the program read it elsewhere"
    risky = _SECRETS_OF.get(command[0].rpartition("/")[2])
    for number, word in enumerate(command):
        of_program = bool(risky and number and word.startswith(risky))
        if of_program or _SECRET_OPTION.fullmatch(word) or _USERINFO.search(word):
            yield (*key, str(number)), told


def _no_host(address: IPv4Address | IPv6Address, *, loopback: bool = False) -> str | None:
    """The kind of ``address`` if it cannot be a host's; with ``loopback``, loopback is allowed."""
    ipv4 = isinstance(address, IPv4Address)
    if address.is_unspecified or (ipv4 and address in IPv4Network("0.0.0.0/8")):
        return "not an address of a host"
    if address.is_multicast:
        return "a multicast address"
    if ipv4 and int(address) == 0xFFFFFFFF:
        return "the broadcast address"
    if ipv4 and address.is_reserved:
        return "a reserved address"
    if address.is_loopback and not loopback:
        return "a loopback address"
    return None


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None
