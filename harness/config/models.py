# SPDX-License-Identifier: MIT
"""The content of ``hosts.yaml`` as frozen models.

Users read the descriptions in the JSON Schema, and in errors after "expected".
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from harness.config.fields import (
    Coordinator,
    Cpu,
    Cpus,
    FilePath,
    Hostname,
    Interface,
    LabgridName,
    Mac,
    Model,
    Name,
    Port,
    Suite,
    User,
)
from harness.config.kernel import Kernel
from harness.config.machine import BootOptions, Console, Power
from harness.config.tuned import Tuned

Arch = Literal["x86", "um"]


class Load(Model):
    """What the generator sends during a trial; :mod:`harness.trials.loads` has the kinds."""

    kind: Literal["udp", "udp6", "forward", "tcp"] = Field(
        default="udp",
        description="udp to a socket of the dut, udp6 the same over IPv6; forward: the dut sends "
        "the packets back out, to an address behind the generator; tcp: bulk transfers",
    )
    test: Literal["UDP_STREAM"] = Field(default="UDP_STREAM", description="netperf test")
    streams: Annotated[int, Field(ge=1, le=64)] = Field(default=10, description="netperf processes")
    message_bytes: Annotated[int, Field(ge=1, le=65507)] = Field(
        default=1, description="payload of one message, in bytes"
    )

    def record(self) -> dict[str, Any]:
        """As results have it: earlier versions knew one kind, and did not name it."""
        told = self.model_dump(mode="json", exclude={"kind"} if self.kind == "udp" else None)
        return told | ({"test": "TCP_STREAM"} if self.kind == "tcp" else {})


class Placement(Model):
    """On which CPUs of their hosts the interrupt and the processes run."""

    irq_cpu: Cpu = Field(default=0, description="CPU of the dut that takes the receive interrupt")
    netserver_cpu: Literal["same"] | Cpu = Field(
        default="same", description="CPU of netserver; same: that of the interrupt"
    )
    netperf_cpus: Literal["auto"] | Cpus = Field(
        default="auto",
        description="CPUs of an ssh generator; its netperf processes are spread over them",
    )


class MachineCpus(Model):
    """On which CPUs of this machine a virtual or native bed runs."""

    vcpus: Cpus = Field(
        description="CPUs of the vCPU threads, used in turn if there are fewer; a user-mode kernel "
        "uses the first"
    )
    model: Cpu = Field(description="CPU of the NIC model")
    netperf: Cpus = Field(description="CPUs over which the netperf processes are spread")


class BedSettings(Tuned):
    """How a bed is set up during a trial; all of it is restored afterwards."""

    placement: Placement = Field(default=Placement(), description="CPUs of interrupt and processes")
    rx_queues: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="receive queues in use on the dut"
    )
    steering: Literal["auto", "rss", "ntuple"] | None = Field(
        default="auto",
        description="how packets get into those queues: rss by the indirection table; ntuple by a "
        "rule for UDP; auto by fewer queues, else the table, else a rule; null leaves all three "
        "as they are",
    )
    paced_pps: Annotated[int, Field(ge=1000, le=100_000_000)] | None = Field(
        default=None,
        description="packets/s at which CPU time per packet is measured, well below the rate that "
        "the slowest step takes; null: 10, 50 and 90 % of the measured rate of the slowest step",
    )
    cpus: Literal["auto"] | MachineCpus = Field(
        default="auto", description="CPUs of this machine, for a virtual or native bed"
    )


class Labgrid(Model):
    """A place of a labgrid coordinator; it is acquired while the bed is used."""

    place: LabgridName = Field(description="the place that holds both hosts")
    coordinator: Coordinator | None = Field(
        default=None,
        description="HOST or HOST:PORT of the coordinator; null leaves it to LG_COORDINATOR",
    )


class BedEntry(BedSettings):
    """Two hosts that are measured together."""

    dut: Name = Field(description="host that receives: of kind uml, qemu, ssh or labgrid")
    generator: Name = Field(
        description="host that sends: of kind netns (to a uml or qemu dut), uml (to a uml dut), "
        "ssh or labgrid"
    )
    labgrid: Labgrid | None = Field(
        default=None, description="place of a labgrid lab; null: leases on the hosts themselves"
    )


class Nic(Model):
    """The NIC of a guest."""

    model: Literal["ef10"] = Field(default="ef10", description="NIC model")
    mac: Mac = Field(default="02:00:00:00:00:02", description="its MAC address")


class _Host(Model):
    bed_kind: ClassVar[str] = ""
    """The kind of bed whose dut it can be; see ``harness.beds.registry``."""
    generators: ClassVar[tuple[str, ...]] = ()
    """The kinds of host that can send to it; none: it cannot be a dut."""
    arch: ClassVar[Arch] = "x86"
    """The architecture of its kernels."""
    address: IPv4Interface = Field(
        description="IPv4 address and prefix for test traffic, such as 198.18.0.2/24"
    )


class Wire(Model):
    """How the NIC model delivers frames from its wire."""

    repeat: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default="auto",
        description="how often each frame is delivered; auto: as often as the receiver can take "
        "it while the streams send; 1: once, as on a real wire",
    )
    burst: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="most frames delivered at once; null: as many as there are buffers",
    )


class QemuHost(_Host):
    """A guest on this machine whose NIC is a model that the harness runs."""

    bed_kind = "virtual"
    generators = ("netns",)

    kind: Literal["qemu"]
    vcpus: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="virtual CPUs")
    memory_mib: Annotated[int, Field(ge=512, le=65536)] = Field(
        default=1024, description="memory of the guest, in MiB"
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        default="auto", description="auto uses KVM if a test boot with it works, else TCG"
    )
    nic: Nic = Field(default=Nic(), description="its NIC")
    wire: Wire = Field(
        default=Wire(repeat=1),
        description="how the NIC delivers frames from the wire; under KVM a guest receives more "
        "than netperf sends, so repeat: auto",
    )
    suite: Suite = Field(default="trixie", description="Debian suite of the guest's image")


class UmlHost(_Host):
    """A kernel that is a process of this machine (ARCH=um), with the NIC model."""

    bed_kind = "native"
    generators = ("netns", "uml")
    arch = "um"

    kind: Literal["uml"]
    memory_mib: Annotated[int, Field(ge=128, le=65536)] = Field(
        default=256, description="memory of the kernel, in MiB"
    )
    nic: Nic = Field(default=Nic(), description="its NIC")
    wire: Wire = Field(
        default=Wire(), description="how the NIC of a dut delivers frames from the wire"
    )

    @property
    def vcpus(self) -> int:
        """It has one CPU."""
        return 1


class NetnsHost(_Host):
    """A network namespace on this machine."""

    kind: Literal["netns"]


class SshHost(_Host):
    """A machine reached with OpenSSH, whose configuration has jump hosts, keys and agents."""

    bed_kind = "hardware"
    generators = ("ssh", "labgrid")

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
        default=None, description="power control; without it the harness cannot end a dead kernel"
    )
    console: Console | None = Field(
        default=None, description="its console; without it the messages of a dead kernel are lost"
    )
    boot: BootOptions = Field(
        default=BootOptions(), description="how kernels are booted, if it is a dut"
    )


class LabgridHost(_Host):
    """A machine whose address, power and console are resources of its bed's labgrid place."""

    bed_kind = "hardware"
    generators = ("labgrid", "ssh")

    kind: Literal["labgrid"]
    resource: LabgridName = Field(
        description="name of its NetworkService in the place: address, user and port"
    )
    power_resource: LabgridName | None = Field(
        default=None,
        description="name of its power port in the place; null: that of resource, if it exists",
    )
    console_resource: LabgridName | None = Field(
        default=None,
        description="name of its NetworkSerialPort in the place; null: that of resource, if it "
        "exists",
    )
    known_hosts: FilePath | None = Field(
        default=None, description="file of host keys; null leaves it to OpenSSH"
    )
    interface: Interface = Field(description="interface that carries the test traffic")
    boot: BootOptions = Field(
        default=BootOptions(), description="how kernels are booted, if it is a dut"
    )


Host = Annotated[
    UmlHost | QemuHost | NetnsHost | SshHost | LabgridHost, Field(discriminator="kind")
]
DUTS = tuple(
    get_args(model.model_fields["kind"].annotation)[0]
    for model in get_args(get_args(Host)[0])
    if model.generators
)
"""The kinds of host that can be a dut."""


def _whole(value: Any) -> Any:
    """Keeps a Literal from accepting true and 1.0 as 1."""
    return value if isinstance(value, int) and not isinstance(value, bool) else repr(value)


class HostsFile(Model):
    """The whole of hosts.yaml."""

    version: Annotated[Literal[1], BeforeValidator(_whole)] = Field(
        description="version of the file format: 1"
    )
    default_bed: Name = Field(default="virtual", description="bed to use if none is named")
    kernel: Kernel = Field(default=Kernel(), description="kernel source and series")
    load: Load = Field(default=Load(), description="load during a trial")
    beds: dict[Name, BedEntry] = Field(min_length=1, description="beds by name")
    hosts: dict[Name, Host] = Field(min_length=1, description="hosts by name")


class Bed(BedSettings):
    """A bed with its hosts instead of their names."""

    name: str
    dut_name: str
    dut: QemuHost | UmlHost | SshHost | LabgridHost
    generator_name: str
    generator: NetnsHost | UmlHost | SshHost | LabgridHost
    labgrid: Labgrid | None = None

    @property
    def kind(self) -> str:
        """The kind of bed, as in ``harness.beds.registry``."""
        return self.dut.bed_kind

    @property
    def guest_mib(self) -> int | None:
        """Memory of this machine that its kernels use; None: the dut is another machine."""
        used = [getattr(host, "memory_mib", None) for host in (self.dut, self.generator)]
        return sum(mib for mib in used if mib) or None

    @property
    def arch(self) -> Arch:
        """The architecture of kernels for its dut."""
        return self.dut.arch

    @property
    def netserver_cpu(self) -> int:
        """CPU of the dut on which netserver runs."""
        chosen = self.placement.netserver_cpu
        return self.placement.irq_cpu if chosen == "same" else chosen
