# SPDX-License-Identifier: MIT
"""A campaign on two machines that only labgrid provides, and several beds of a lab at once."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.selftest.image import MACHINE_USER
from harness.selftest.machine import INTERFACE, Machine
from harness.selftest.rack import ADDRESSES, Rack
from tests.bmc import serve_file
from tests.labgrid.test_places import Lab

pytest.importorskip("labgrid", reason="needs labgrid: pip install -e '.[dev]'")
pytestmark = pytest.mark.deep

HOSTS = """\
version: 1
default_bed: rack1
kernel: {{config: benchmark}}
beds:
  rack1: {{dut: rx, generator: tx, labgrid: {{place: rack1, coordinator: "{at}"}}}}
hosts:
  rx:
    {{kind: labgrid, resource: rx, interface: {interface}, address: {dut}, known_hosts: "{known}",
      boot: {{timeout_s: 200}}}}
  tx:
    {{kind: labgrid, resource: tx, interface: {interface}, address: {generator},
      known_hosts: "{known}"}}
"""
RESOURCES = """\
rx:
  NetworkService: {{address: 127.0.0.1, username: {user}, port: {dut}}}
  NetworkPowerPort: {{model: rest, host: "http://127.0.0.1:{power}/{{index}}", index: "1"}}
  NetworkSerialPort: {{host: 127.0.0.1, port: {console}, speed: 115200, protocol: raw}}
tx:
  NetworkService: {{address: 127.0.0.1, username: {user}, port: {generator}}}
"""


@contextmanager
def pdu(machine: Machine) -> Iterator[int]:
    """A power port as labgrid's model ``rest`` asks for it; gives its TCP port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"1" if machine.is_on() else b"0")

        def do_PUT(self) -> None:
            on = self.rfile.read(int(self.headers["Content-Length"])) == b"1"
            (machine.power_on if on else machine.power_off)()
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_campaign_at_a_place_whose_coordinator_restarts(tmp_path: Path) -> None:
    with ExitStack() as up:
        rack = up.enter_context(Rack(tmp_path / "rack"))
        rack.switch_on()
        environment = up.enter_context(rack.ssh_agent())
        resources = RESOURCES.format(
            user=MACHINE_USER,
            dut=rack.dut.ssh.port,
            generator=rack.generator.ssh.port,
            power=up.enter_context(pdu(rack.dut)),
            console=up.enter_context(serve_file(rack.dut.console_log))[1],
        )
        lab = Lab(tmp_path, resources)
        up.callback(lab.down)
        lab.up()
        lab.client("-p", "rack1", "create")
        for kind in ("NetworkService", "NetworkPowerPort", "NetworkSerialPort"):
            lab.client("-p", "rack1", "add-named-match", f"lab/rx/{kind}", "rx")
        lab.client("-p", "rack1", "add-named-match", "lab/tx/NetworkService", "tx")
        hosts = tmp_path / "hosts.yaml"
        hosts.write_text(
            HOSTS.format(at=lab.at, interface=INTERFACE, known=rack.known_hosts, **ADDRESSES)
        )
        known_good = rack.dut.run("uname", "-r")
        out = tmp_path / "result"
        running = subprocess.Popen(
            [sys.executable, "-m", "harness", "run", "--hosts", str(hosts), "--profile", "smoke",
             "--steps", "0,8", "--out", str(out)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        up.callback(running.kill)
        until = time.monotonic() + 900
        while not list(out.glob("boots/*/boot.json")):
            assert running.poll() is None, running.stdout and running.stdout.read()
            assert time.monotonic() < until
            time.sleep(1)
        lab.down()
        time.sleep(5)
        lab.up()
        said, _ = running.communicate(timeout=1200)
        assert running.returncode == 0, said
        assert lab.holder() is None
        assert rack.dut.run("uname", "-r") == known_good
        report: dict[str, Any] = json.loads(
            subprocess.run(
                [sys.executable, "-m", "harness", "report", str(out), "--format", "json"],
                check=True, capture_output=True, text=True,
            ).stdout
        )  # fmt: skip
        assert report["complete"]
        assert {row["step"] for row in report["rows"]} == {"0", "8"}
