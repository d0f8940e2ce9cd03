# SPDX-License-Identifier: MIT
"""``hosts.yaml``: what is accepted, and how each kind of mistake is told."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import config
from harness.base.errors import ConfigurationError
from harness.base.resources import shipped
from harness.config.document import RefusedError, parse

pytestmark = pytest.mark.unit

Writing = Callable[[str | bytes], Path]

VIRTUAL = """\
version: 1
default_bed: virtual
kernel:
  source: {package: linux-source-6.12}
load: {streams: 10}
beds:
  virtual:
    dut: guest
    generator: wire
    placement: {irq_cpu: 0, netserver_cpu: same}
    cpus: auto
hosts:
  guest:
    kind: qemu
    vcpus: 2
    nic: {model: ef10, mac: "02:00:00:00:00:02"}
    address: 198.18.0.2/24
  wire:
    kind: netns
    address: 198.18.0.1/24
"""

RACK = """\
version: 1
default_bed: rack
beds:
  rack:
    dut: rx
    generator: tx
    placement: {irq_cpu: 3, netserver_cpu: 5, netperf_cpus: [0, 1]}
    coalesce: {adaptive_rx: false, rx_usecs: 60}
    irqbalance: null
hosts:
  rx: {kind: ssh, hostname: rx.lab.example, interface: enp1s0f0np0, address: 198.18.1.2/24,
       known_hosts: keys/known_hosts}
  tx: {kind: ssh, hostname: "fd00::1", user: bench, port: 2222, interface: eth1,
       address: 198.18.1.1/24}
"""


@pytest.fixture
def written(tmp_path: Path) -> Writing:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "hosts.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def refusal(path: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        config.load(path)
    assert caught.value.message.isascii()
    return caught.value


def test_the_shipped_file_describes_beds_of_this_machine() -> None:
    hosts = config.load(shipped("hosts.yaml"))
    usual = config.bed(hosts)
    assert (usual.name, usual.kind) == ("native", "native")
    bed = config.bed(hosts, "virtual")
    assert (bed.name, bed.kind, bed.netserver_cpu) == ("virtual", "virtual", 0)
    assert isinstance(bed.dut, config.QemuHost)
    assert isinstance(bed.generator, config.NetnsHost)


def test_the_commented_bed_of_the_shipped_file_is_valid(written: Writing) -> None:
    shown = re.sub(
        r"^(  )# (  .*|rack:|lab:|(?:lab_)?[rt]x:)$",
        r"\1\2",
        shipped("hosts.yaml").read_text(),
        flags=re.MULTILINE,
    )
    hosts = config.load(written(shown))
    shared = config.bed(hosts, "lab")
    assert shared.labgrid is not None
    assert (shared.kind, shared.labgrid.place) == ("hardware", "rack1")
    assert isinstance(shared.dut, config.LabgridHost)
    bed = config.bed(hosts, "rack")
    assert bed.kind == "hardware"
    assert bed.tuning()["irqbalance"] == "off"
    assert bed.tuning()["coalesce"]["rx_usecs"] == 60


def test_a_real_bed_is_resolved(written: Writing) -> None:
    path = written(RACK)
    bed = config.bed(config.load(path))
    assert isinstance(bed.dut, config.SshHost)
    assert bed.dut.known_hosts == path.parent / "keys/known_hosts"
    assert (bed.netserver_cpu, bed.tuning()["irqbalance"], bed.placement.netperf_cpus) == (
        5,
        None,
        (0, 1),
    )
    assert bed.generator.address.ip != bed.dut.address.ip


LAB = RACK.replace("    dut: rx\n", "    dut: rx\n    labgrid: {place: rack1}\n").replace(
    "{kind: ssh, hostname: rx.lab.example,", "{kind: labgrid, resource: rx,"
)


def test_a_bed_of_a_labgrid_place(written: Writing) -> None:
    bed = config.bed(config.load(written(LAB)))
    assert bed.labgrid == config.Labgrid(place="rack1")
    assert isinstance(bed.dut, config.LabgridHost)
    assert isinstance(bed.generator, config.SshHost)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "    labgrid: {place: rack1}\n",
            "",
            "beds.rack.dut: rx is of kind labgrid; expected a labgrid pl",
        ),
        ("    labgrid: {place: rack1}\n", "", "hint: add labgrid: {place: NAME} to the bed"),
        ("place: rack1", "place: +rack1", "'+rack1' is not usable; expected a name of letters, d"),
        ("place: rack1", "pace: rack1", "beds.rack.labgrid.place: missing; expected the place th"),
        (
            "place: rack1",
            "place: rack1, coordinator: a b",
            "coordinator: 'a b' is not usable; expected HOST or HOST:PORT of a labgrid coordinator",
        ),
        ("resource: rx", "resource: 'rx;reboot'", "hosts.rx.resource: 'rx;reboot' is not usable; "),
        ("resource: rx,", "", "hosts.rx.resource: missing; expected name of its NetworkService"),
    ],
)
def test_mistakes_of_a_labgrid_bed(written: Writing, old: str, new: str, told: str) -> None:
    assert old in LAB
    assert told in str(refusal(written(LAB.replace(old, new, 1))))


def test_a_guest_is_in_no_labgrid_place(written: Writing) -> None:
    text = VIRTUAL.replace("    cpus: auto", "    labgrid: {place: rack1}")
    told = refusal(written(text)).message
    assert "beds.virtual.labgrid: its hosts are on this machine; expected none" in told


def test_what_the_nic_of_a_bed_is_set_to(written: Writing) -> None:
    asked = "rx_ring: 512\n    steering: null\n    offloads: {gro: false}"
    bed = config.bed(config.load(written(VIRTUAL.replace("cpus: auto", asked))))
    assert (bed.tuning()["rx_ring"], bed.steering) == (512, None)
    assert bed.tuning()["offloads"] == {"gro": False}
    bed = config.bed(config.load(written(VIRTUAL)))
    assert (bed.tuning()["rx_ring"], bed.steering, bed.tuning()["offloads"]) == (None, "auto", None)


def test_kernel_sources(written: Writing) -> None:
    for source, expected in {
        "{package: linux-source-6.1}": config.PackageSource(package="linux-source-6.1"),
        "{tarball: /srv/linux.tar.xz}": config.TarballSource(tarball=Path("/srv/linux.tar.xz")),
        "{git: /srv/linux, ref: v6.12}": config.GitSource(git=Path("/srv/linux"), ref="v6.12"),
    }.items():
        text = VIRTUAL.replace("{package: linux-source-6.12}", source)
        assert config.load(written(text)).kernel.source == expected


def test_how_kernels_are_built(written: Writing) -> None:
    plain = config.load(written(VIRTUAL)).kernel
    assert (plain.config, plain.compiler_cache, plain.distcc) == ("auto", None, None)
    for value, expected in {"host": "host", "benchmark": "benchmark", "rx.config": None}.items():
        path = written(VIRTUAL.replace("  source:", f"  config: {value}\n  source:"))
        kernel = config.load(path).kernel
        assert kernel.config == (expected or path.parent / "rx.config")
    distcc = "{hosts: ['a.lab:3632/8,lzo', me@b], jobs: 9}"
    more = f"  compiler_cache: ccache\n  distcc: {distcc}\n"
    kernel = config.load(written(VIRTUAL.replace("  source:", f"{more}  source:"))).kernel
    assert kernel.compiler_cache == "ccache"
    assert kernel.distcc == config.Distcc(hosts=("a.lab:3632/8,lzo", "me@b"), jobs=9)


@pytest.mark.parametrize(
    "host", ["--randomize", "+zeroconf", "a b", "a/x", "h:/usr/bin/distccd", "a;id", "$(id)", ""]
)
def test_what_is_no_host_of_distcc(written: Writing, host: str) -> None:
    more = f"  distcc: {{hosts: ['{host}']}}\n  source:"
    with pytest.raises(ConfigurationError, match=r"distcc.hosts.0: .* as distcc names it"):
        config.load(written(VIRTUAL.replace("  source:", more)))


def test_models_are_frozen(written: Writing) -> None:
    hosts = config.load(written(VIRTUAL))
    with pytest.raises(ValueError, match="frozen"):
        hosts.load.streams = 3


MISTAKES = [
    # line, what is replaced, by what, what is then told
    (8, "dut: guest", "dut: gest", "beds.virtual.dut: no host is named 'gest'; expected guest, "),
    (8, "dut: guest", "dut: gest", "hint: did you mean guest?"),
    (2, "default_bed: virtual", "default_bed: v", "default_bed: no bed is named 'v'; expected v"),
    (15, "vcpus: 2", "vcpu: 2", "hosts.guest.vcpu: unknown key; expected accelerator, address, "),
    (15, "vcpus: 2", "vcpu: 2", "hint: did you mean vcpus?"),
    (
        5,
        "streams:",
        "stream:",
        "load.stream: unknown key; expected kind, message_bytes, streams, test",
    ),
    (
        10,
        "irq_cpu:",
        "irq_cpus:",
        "beds.virtual.placement.irq_cpus: unknown key; expected irq_cpu,",
    ),
    (4, "{package:", "{pakage:", "kernel.source: expected one of package: NAME, tarball: FILE"),
    (4, "{package:", "{git: /x, packag:", "kernel.source.packag: unknown key; expected git, ref"),
    (4, "source:", "compiler_cache: sccache #", "'sccache' is not usable; expected 'ccache'"),
    (4, "source:", "distcc: {hosts: []} #", "kernel.distcc.hosts: "),
    (4, "source:", "config: [x] #", "kernel.config: a list is not usable; expected 'auto', "),
    (15, "vcpus: 2", "vcpus: '2'", "hosts.guest.vcpus: '2' is not usable; expected a whole number"),
    (15, "vcpus: 2", "vcpus: true", "true is not usable; expected a whole number"),
    (15, "vcpus: 2", "vcpus: 99", "99 is not usable; expected less than or equal to 64"),
    (15, "vcpus: 2", "accelerator: xen", "'xen' is not usable; expected 'auto', 'kvm' or 'tcg'"),
    (
        10,
        "cpu: same",
        "cpu: [1]",
        "netserver_cpu: a list is not usable; expected 'same' or a whole",
    ),
    (10, "cpu: same", "cpu: 2", "netserver_cpu: guest has no CPU 2; expected 0 to 1"),
    (10, "cpu: same", "cpu: same, netperf_cpus: [0]", "wire runs on this machine; expected auto"),
    (11, "cpus: auto", "cpus: {vcpus: [0], model: 1}", "virtual.cpus.netperf: missing; expected C"),
    (11, "cpus: auto", "cpus: {vcpus: [], model: 1, netperf: [0]}", "cpus.vcpus: a list is not us"),
    (11, "cpus: auto", "rx_queues: 4", "more than the 2 vCPUs of guest; expected 1 to 2"),
    (13, "    address: 198.18.0.2/24\n", "", "hosts.guest.address: missing; expected IPv4 address"),
    (17, "198.18.0.2/24", "198.18.0/24", "'198.18.0/24' is not usable; expected IPv4 address and "),
    (17, "198.18.0.2/24", "5", "5 is not usable; expected IPv4 address and prefix"),
    (9, "198.18.0.2/24", "198.19.0.2/24", "virtual.generator: 198.18.0.1/24 does not reach the du"),
    (9, "198.18.0.2/24", "198.18.0.1/24", "virtual.generator: 198.18.0.1/24 does not reach the du"),
    (
        8,
        "dut: guest",
        "dut: wire",
        "wire is of kind netns, which cannot be a dut; expected a host of ",
    ),
    (9, "generator: wire", "generator: guest", "expected a host of kind netns"),
    (16, "02:00:00:00:00:02", "01:00:00:00:00:02", "expected a unicast MAC address such as"),
    (
        19,
        "kind: netns",
        "kind: netsn",
        "unknown kind; expected kind: 'uml', 'qemu', 'netns', 'ssh'",
    ),
    (18, "    kind: netns\n", "", "hosts.wire: unknown kind; expected kind: "),
    (1, "version: 1", "version: 2", "version: 2 is not usable; expected 1"),
    (1, "version: 1\n", "", "version: missing; expected version of the file format: 1"),
    (18, "  wire:\n", "  guest:\n", "the key 'guest' is repeated; first on line 13"),
    (8, "dut: guest", "dut: &d guest", "an anchor or alias (& or *); expected the value"),
    (8, "dut: guest", "dut: *d", "an anchor or alias"),
    (8, "dut: guest", "<<: *d", "an anchor or alias"),
    (8, "dut: guest", "dut: !!python/object:os.system guest", "a tag ("),
    (9, "dut: guest", "dut: {a: b", "not valid YAML: "),
    (8, "dut: guest", 'dut: "\\ud800"', "half a surrogate pair"),
    (8, "dut: guest", "dut: \x1b[2J", "a control character"),
    (8, "dut: guest", 'dut: "\\e[2J"', r"'\x1b[2J' is not usable; expected a name of letters"),
    (8, "dut: guest", '"d\\e": guest', "a key with unprintable characters"),
    (12, "hosts:", "---\nhosts:", "a second document; expected one"),
    (13, "  guest:\n", "  [guest]:\n", "a key that is not a word; expected a name"),
    (4, "{package: linux-source-6.12}", "linux", "expected one of package: NAME, tarball: FILE"),
    (
        11,
        "cpus: auto",
        "coalesce: {rx_usecs: 1}",
        "coalesce.adaptive_rx: missing; expected whether",
    ),
    (11, "cpus: auto", "steering: rfs", "'rfs' is not usable; expected 'auto', 'rss' or 'ntuple'"),
    (
        12,
        "cpus: auto",
        "rx_queues: 2\n    steering: ntuple",
        "steering: a rule steers to one queue",
    ),
    (11, "cpus: auto", "rx_ring: 8", "8 is not usable; expected greater than or equal to 64"),
    (11, "cpus: auto", "offloads: {tso: true}", "offloads.tso: unknown key; expected gro, "),
    (11, "cpus: auto", "coalesce: true", "coalesce: true is not usable; expected a mapping"),
    (13, "kind: qemu", "kind: ssh", "hosts.guest.hostname: missing; expected host name"),
]


@pytest.mark.parametrize(("line", "old", "new", "told"), MISTAKES)
def test_a_mistake_is_told_with_line_key_and_remedy(
    written: Writing, line: int, old: str, new: str, told: str
) -> None:
    assert old in VIRTUAL
    text = str(refusal(written(VIRTUAL.replace(old, new, 1))))
    assert f"hosts.yaml:{line}: " in text
    assert told in text


def test_all_mistakes_are_told_at_once_in_order(written: Writing) -> None:
    text = VIRTUAL.replace("streams: 10", "streams: 0").replace("vcpus: 2", "vcpu: 2")
    lines = refusal(written(text.replace("version: 1", "version: 3"))).message.splitlines()
    assert re.findall(r"yaml:(\d+):", "\n".join(lines)) == ["1", "5", "15"]


def test_many_mistakes_are_cut_short(written: Writing) -> None:
    extra = "".join(f"x{number}: 1\n" for number in range(30))
    lines = refusal(written(VIRTUAL + extra)).message.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 20 more"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hostname", "'-oProxyCommand=reboot'"),
        ("hostname", "'rx;reboot'"),
        ("hostname", "'$(reboot)'"),
        ("hostname", '"rx\\nProxyCommand reboot"'),
        ("hostname", "bench@rx"),
        ("user", "'root -p'"),
        ("user", "-l"),
        ("user", "'`id`'"),
        ("interface", "'eth0|sh'"),
        ("interface", "../../etc"),
        ("interface", "sixteen-letters0"),
    ],
)
def test_shell_metacharacters_are_refused(written: Writing, key: str, value: str) -> None:
    plain = {"hostname": "rx.lab.example", "user": "bench", "interface": "eth1"}[key]
    error = refusal(written(RACK.replace(f"{key}: {plain}", f"{key}: {value}", 1)))
    assert re.search(rf"hosts\.[rt]x\.{key}: .* is not usable; expected an? ", error.message)


@pytest.mark.parametrize(
    "key", ["password", "bmc_password", "Passwd", "secret", "api_token", "credentials", "api_key"]
)
def test_secrets_are_refused_and_not_repeated(written: Writing, key: str) -> None:
    for text in (
        RACK.replace("user: bench", f"{key}: hunter2"),
        f"{RACK}{key}: {{user: hunter2}}\n",
    ):
        error = refusal(written(text))
        assert f"{key}: looks like a secret" in error.message
        assert "hunter2" not in str(error)
        assert "ssh" in (error.hint or "")


def test_a_host_may_be_called_what_looks_like_a_secret(written: Writing) -> None:
    hosts = config.load(written(VIRTUAL.replace("guest", "tokenring")))
    assert "tokenring" in hosts.hosts


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x7fELF\x02\x01\x01\x00\xff\xfe",
        b"\x00" * 100,
        b"\xff" * 100,
        b"a" * (1 << 21),
        b"[" * (1 << 20),
        b"a: {" * (1 << 18),
        b"- " * (1 << 19),
        b"a: &a [*a, *a]\n",
        b"&a {*a : *a}\n",
        b"".join(b"k%d: 1\n" % number for number in range(60_000)),
        b"a: " + b"9" * 100_000,
        b"",
        b"- 1\n",
        b"null\n",
        b"version: 1\nbeds:\nhosts: 7\n",
    ],
    ids=range(15),
)
def test_hostile_files_are_refused_soon(written: Writing, hostile: bytes) -> None:
    began = time.process_time()
    error = refusal(written(hostile))
    assert "hosts.yaml" in error.message
    assert len(error.message) < 2000
    assert time.process_time() - began < 10


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.yaml").message
    assert "directory" in refusal(tmp_path).message


@given(
    st.binary(max_size=200)
    | st.text(alphabet="{}[]:,&*!|>'\"%@- \na1", max_size=60).map(str.encode)
)
def test_any_bytes_are_data_or_refused(raw: bytes) -> None:
    try:
        document = parse(raw)
    except RefusedError:
        return
    assert isinstance(document.data, dict | list | str | int | float | bool | None)


def test_words_that_other_yaml_takes_for_booleans_stay_words() -> None:
    data = parse(b"{a: off, b: yes, c: 12:30, d: 0x10, e: 1e3, f: ~, g: True, h: '1'}").data
    assert data == {"a": "off", "b": "yes", "c": "12:30", "d": 16, "e": 1000.0, "f": None,
                    "g": True, "h": "1"}  # fmt: skip


def test_an_unknown_bed_names_those_there_are(written: Writing) -> None:
    hosts = config.load(written(VIRTUAL))
    with pytest.raises(ConfigurationError, match="no bed is named 'virtul'; expected virtual"):
        config.bed(hosts, "virtul")


def test_locate_prefers_the_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.locate() == shipped("hosts.yaml")
    (tmp_path / "hosts.yaml").write_text(VIRTUAL)
    assert config.locate() == Path("hosts.yaml")
    assert config.locate(Path("other")) == Path("other")


def test_the_schema_describes_every_key() -> None:
    schema = config.json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["required"]) == {"version", "beds", "hosts"}
    for model in [schema, *schema["$defs"].values()]:
        assert model["additionalProperties"] is False
        for key, described in model["properties"].items():
            assert "description" in described or key == "kind", key
