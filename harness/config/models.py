# SPDX-License-Identifier: MIT
"""What ``hosts.yaml`` can say, as frozen models.

The descriptions here are what a user reads: in the JSON Schema, and in errors
as that which was expected. Names that end up in commands have strict patterns.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
)

BedKind = Literal["virtual", "native", "hardware"]

EXPECTED: dict[str, str] = {}
"""What each pattern asks for, in words."""


_PORT = "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"


def _pattern(pattern: str, expected: str) -> StringConstraints:
    EXPECTED[pattern] = expected
    return StringConstraints(pattern=pattern)


def _from_the_file(path: Path, info: ValidationInfo) -> Path:
    text = str(path)
    if "://" in text or re.match(r"(?i)(https?|git|ssh):/", text):
        raise ValueError("an address; expected a path of this machine")
    if not text.isprintable():
        raise ValueError("a path with unprintable characters; expected one without")
    if re.search(r"\$[{A-Za-z_]", text):
        raise ValueError("variables are not expanded here; expected a path without $")
    try:
        return Path((info.context or {}).get("home", "")) / path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}; expected a path without ~") from error


def _program_from_the_file(command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """A program that is named by a path starts from the file's directory; another by PATH."""
    program, *words = command
    return (str(_from_the_file(Path(program), info)) if "/" in program else program, *words)


Cpu = Annotated[int, Field(ge=0, le=4095)]
Port = Annotated[int, Field(ge=1, le=65535)]
Cpus = Annotated[tuple[Cpu, ...], Field(min_length=1, max_length=1024)]
FilePath = Annotated[Path, AfterValidator(_from_the_file)]
Name = Annotated[
    str, _pattern(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", "a name of letters, digits, - and _")
]
Hostname = Annotated[
    str,
    _pattern(
        r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39})$",
        "a host name, an address, or a Host of your OpenSSH configuration",
    ),
]
User = Annotated[str, _pattern(r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$", "a user name")]
Interface = Annotated[
    str,
    _pattern(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$", "an interface name such as enp1s0f0np0"),
]
Mac = Annotated[
    str,
    _pattern(
        r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$",
        "a unicast MAC address such as 02:00:00:00:00:02, in lower case",
    ),
]
Url = Annotated[
    str,
    _pattern(r"^https?://[A-Za-z0-9.:\[\]_-]{1,255}(/[A-Za-z0-9._~/-]*)?$", "an https:// address"),
]
SystemId = Annotated[
    str,
    _pattern(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", "a system such as 1 or System.Embedded.1"),
]
Coordinator = Annotated[
    str,
    _pattern(
        rf"^([A-Za-z0-9]([A-Za-z0-9._-]{{0,251}}[A-Za-z0-9])?|\[[0-9A-Fa-f:]{{2,39}}\]){_PORT}$",
        "HOST or HOST:PORT of a labgrid coordinator",
    ),
]
LabgridName = Annotated[
    str,
    _pattern(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", "a name of letters, digits, dots, - and _"),
]
Variable = Annotated[
    str, _pattern(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", "the name of an environment variable")
]
KeyringEntry = Annotated[
    str, _pattern(r"^[A-Za-z0-9._@-]{1,64}/[A-Za-z0-9._@-]{1,64}$", "SERVICE/USER of a keyring")
]
Word = Annotated[
    str, _pattern(r"^[^\x00-\x08\x0b-\x1f\x7f]{1,4096}$", "a word without control characters")
]
Command = Annotated[
    tuple[Word, ...], Field(min_length=1, max_length=64), AfterValidator(_program_from_the_file)
]
KernelConsole = Annotated[
    str,
    _pattern(
        r"^(tty[A-Za-z]{1,8}[0-9]{1,3}|hvc[0-9]{1,2})(,[0-9a-z,]{1,32})?$",
        "a console as kernels name it, such as ttyS1,115200n8",
    ),
]
Suite = Annotated[str, _pattern(r"^[a-z][a-z0-9-]{0,31}$", "a Debian suite such as trixie")]
Governor = Annotated[
    str, _pattern(r"^[a-z][a-z_]{0,15}$", "a cpufreq governor such as performance, or null")
]
Package = Annotated[
    str, _pattern(r"^[a-z0-9][a-z0-9+.-]{1,63}$", "a package such as linux-source-6.12")
]
GitRef = Annotated[
    str, _pattern(r"^[A-Za-z0-9][A-Za-z0-9._/~^-]{0,199}$", "a commit, tag or branch")
]
DistccHost = Annotated[
    str,
    _pattern(
        r"^(([A-Za-z_][A-Za-z0-9_.-]{0,31})?@)?[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
        rf"{_PORT}(/[0-9]{{1,4}})?(,lzo)?$",
        "a host as distcc names it, such as builder.lab.example:3632/16,lzo",
    ),
]
SeriesName = Annotated[
    str, _pattern(r"^(auto|linux-[0-9]+\.[0-9]+)$", "auto or a series such as linux-6.12")
]


class Model(BaseModel):
    """Frozen, and closed: a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PackageSource(Model):
    """A kernel source in an installed Debian package."""

    package: Package = Field(description="Debian package that holds the kernel source")


class TarballSource(Model):
    """A kernel source in a tarball."""

    tarball: FilePath = Field(description="tarball with one directory at its top")


class GitSource(Model):
    """A kernel source in a git repository, which is only read."""

    git: FilePath = Field(description="git repository with a kernel tree")
    ref: GitRef = Field(default="HEAD", description="commit, tag or branch of that repository")


def _by_key(expected: str) -> Discriminator:
    """Tells models apart by their first key; ``expected`` shows each as ``key: VALUE``."""
    names = re.findall(r"(\w+): ", expected)

    def tag(value: Any) -> str | None:
        keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
        return next((f"with {name}" for name in names if name in keys), None)

    return Discriminator(
        tag, custom_error_type="by_key", custom_error_message=f"expected one of {expected}"
    )


Source = Annotated[
    Annotated[PackageSource, Tag("with package")]
    | Annotated[TarballSource, Tag("with tarball")]
    | Annotated[GitSource, Tag("with git")],
    _by_key("package: NAME, tarball: FILE, git: DIRECTORY"),
]


class EnvironmentSecret(Model):
    """A secret in a variable of the harness's environment."""

    env: Variable = Field(description="environment variable that holds it")


class FileSecret(Model):
    """A secret in a file that no other user can read."""

    file: FilePath = Field(description="file whose first line it is")


class KeyringSecret(Model):
    """A secret in the user's keyring."""

    keyring: KeyringEntry = Field(description="SERVICE/USER in the user's keyring")


Secret = Annotated[
    Annotated[EnvironmentSecret, Tag("with env")]
    | Annotated[FileSecret, Tag("with file")]
    | Annotated[KeyringSecret, Tag("with keyring")],
    _by_key("env: VARIABLE, file: FILE, keyring: SERVICE/USER"),
]


class Distcc(Model):
    """Machines that compile for this one; they have its gcc."""

    hosts: Annotated[tuple[DistccHost, ...], Field(min_length=1, max_length=64)] = Field(
        description="the machines, as in DISTCC_HOSTS"
    )
    jobs: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="compilers at once; null: what distcc gives the hosts, and ours"
    )


class Kernel(Model):
    """Which kernel is patched and built, and how."""

    source: Source = Field(
        default=PackageSource(package="linux-source-6.12"),
        description="where the source comes from",
    )
    series: SeriesName = Field(
        default="auto", description="patch series; auto goes by the tree's version"
    )
    config: Annotated[
        Literal["auto", "benchmark", "host"] | FilePath, Field(union_mode="left_to_right")
    ] = Field(
        default="auto",
        description="configuration: benchmark, a small kernel for virtual beds; host, the dut's "
        "own with the modules it has loaded; auto, benchmark for a qemu or uml dut and host for an "
        "ssh dut; or a .config file. What the experiment needs is put over host and file",
    )
    compiler_cache: Literal["ccache"] | None = Field(
        default=None,
        description="ccache keeps objects as your ccache configuration says; null: gcc alone",
    )
    distcc: Distcc | None = Field(
        default=None, description="machines that compile too; null: this one alone"
    )


class Load(Model):
    """What the generator sends during a trial."""

    test: Literal["UDP_STREAM"] = Field(default="UDP_STREAM", description="netperf test")
    streams: Annotated[int, Field(ge=1, le=64)] = Field(default=10, description="netperf processes")
    message_bytes: Annotated[int, Field(ge=1, le=65507)] = Field(
        default=1, description="payload of one message, in bytes"
    )


class Placement(Model):
    """On which CPUs of their hosts the interrupt and the processes run."""

    irq_cpu: Cpu = Field(default=0, description="CPU of the dut that takes the receive interrupt")
    netserver_cpu: Literal["same"] | Cpu = Field(
        default="same", description="CPU of netserver: same as the interrupt's, or another"
    )
    netperf_cpus: Literal["auto"] | Cpus = Field(
        default="auto",
        description="CPUs of an ssh generator that its netperf processes take in turn",
    )


class Coalesce(Model):
    """Interrupt moderation of the dut's interface."""

    adaptive_rx: bool = Field(description="whether the driver adapts it to the load")
    rx_usecs: Annotated[int, Field(ge=0, le=65535)] = Field(description="hold-off in µs")


class Offloads(Model):
    """Offloads of the dut's interface; null leaves one as it is."""

    gro: bool | None = Field(default=None, description="generic receive offload")
    gro_hw: bool | None = Field(default=None, description="the same, by the NIC")
    gro_list: bool | None = Field(default=None, description="GRO into lists of whole packets")
    lro: bool | None = Field(default=None, description="large receive offload")
    rx_checksum: bool | None = Field(default=None, description="checksums checked by the NIC")
    rx_hash: bool | None = Field(default=None, description="hashes computed by the NIC")
    udp_gro_forwarding: bool | None = Field(
        default=None, description="GRO of UDP that no socket asked for"
    )


class MachineCpus(Model):
    """On which CPUs of this machine a virtual or native bed runs."""

    vcpus: Cpus = Field(
        description="CPU of each vCPU thread, taken in turn when fewer; the first is that of a "
        "user-mode kernel"
    )
    model: Cpu = Field(description="CPU of the NIC model")
    netperf: Cpus = Field(description="CPUs that the netperf processes take in turn")


class BedSettings(Model):
    """How a bed is set up during a trial; all of it is restored afterwards."""

    placement: Placement = Field(default=Placement(), description="CPUs of interrupt and processes")
    rx_queues: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="receive queues in use on the dut"
    )
    steering: Literal["auto", "rss", "ntuple"] | None = Field(
        default="auto",
        description="how packets come into those queues: rss by the indirection table, ntuple by "
        "a rule for UDP, auto by fewer queues, else the table, else a rule; null leaves all three "
        "as they are",
    )
    rx_ring: Annotated[int, Field(ge=64, le=65536)] | None = Field(
        default=None,
        description="descriptors in each receive ring of the dut; null leaves them as they are",
    )
    offloads: Offloads | None = Field(
        default=None, description="offloads on the dut; null leaves all as they are"
    )
    coalesce: Coalesce | None = Field(
        default=None, description="interrupt moderation on the dut; null leaves it as it is"
    )
    napi_defer_hard_irqs: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=0,
        description="polls without packets after which the dut's interrupt is on again; "
        "null leaves it as it is",
    )
    gro_flush_timeout_ns: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = Field(
        default=0,
        description="how long the dut's NAPI may hold packets and interrupts back, in ns; "
        "null leaves it as it is",
    )
    irqbalance: Literal["off"] | None = Field(
        default="off", description="irqbalance during a trial; null leaves it as it is"
    )
    governor: Governor | None = Field(
        default="performance",
        description="cpufreq governor, where there is one; null leaves it as it is",
    )
    paced_pps: Annotated[int, Field(ge=1000, le=100_000_000)] | None = Field(
        default=None,
        description="packets/s at which CPU time per packet is measured, well below what the "
        "slowest step takes; null: 10, 50 and 90 % of what the slowest step was found to take",
    )
    cpus: Literal["auto"] | MachineCpus = Field(
        default="auto", description="CPUs of this machine, for a virtual or native bed"
    )


class Labgrid(Model):
    """A place of a labgrid coordinator that is acquired for as long as a bed is used."""

    place: LabgridName = Field(description="the place that holds both hosts")
    coordinator: Coordinator | None = Field(
        default=None,
        description="HOST or HOST:PORT of the coordinator; null leaves it to LG_COORDINATOR",
    )


class BedEntry(BedSettings):
    """Two hosts that are measured together."""

    dut: Name = Field(description="host that receives: of kind uml, qemu, ssh or labgrid")
    generator: Name = Field(
        description="host that sends: of kind netns (to a uml or qemu dut), ssh or labgrid"
    )
    labgrid: Labgrid | None = Field(
        default=None, description="place of a lab shared by labgrid; null: the hosts' own leases"
    )


class Nic(Model):
    """The NIC of a guest."""

    model: Literal["ef10"] = Field(default="ef10", description="NIC model")
    mac: Mac = Field(default="02:00:00:00:00:02", description="its MAC address")


class _Host(Model):
    address: IPv4Interface = Field(
        description="IPv4 address and prefix for test traffic, such as 198.18.0.2/24"
    )


class QemuHost(_Host):
    """A guest on this machine whose NIC is a model that the harness runs."""

    kind: Literal["qemu"]
    vcpus: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="virtual CPUs")
    memory_mib: Annotated[int, Field(ge=512, le=65536)] = Field(
        default=1024, description="memory of the guest, in MiB"
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        default="auto", description="auto takes KVM where it is proven to work, else TCG"
    )
    nic: Nic = Field(default=Nic(), description="its NIC")
    suite: Suite = Field(default="trixie", description="Debian suite of the guest's image")


class Wire(Model):
    """How the NIC model of a user-mode kernel delivers what is on its wire."""

    repeat: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default="auto",
        description="how often each frame is delivered: auto, as often as the receiver takes it "
        "while the streams go on; 1, once, as on a real wire",
    )
    burst: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="frames delivered at once at most; null: as many as there are buffers",
    )


class UmlHost(_Host):
    """A kernel that is a process of this machine (ARCH=um), whose NIC is the model."""

    kind: Literal["uml"]
    memory_mib: Annotated[int, Field(ge=128, le=65536)] = Field(
        default=256, description="memory of the kernel, in MiB"
    )
    nic: Nic = Field(default=Nic(), description="its NIC")
    wire: Wire = Field(default=Wire(), description="how that delivers what is on the wire")

    @property
    def vcpus(self) -> int:
        """It has one CPU."""
        return 1


class Redfish(Model):
    """A BMC that speaks Redfish."""

    url: Url = Field(description="its address, such as https://bmc.lab.example")
    user: User = Field(description="its user")
    password: Secret = Field(description="where the password is; never the password itself")
    system: SystemId | None = Field(
        default=None, description="the system there; null: its only one"
    )
    ca: FilePath | None = Field(
        default=None, description="certificate that vouches for it; null: those of this machine"
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
        description="privilege level asked for, no higher than the account's; the power needs "
        "operator; null leaves it to ipmitool, which asks for administrator",
    )


class RedfishPower(Model):
    """Power by Redfish."""

    redfish: Redfish = Field(description="the BMC")


class IpmiPower(Model):
    """Power by IPMI."""

    ipmi: Ipmi = Field(description="the BMC")


class CommandPower(Model):
    """Power by a command of yours."""

    command: Command = Field(
        description="program and arguments; on, off, cycle or status is put after them, "
        "and status prints on or off"
    )


Power = Annotated[
    Annotated[RedfishPower, Tag("with redfish")]
    | Annotated[IpmiPower, Tag("with ipmi")]
    | Annotated[CommandPower, Tag("with command")],
    _by_key("redfish: {…}, ipmi: {…}, command: [PROGRAM, …]"),
]


class SolConsole(Model):
    """The serial console by IPMI's serial over LAN."""

    sol: Ipmi = Field(description="the BMC")


class CommandConsole(Model):
    """The console as a command of yours prints it."""

    command: Command = Field(description="program and arguments; prints the console until ended")


class Netconsole(Model):
    """Where kernels under test send their messages."""

    address: IPv4Address = Field(description="address of this machine, as the host sees it")
    port: Port = Field(default=6666, description="UDP port on this machine")
    interface: Interface = Field(description="interface of the host; never that of the test")


class NetconsoleConsole(Model):
    """What the kernel sends by netconsole, which is switched on as soon as it is up."""

    netconsole: Netconsole = Field(description="where it is sent")


Console = Annotated[
    Annotated[SolConsole, Tag("with sol")]
    | Annotated[CommandConsole, Tag("with command")]
    | Annotated[NetconsoleConsole, Tag("with netconsole")],
    _by_key("sol: {…}, command: [PROGRAM, …], netconsole: {…}"),
]


class Boot(Model):
    """How kernels under test are booted."""

    method: Literal["auto", "kexec", "one-shot"] = Field(
        default="auto",
        description="auto takes kexec where it can, else the boot loader's one-shot entry",
    )
    timeout_s: Annotated[int, Field(ge=30, le=3600)] = Field(
        default=300,
        description="seconds within which a kernel has to be up, from its beginning: what the "
        "firmware takes before is not counted",
    )
    firmware_s: Annotated[int, Field(ge=0, le=3600)] | None = Field(
        default=None,
        description="seconds the firmware may take besides; null: one and a half times what it "
        "took at a boot before, or timeout_s again while that is not known",
    )
    console: KernelConsole | None = Field(
        default=None,
        description="console= for kernels under test, where the host's own command line names no "
        "serial line; null adds none",
    )


class NetnsHost(_Host):
    """A network namespace on this machine."""

    kind: Literal["netns"]


class SshHost(_Host):
    """A machine reached with OpenSSH; jump hosts, keys and agents are OpenSSH's to configure."""

    kind: Literal["ssh"]
    hostname: Hostname = Field(
        description="host name, address, or a Host of your OpenSSH configuration"
    )
    user: User | None = Field(default=None, description="user; null leaves it to OpenSSH")
    port: Port | None = Field(default=None, description="port; null leaves it to OpenSSH")
    known_hosts: FilePath | None = Field(
        default=None, description="file of host keys; null leaves it to OpenSSH"
    )
    interface: Interface = Field(description="interface that carries the test traffic")
    power: Power | None = Field(
        default=None, description="how it is power-cycled; without it a dead kernel stays dead"
    )
    console: Console | None = Field(
        default=None, description="its console; without it a dead kernel says nothing"
    )
    boot: Boot = Field(default=Boot(), description="how kernels are booted, on a dut")


class LabgridHost(_Host):
    """A machine whose address, power and console are resources of its bed's labgrid place."""

    kind: Literal["labgrid"]
    resource: LabgridName = Field(
        description="name of its NetworkService in the place: address, user and port"
    )
    power_resource: LabgridName | None = Field(
        default=None, description="name of its power port in the place; null: as resource, if any"
    )
    console_resource: LabgridName | None = Field(
        default=None,
        description="name of its NetworkSerialPort in the place; null: as resource, if any",
    )
    known_hosts: FilePath | None = Field(
        default=None, description="file of host keys; null leaves it to OpenSSH"
    )
    interface: Interface = Field(description="interface that carries the test traffic")
    boot: Boot = Field(default=Boot(), description="how kernels are booted, on a dut")


Host = Annotated[
    QemuHost | UmlHost | NetnsHost | SshHost | LabgridHost, Field(discriminator="kind")
]


def _whole(value: Any) -> Any:
    """A Literal would take true and 1.0 for 1."""
    return value if isinstance(value, int) and not isinstance(value, bool) else repr(value)


class HostsFile(Model):
    """The whole of hosts.yaml."""

    version: Annotated[Literal[1], BeforeValidator(_whole)] = Field(
        description="version of this file's form: 1"
    )
    default_bed: Name = Field(default="virtual", description="bed that is used when none is named")
    kernel: Kernel = Field(default=Kernel(), description="kernel source and series")
    load: Load = Field(default=Load(), description="load during a trial")
    beds: dict[Name, BedEntry] = Field(min_length=1, description="beds by name")
    hosts: dict[Name, Host] = Field(min_length=1, description="hosts by name")


class Bed(BedSettings):
    """A bed with its hosts in place of their names."""

    name: str
    dut_name: str
    dut: QemuHost | UmlHost | SshHost | LabgridHost
    generator_name: str
    generator: NetnsHost | SshHost | LabgridHost
    labgrid: Labgrid | None = None

    @property
    def kind(self) -> BedKind:
        """``virtual`` where the dut is a guest, ``native`` where its kernel is a process."""
        if isinstance(self.dut, UmlHost):
            return "native"
        return "virtual" if isinstance(self.dut, QemuHost) else "hardware"

    @property
    def arch(self) -> Literal["x86", "um"]:
        """What kernels for its dut are built for."""
        return "um" if isinstance(self.dut, UmlHost) else "x86"

    @property
    def netserver_cpu(self) -> int:
        """CPU of the dut on which netserver runs."""
        chosen = self.placement.netserver_cpu
        return self.placement.irq_cpu if chosen == "same" else chosen
