# SPDX-License-Identifier: MIT
"""What parses as an address and cannot be one of a bed; secrets are never repeated."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import config
from harness.agent.boot import systemd_boot
from harness.base.errors import ConfigurationError
from harness.base.resources import shipped
from harness.beds.registry import profile
from harness.plan import MAX_BLOCKS, parse_step

pytestmark = pytest.mark.unit

Telling = Callable[[str], str]

RACK = """\
version: 1
default_bed: rack
beds:
  rack: {dut: rx, generator: tx}
hosts:
  rx:
    kind: ssh
    hostname: rx.lab.example
    interface: eth1
    address: 198.18.1.2/24
    port: 22
  tx:
    kind: ssh
    hostname: tx.lab.example
    interface: eth1
    address: 198.18.1.1/24
"""
GUEST = """\
version: 1
beds: {virtual: {dut: guest, generator: wire}}
hosts:
  guest: {kind: qemu, address: 198.18.0.2/24, nic: {mac: "02:00:00:00:00:02"}}
  wire: {kind: netns, address: 198.18.0.1/24}
"""


@pytest.fixture
def told(tmp_path: Path) -> Telling:
    """The refusal of a file's text; nothing where it is taken."""

    def load(text: str) -> str:
        path = tmp_path / "hosts.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            config.load(path)
        except ConfigurationError as error:
            return str(error)
        return ""

    return load


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("198.18.1.0/24", "is the address of its network"),
        ("198.18.1.255/24", "is the broadcast address of its network"),
        ("198.18.0.0/15", "is the address of its network"),
        ("198.18.1.3/30", "is the broadcast address of its network"),
        ("198.18.1.2/0", "expected a prefix of 8 to 31"),
        ("198.18.1.2/1", "expected a prefix of 8 to 31"),
        ("198.18.1.2/7", "expected a prefix of 8 to 31"),
        ("198.18.1.2/32", "expected a prefix of 8 to 31"),
        ("198.18.1.2", "198.18.1.2/32 leaves no address for the other host"),
        ("198.18.1.2/0.0.0.0", "expected a prefix of 8 to 31"),
        ("127.0.0.2/8", "is a loopback address"),
        ("224.0.0.5/24", "is a multicast address"),
        ("169.254.7.7/16", "is a link-local address"),
        ("0.0.0.0/24", "is not an address of a host"),
        ("0.0.0.7/8", "is not an address of a host"),
        ("255.255.255.255/8", "is the broadcast address"),
        ("241.0.0.1/24", "is a reserved address"),
        ("fd00::2/64", "is not usable; expected IPv4 address and prefix"),
        ("198.18.1.02/24", "is not usable; expected IPv4 address and prefix"),
    ],
)
def test_an_address_that_is_no_hosts(told: Telling, address: str, why: str) -> None:
    for text in (RACK.replace("198.18.1.2/24", address), GUEST.replace("198.18.0.2/24", address)):
        refused = told(text)
        assert why in refused
        assert f".address: {address[:9]}" in refused.replace("'", "")
        assert "does not reach" not in refused
    assert "hosts.yaml:10: hosts.rx.address: " in told(RACK.replace("198.18.1.2/24", address))


def test_addresses_that_will_do(told: Telling) -> None:
    for dut, generator in (("198.18.1.0/31", "198.18.1.1/31"), ("10.1.2.3/8", "10.0.0.1/8"),
                           ("192.168.0.2/255.255.255.0", "192.168.0.1/24")):  # fmt: skip
        text = RACK.replace("198.18.1.2/24", dut).replace("198.18.1.1/24", generator)
        assert told(text) == ""


@pytest.mark.parametrize(
    "mac",
    [
        "00:00:00:00:00:00",
        "02:00:00:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "0200.0000.0002",
        "02:00:00:00:00",
    ],
)
def test_a_mac_that_is_no_guests(told: Telling, mac: str) -> None:
    assert "hosts.yaml:4: hosts.guest.nic.mac: " in told(GUEST.replace("02:00:00:00:00:02", mac))


@pytest.mark.parametrize(
    ("dut", "generator"),
    [
        ("tx.lab.example", "tx.lab.example"),
        ("tx.lab.example", "TX.Lab.Example"),
        ("tx.lab.example", "tx.lab.example\n    port: 22"),
        ("tx.lab.example", "tx.lab.example\n    user: other"),
        ("192.0.2.1", "192.0.2.1"),
        ('"2001:db8::1"', '"2001:DB8:0::1"'),
    ],
)
def test_both_hosts_of_a_bed_are_not_one_machine(told: Telling, dut: str, generator: str) -> None:
    text = RACK.replace("rx.lab.example", dut, 1)
    head, _, tail = text.rpartition("tx.lab.example")
    refused = told(head + generator + tail)
    assert "hosts.tx.hostname: " in refused
    assert "is the dut itself; expected another machine" in refused


def test_two_ports_of_one_address_are_two_machines(told: Telling) -> None:
    text = RACK.replace("rx.lab.example", "gate").replace("tx.lab.example", "gate")
    assert told(text.replace("port: 22", "port: 2201")) == ""


@pytest.mark.parametrize(
    "hostname",
    [
        "0.0.0.0",
        "'::'",
        "255.255.255.255",
        "224.0.0.1",
        "'ff02::1'",
        "1.2.3",
        "300.1.1.1",
        "198.18.1.77",
    ],
)
def test_what_no_host_is_reached_by(told: Telling, hostname: str) -> None:
    plain = hostname.strip("'")
    refused = told(RACK.replace("rx.lab.example", hostname))
    assert f"hosts.yaml:8: hosts.rx.hostname: {plain} " in refused
    ipmi = f"    power: {{ipmi: {{hostname: {hostname}, user: op, password: {{env: X}}}}}}\n"
    assert f"hosts.tx.power.ipmi.hostname: {plain} " in told(RACK + ipmi)


@pytest.mark.parametrize("name", ["lo", "all", "default"])
def test_what_is_no_interface_of_a_test(told: Telling, name: str) -> None:
    assert "hosts.rx.interface: " in told(RACK.replace("interface: eth1", f"interface: {name}", 1))


def redfish(url: str) -> str:
    more = f'    power: {{redfish: {{url: "{url}", user: op, password: {{env: X}}}}}}\n'
    return RACK + more


@pytest.mark.parametrize(
    "url",
    ["https://bmc:99999", "https://bmc:65536", "https://bmc:0", "https://bmc:", "https://bmc:1:2",
     "https://[::1", "https://[zz]", "https://-bmc", "https://..", "https://", "https:///redfish",
     "ftp://bmc", "bmc", "https://bmc?x=1", "https://bmc#x", "https://bm c", "https://0.0.0.0",
     "https://224.0.0.1", "https://198.18.1.9:443", "https://bmc:٤٤٣"],
)  # fmt: skip
def test_a_url_that_is_no_bmcs(told: Telling, url: str) -> None:
    assert "hosts.yaml:17: hosts.tx.power.redfish.url: " in told(redfish(url))


@pytest.mark.parametrize(
    "url",
    ["https://bmc", "https://BMC.lab:8443/redfish/v1/", "http://192.0.2.1", "https://[::1]:1"],
)
def test_urls_that_will_do(told: Telling, url: str) -> None:
    assert told(redfish(url)) == ""


@pytest.mark.parametrize(
    "more",
    [
        "power: {redfish: {url: 'https://op:hunter2@bmc', user: op, password: {env: X}}}",
        "power: {redfish: {url: 'https://hunter2:@bmc', user: op, password: {env: X}}}",
        "power: {redfish: {url: 'https://bmc', user: 'op:hunter2', password: {env: X}}}",
        "power: {redfish: {url: 'https://bmc', user: op, password: hunter2}}",
        "power: {redfish: {url: 'https://bmc', user: op, password: [hunter2]}}",
        "power: {redfish: {url: 'https://bmc', user: op, password: {env: 'hunter2!'}}}",
        "power: {redfish: {url: 'https://bmc', user: op, password: {keyring: 'hunter2'}}}",
        "power: {redfish: {url: 'https://bmc', user: op, password: {value: hunter2}}}",
        "power: {ipmi: {hostname: 'op:hunter2@bmc', user: op, password: {env: X}}}",
        "power: {ipmi: {hostname: bmc, user: op, Pass: hunter2, password: {env: X}}}",
        "power: {command: [ipmitool, -U, op, -P, hunter2, chassis, power]}",
        "power: {command: [ipmitool, -Phunter2, power]}",
        "power: {command: [/usr/bin/sshpass, -p, hunter2, ssh, pdu]}",
        "power: {command: [pdu, --password=hunter2]}",
        "power: {command: [pdu, --Token, hunter2]}",
        "power: {command: [curl, 'https://op:hunter2@pdu/outlet']}",
        "console: {command: [curl, -u, 'op:hunter2', 'https://pdu/console']}",
        "known_hosts: 'https://op:hunter2@lab/keys'",
        "user: 'bench:hunter2'",
    ],
)
def test_a_secret_is_refused_and_not_repeated(told: Telling, more: str) -> None:
    refused = told(f"{RACK}    {more}\n")
    assert "hosts.yaml:17: hosts.tx." in refused
    assert "hunter2" not in refused


def test_what_both_hosts_cannot_share(told: Telling) -> None:
    for key, value in {
        "power": "{ipmi: {hostname: bmc, user: op, password: {env: X}}}",
        "console": "{sol: {hostname: bmc, user: op, password: {env: X}}}",
    }.items():
        more = f"    {key}: {value}\n"
        text = RACK.replace("  tx:\n", f"{more}  tx:\n") + more
        assert f"hosts.tx.{key}: the same as the dut's; expected its own" in told(text)
    net = "    console: {{netconsole: {{address: 192.0.2.9, port: {}, interface: {}}}}}\n"
    text = RACK.replace("  tx:\n", net.format(6666, "eth2") + "  tx:\n")
    assert "hosts.tx.console: the same" in told(text + net.format(6666, "eno1"))
    assert told(text + net.format(6667, "eno1")) == ""


def test_netconsole_leads_away_from_the_test(told: Telling) -> None:
    line = "    console: {netconsole: {address: ADDRESS, interface: eth0}}\n"
    for address in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.1.9"):
        assert "netconsole.address: " in told(RACK + line.replace("ADDRESS", address))
    same = line.replace("ADDRESS", "192.0.2.9").replace("eth0", "eth1")
    assert "netconsole.interface: the test interface; expected another one" in told(RACK + same)


def test_beds_that_are_used_at_once(tmp_path: Path) -> None:
    second = "".join(f"  {line}\n" for line in (
        "rx2: {kind: ssh, hostname: RX2, interface: eth1, address: 198.18.N.2/24}",
        "tx2: {kind: ssh, hostname: HOST, interface: eth1, address: 198.18.N.1/24}",
    ))  # fmt: skip
    text = RACK.replace("tx}\n", "tx}\n  two: {dut: rx2, generator: tx2}\n") + second

    def both(host: str, net: str) -> int:
        path = tmp_path / "hosts.yaml"
        path.write_text(text.replace("HOST", host).replace(".N.", f".{net}."))
        return len(config.beds(config.load(path), None, ["rack", "two"]))

    assert both("tx2", "2") == 2
    with pytest.raises(ConfigurationError, match=r"both use the address 198\.18\.1\.2"):
        both("tx2", "1")
    with pytest.raises(ConfigurationError, match="beds rack and two share host tx2"):
        both("TX.lab.example", "2")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("offloads: {gro: off}", "'off' is not usable; expected true or false"),
        ("offloads: {gro: yes}", "'yes' is not usable; expected true or false"),
        ("offloads: {gro: 1}", "1 is not usable; expected true or false"),
        ("coalesce: {adaptive_rx: null, rx_usecs: 1}", "null is not usable; expected true or fal"),
        ("coalesce: false", "false is not usable; expected a mapping"),
        ("coalesce: []", "a list is not usable; expected a mapping"),
        ("placement: {netperf_cpus: 1}", "1 is not usable; expected 'auto' or a list"),
        ("placement: {irq_cpu: null}", "null is not usable; expected a whole number"),
        ("placement: {irq_cpu: 1.5}", "1.5 is not usable; expected a whole number"),
        ("placement: null", "null is not usable; expected a mapping"),
        ("governor: true", "true is not usable; expected text"),
        ("steering: false", "false is not usable; expected 'auto', 'rss' or 'ntuple'"),
    ],
)
def test_messages_are_in_the_words_of_yaml(told: Telling, more: str, why: str) -> None:
    refused = told(RACK.replace("generator: tx}", f"generator: tx, {more}}}"))
    assert why in refused
    for word in ("None", "True", "False", "boolean", "array", "object", "integer", "string"):
        assert word not in refused


@pytest.mark.parametrize("version", ["true", "1.0", "'1'", "null", "2", "[1]"])
def test_the_version_is_the_number_one(told: Telling, version: str) -> None:
    assert "hosts.yaml:1: version: " in told(RACK.replace("version: 1", f"version: {version}"))


def test_paths_and_programs_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "hosts.yaml"
    for program, found in {
        "pdu": "pdu",
        "./pdu": f"{tmp_path}/pdu",
        "bin/pdu": f"{tmp_path}/bin/pdu",
        "~/pdu": "/home/me/pdu",
        "/opt/pdu": "/opt/pdu",
    }.items():
        path.write_text(f"{RACK}    power: {{command: ['{program}', ./x]}}\n")
        host = config.load(path).hosts["tx"]
        assert isinstance(host, config.SshHost)
        assert isinstance(host.power, config.CommandPower)
        assert host.power.command == (found, "./x")


@pytest.mark.parametrize("value", ["$HOME/keys", "${KEYS}", '"a\\0b"', '"a\\nb"', "git://lab/keys"])
def test_paths_that_are_none(told: Telling, value: str) -> None:
    assert "hosts.yaml:17: hosts.tx.known_hosts: " in told(f"{RACK}    known_hosts: {value}\n")


def test_the_file_that_is_named_is_the_file_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.locate() == shipped("hosts.yaml")
    here = tmp_path / "hosts.yaml"
    in_the_way: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: here.symlink_to("/mnt/lab/hosts.yaml"), "a link to /mnt/lab/hosts.yaml, which"),
        (lambda: here.symlink_to("hosts.yaml"), "Too many levels of symbolic links"),
        (lambda: os.mkfifo(here), "not a regular file"),
        (lambda: here.symlink_to("/dev/zero"), "not a regular file"),
    )
    for make, why in in_the_way:
        make()
        with pytest.raises(ConfigurationError, match=r"cannot read hosts\.yaml: ") as refused:
            config.load(config.locate())
        assert why in refused.value.message
        here.unlink()
    here.mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot read hosts\.yaml: Is a directory"):
        config.load(config.locate())


def test_a_bed_without_a_name_is_no_default(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text(RACK)
    hosts = config.load(tmp_path / "hosts.yaml")
    with pytest.raises(ConfigurationError, match="no bed is named ''"):
        config.bed(hosts, "")


@pytest.mark.parametrize(
    ("default", "fixed"),
    [
        ("debian-6.1.conf", True),
        ("debian-*", True),
        ("auto-windows", True),
        ("*", False),
        ("*.conf", False),
        ("?eceive-*", False),
        ("[a-z]*", False),
        ("RECEIVE-*", False),
        ("receive-batching-6.12-step8.conf", False),
        ("receive-batching-*", False),
        ("@saved", False),
    ],
)
def test_what_systemd_boot_would_boot_is_fixed(default: str, fixed: bool) -> None:
    assert systemd_boot.fixed(default) is fixed


def test_numbers_have_bounds() -> None:
    assert profile("quick", blocks=MAX_BLOCKS).blocks == MAX_BLOCKS
    for blocks in (0, -1, MAX_BLOCKS + 1, 100_000):
        with pytest.raises(ConfigurationError, match=f"expected 1 to {MAX_BLOCKS}"):
            profile("quick", blocks=blocks)


def test_one_step_is_one_step() -> None:
    assert parse_step(" 08 ") == "8"
    for spec in ("0,2", "0-8", ""):
        with pytest.raises(ConfigurationError):
            parse_step(spec)
