# SPDX-License-Identifier: MIT
"""Beds of labgrid places, against labgrid's own coordinator and exporter on loopback."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from harness import config
from harness.base.errors import ConfigurationError, InfrastructureError, LeaseLostError
from harness.beds import labgrid
from harness.beds.labgrid import client as labgrid_client

pytest.importorskip("labgrid", reason="needs labgrid: pip install -e '.[dev]'")
pytestmark = pytest.mark.labgrid

Beds = Callable[..., config.Bed]

HOSTS = """\
version: 1
default_bed: rack1
beds:
  rack1: {{dut: rx, generator: tx, labgrid: {{place: rack1, coordinator: "{at}"}}}}
  rack2: {{dut: rx, generator: tx, labgrid: {{place: rack2, coordinator: "{at}"}}}}
hosts:
  rx: {{kind: labgrid, resource: rx, interface: eth1, address: 198.18.1.2/24}}
  tx: {{kind: labgrid, resource: tx, interface: eth1, address: 198.18.1.1/24}}
"""
RACK = """\
{rack}rx:
  NetworkService: {{address: {rack}rx.lab.example, username: bench, port: 2222}}
  NetworkPowerPort: {{model: rest, host: "http://127.0.0.1:{power}/{{index}}", index: "1"}}
  NetworkSerialPort: {{host: 127.0.0.1, port: {console}, speed: 115200, protocol: raw}}
{rack}tx:
  NetworkService: {{address: {rack}tx.lab.example, username: bench}}
"""


def _said(log: Path, text: str) -> bool:
    return text in log.read_text()


def until(holds: Callable[[], object], within_s: float = 60) -> None:
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.2)


class Pdu(http.server.BaseHTTPRequestHandler):
    """A power port as labgrid's model ``rest`` asks for it."""

    value = b"1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Pdu.value)

    def do_PUT(self) -> None:
        Pdu.value = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Console(socketserver.BaseRequestHandler):
    """A serial port over TCP that prints one line and hangs up, again and again."""

    def handle(self) -> None:
        self.request.sendall(b"Kernel panic - not syncing\n")
        time.sleep(1)


class Lab:
    """Coordinator and exporter, which can be ended and started again."""

    def __init__(self, directory: Path, resources: str) -> None:
        self.directory = directory
        (directory / "exporter.yaml").write_text(resources)
        with socket.create_server(("127.0.0.1", 0)) as line:
            self.at = f"127.0.0.1:{line.getsockname()[1]}"
        self.running: list[subprocess.Popen[str]] = []

    def up(self) -> None:
        for module, words, ready in (
            ("coordinator", ["-l", self.at], "listening on"),
            ("exporter", ["-c", self.at, "-n", "lab", "exporter.yaml"], "Exporter ready"),
        ):
            log = self.directory / f"{module}.log"
            with log.open("w") as out:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", f"labgrid.remote.{module}", *words],
                        cwd=self.directory,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        text=True,
                        env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    )
                )
            until(partial(_said, log, ready))

    def down(self) -> None:
        for process in reversed(self.running):
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.running.clear()

    def client(self, *words: str, user: str | None = None, check: bool = True) -> str:
        other = {"LG_USERNAME": user, "LG_HOSTNAME": "desk"} if user else {}
        command = [*labgrid_client.client_command(), "-x", self.at, *words]
        done = subprocess.run(
            command,
            text=True,
            capture_output=True,
            check=False,
            env={**labgrid_client.environment(), **other},
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def holder(self, place: str = "rack1") -> str | None:
        who = [line.split() for line in self.client("who").splitlines()[1:]]
        return next((user for user, _, name, *_ in who if name == place), None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with contextlib.ExitStack() as up:
        ports = {}
        for name, server in (
            ("power", http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pdu)),
            ("console", socketserver.ThreadingTCPServer(("127.0.0.1", 0), Console)),
        ):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            up.callback(server.shutdown)
            ports[name] = server.server_address[1]
        racks = "".join(RACK.format(rack=rack, **ports) for rack in ("a", "b"))
        lab = Lab(tmp_path_factory.mktemp("lab"), racks)
        up.callback(lab.down)
        lab.up()
        for place, rack in (("rack1", "a"), ("rack2", "b")):
            lab.client("-p", place, "create")
            for kind in ("NetworkService", "NetworkPowerPort", "NetworkSerialPort"):
                lab.client("-p", place, "add-named-match", f"lab/{rack}rx/{kind}", "rx")
            lab.client("-p", place, "add-named-match", f"lab/{rack}tx/NetworkService", "tx")
        yield lab


@pytest.fixture
def bed(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beds]:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path))
    monkeypatch.setenv("LG_PLACE", "another")  # of no meaning to the harness
    monkeypatch.setenv("LG_ENV", "/nowhere.yaml")
    monkeypatch.setattr(labgrid, "_LOOK_EVERY_S", 1.0)
    monkeypatch.setattr(labgrid_client, "_OWN_HARNESS_S", 1.0)
    (tmp_path / "hosts.yaml").write_text(HOSTS.format(at=lab.at))

    def of(name: str = "rack1", **changes: object) -> config.Bed:
        found = config.bed(config.load(tmp_path / "hosts.yaml"), name)
        return found.model_copy(update=changes)

    yield of
    for place in ("rack1", "rack2"):
        lab.client("-p", place, "release", "--kick", check=False)


def test_a_place_is_acquired_resolved_and_released(lab: Lab, bed: Beds) -> None:
    with labgrid.acquired(bed()) as place:
        assert lab.holder() is not None
        place.still_mine()
        dut, generator = place.bed.dut, place.bed.generator
        assert isinstance(dut, config.SshHost)
        assert isinstance(generator, config.SshHost)
        assert (dut.hostname, dut.user, dut.port) == ("arx.lab.example", "bench", 2222)
        assert (generator.hostname, generator.port) == ("atx.lab.example", None)
        assert (generator.power, generator.console) == (None, None)
        assert isinstance(dut.power, config.CommandPower)
        assert isinstance(dut.console, config.CommandConsole)

        def power(action: str) -> str:
            assert isinstance(dut, config.SshHost)
            assert isinstance(dut.power, config.CommandPower)
            return subprocess.run(
                [*dut.power.command, action], check=True, text=True, capture_output=True
            ).stdout.strip()

        assert power("status") == "on"
        power("off")
        assert (power("status"), Pdu.value) == ("off", b"0")
        power("on")
        assert Pdu.value == b"1"
        console = subprocess.Popen(dut.console.command, stdout=subprocess.PIPE)
        assert console.stdout is not None
        for _ in range(2):  # it goes on after the server hung up
            assert console.stdout.readline() == b"Kernel panic - not syncing\n"
        console.kill()
        console.wait()
    assert lab.holder() is None


def test_a_bed_without_a_place_is_as_it_is() -> None:
    plain = config.bed(config.load(config.locate(None)), "virtual")
    with labgrid.acquired(plain) as place:
        place.still_mine()
        assert place.bed is plain


def test_two_places_at_once(lab: Lab, bed: Beds) -> None:
    with labgrid.acquired(bed("rack1")) as one, labgrid.acquired(bed("rack2")) as two:
        assert one.bed.dut.hostname == "arx.lab.example"  # type: ignore[union-attr]
        assert two.bed.dut.hostname == "brx.lab.example"  # type: ignore[union-attr]
        assert lab.holder("rack1")
        assert lab.holder("rack2")
        with pytest.raises(InfrastructureError, match="used by another harness of yours"):
            with labgrid.acquired(bed("rack2")):
                raise AssertionError
    assert len(lab.client("who").splitlines()) == 1


def test_a_place_of_somebody_else_is_named_and_left(lab: Lab, bed: Beds) -> None:
    lab.client("-p", "rack1", "acquire", user="eve")
    with pytest.raises(InfrastructureError, match="rack1 is held by eve on desk"):
        with labgrid.acquired(bed()):
            raise AssertionError
    assert lab.holder() == "eve"


def test_a_place_acquired_by_hand_is_used_and_not_released(
    lab: Lab, bed: Beds, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.client("-p", "rack1", "acquire", user="eve")
    monkeypatch.setenv("LG_USERNAME", "eve")
    monkeypatch.setenv("LG_HOSTNAME", "desk")
    with labgrid.acquired(bed()) as place:
        place.still_mine()
    assert lab.holder() == "eve"


def test_what_is_not_there_is_told(lab: Lab, bed: Beds) -> None:
    def refused(error: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(error, match=match), labgrid.acquired(bed(**changes)):
            raise AssertionError

    for name in ("rack", "rack17"):  # labgrid itself takes a part of a name for the whole
        where = config.Labgrid(place=name, coordinator=lab.at)
        refused(ConfigurationError, f"has no place {name}\n.*rack1, rack2", labgrid=where)
    where = config.Labgrid(place="rack1", coordinator="127.0.0.1:1")
    refused(InfrastructureError, "labgrid place rack1 at 127.0.0.1:1: .*connect", labgrid=where)
    dut = bed().dut
    wrong = dut.model_copy(update={"resource": "ry"})
    refused(ConfigurationError, "has no NetworkService ry\n.*NetworkService rx", dut=wrong)
    wrong = dut.model_copy(update={"power_resource": "ry"})
    refused(ConfigurationError, "hosts.rx: labgrid place rack1 has no power port ry", dut=wrong)
    assert lab.holder() is None


def test_a_killed_harness_leaves_no_place_acquired(lab: Lab, bed: Beds) -> None:
    script = (
        "import json, sys, time; from pathlib import Path; from harness import config\n"
        "from harness.beds import labgrid\n"
        "with labgrid.acquired(config.bed(config.load(Path(sys.argv[1])))):\n"
        "    print('acquired', flush=True); time.sleep(600)\n"
    )
    hosts = str(Path(os.environ["RECEIVE_BATCHING_CACHE"]) / "hosts.yaml")
    killed = subprocess.Popen(
        [sys.executable, "-c", script, hosts], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "acquired\n"
    killed.kill()
    killed.wait()
    until(lambda: lab.holder() is None)
    with labgrid.acquired(bed()):
        assert lab.holder()


def test_what_guard_and_harness_left_is_released_by_the_next(lab: Lab, bed: Beds) -> None:
    """As after the controller lost its power."""
    left = labgrid_client.Ours(labgrid_client.Client(bed().labgrid))  # type: ignore[arg-type]
    left.acquire()
    assert left._guard is not None
    left._guard.kill()
    left._guard.wait()
    left._file.close()
    assert lab.holder()
    with labgrid.acquired(bed()):
        assert lab.holder()
    assert lab.holder() is None


def saved(lab: Lab) -> bool:
    """Whether the coordinator has the places on disk; it writes them every 15 s."""
    path = lab.directory / "places.yaml"
    return path.exists() and {"rack1", "rack2"} <= {
        line.rstrip(":") for line in path.read_text().splitlines()
    }


def test_a_coordinator_that_restarts_does_not_end_the_campaign(lab: Lab, bed: Beds) -> None:
    until(lambda: saved(lab))
    with labgrid.acquired(bed()) as place:
        lab.down()
        until(lambda: place.trouble is not None)
        place.still_mine()
        lab.up()
        until(lambda: place.times_regained == 1)
        until(lambda: place.trouble is None)
        place.still_mine()
        assert lab.holder()
    assert lab.holder() is None


def test_a_place_that_others_have_after_a_restart_is_given_up(
    lab: Lab, bed: Beds, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: saved(lab))
    with labgrid.acquired(bed()) as place:
        with place._looking:  # it does not look before eve does
            lab.down()
            lab.up()
            lab.client("-p", "rack1", "acquire", user="eve")
        with pytest.raises(LeaseLostError, match="lost: it is held by desk/eve now"):
            until(place.check)
    assert lab.holder() == "eve"


def test_a_place_that_stays_free_and_cannot_be_had_is_given_up(
    lab: Lab, bed: Beds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labgrid, "_FREE_S", 2.0)
    with labgrid.acquired(bed()) as place:
        with place._looking:
            lab.client("-p", "rack1", "release")
            lab.client("-p", "rack1", "add-match", "lab/gone/*")
        with pytest.raises(LeaseLostError, match=r"lost: .*no matching remote resource"):
            until(place.check)
    lab.client("-p", "rack1", "del-match", "lab/gone/*")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "targets: {}",
        "targets: {rack1: {resources: [7]}}",
        "{",
        json.dumps({"targets": {"rack1": {"resources": [{"NetworkService": {
            "name": "rx", "address": "-oProxyCommand=reboot", "username": "bench"}}]}}}),
    ],
)  # fmt: skip
def test_a_coordinator_that_answers_garbage_is_refused(
    bed: Beds, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(labgrid_client.Client, "run", lambda *_: answer)
    client = labgrid_client.Client(bed().labgrid)  # type: ignore[arg-type]
    with pytest.raises(InfrastructureError, match=r"cannot be (read|used)"):
        labgrid._with_resources(bed(), client)
    with pytest.raises(InfrastructureError, match="shows no place"):
        client.acquired_by()
