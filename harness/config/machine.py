# SPDX-License-Identifier: MIT
"""The power, console and boot of a machine, and where their secrets are stored."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Annotated, Literal

from pydantic import Field, Tag

from harness.config.fields import (
    Command,
    FilePath,
    Hostname,
    Interface,
    KernelConsole,
    KeyringEntry,
    Model,
    Port,
    SystemId,
    Url,
    User,
    Variable,
    by_key,
)


class EnvironmentSecret(Model):
    """A secret in a variable of the harness's environment."""

    env: Variable = Field(description="environment variable that holds it")


class FileSecret(Model):
    """A secret in a file that no other user can read."""

    file: FilePath = Field(description="file with the secret in its first line")


class KeyringSecret(Model):
    """A secret in the user's keyring."""

    keyring: KeyringEntry = Field(description="SERVICE/USER in the user's keyring")


Secret = Annotated[
    Annotated[EnvironmentSecret, Tag("with env")]
    | Annotated[FileSecret, Tag("with file")]
    | Annotated[KeyringSecret, Tag("with keyring")],
    by_key("env: VARIABLE, file: FILE, keyring: SERVICE/USER"),
]


class Redfish(Model):
    """A BMC that speaks Redfish."""

    url: Url = Field(description="its address, such as https://bmc.lab.example")
    user: User = Field(description="its user")
    password: Secret = Field(description="where the password is; never the password itself")
    system: SystemId | None = Field(
        default=None, description="system to control; null: the only one"
    )
    ca: FilePath | None = Field(
        default=None, description="CA certificate of the BMC; null: those of this machine"
    )


class Ipmi(Model):
    """A BMC that speaks IPMI 2.0 over the network."""

    hostname: Hostname = Field(description="its name or address")
    port: Port = Field(default=623, description="its UDP port")
    user: User = Field(description="its user")
    password: Secret = Field(description="where the password is; never the password itself")
    cipher_suite: Annotated[int, Field(ge=3, le=17)] | None = Field(
        default=None, description="cipher suite; null leaves it to ipmitool"
    )
    privilege: Literal["user", "operator", "administrator"] | None = Field(
        default=None,
        description="requested privilege level, at most that of the account; power control needs "
        "operator; null leaves it to ipmitool, which requests administrator",
    )


class RedfishPower(Model):
    """Power by Redfish."""

    redfish: Redfish = Field(description="the BMC")


class IpmiPower(Model):
    """Power by IPMI."""

    ipmi: Ipmi = Field(description="the BMC")


class CommandPower(Model):
    """Power by your own command."""

    command: Command = Field(
        description="program and arguments; on, off, cycle or status is appended, and status "
        "prints on or off"
    )


Power = Annotated[
    Annotated[RedfishPower, Tag("with redfish")]
    | Annotated[IpmiPower, Tag("with ipmi")]
    | Annotated[CommandPower, Tag("with command")],
    by_key("redfish: {…}, ipmi: {…}, command: [PROGRAM, …]"),
]


class SolConsole(Model):
    """The serial console by IPMI's serial over LAN."""

    sol: Ipmi = Field(description="the BMC")


class CommandConsole(Model):
    """The console as printed by your own command."""

    command: Command = Field(description="program and arguments; prints the console until killed")


class Netconsole(Model):
    """Where kernels under test send their messages."""

    address: IPv4Address = Field(description="address of this machine, as seen by the host")
    port: Port = Field(default=6666, description="UDP port on this machine")
    interface: Interface = Field(description="interface of the host; not the test interface")


class NetconsoleConsole(Model):
    """The kernel's messages by netconsole, which is enabled as soon as the host is up."""

    netconsole: Netconsole = Field(description="where it is sent")


Console = Annotated[
    Annotated[SolConsole, Tag("with sol")]
    | Annotated[CommandConsole, Tag("with command")]
    | Annotated[NetconsoleConsole, Tag("with netconsole")],
    by_key("sol: {…}, command: [PROGRAM, …], netconsole: {…}"),
]


class BootOptions(Model):
    """How kernels under test are booted."""

    method: Literal["auto", "kexec", "one-shot"] = Field(
        default="auto",
        description="auto uses kexec if possible, else a one-shot entry of the boot loader",
    )
    timeout_s: Annotated[int, Field(ge=30, le=3600)] = Field(
        default=300,
        description="seconds within which a kernel must be up after it starts; the time of the "
        "firmware before it does not count",
    )
    firmware_s: Annotated[int, Field(ge=0, le=3600)] | None = Field(
        default=None,
        description="additional seconds for the firmware; null: 1.5 times its time in an earlier "
        "boot, or timeout_s again while that is not known",
    )
    console: KernelConsole | None = Field(
        default=None,
        description="console= for kernels under test, if the host's own command line has no serial "
        "console; null adds none",
    )
