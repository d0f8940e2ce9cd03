# SPDX-License-Identifier: MIT
"""Two machines joined by one cable, and everything an operator needs to use them.

The cable is a veth pair in a network namespace; each end is the wire of a NIC
model. The power buttons are on a unix socket, for a simulated BMC or for
:mod:`harness.selftest` as a command.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socketserver
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from harness import images, needs
from harness.base import process, runtime
from harness.base.errors import HarnessError, InfrastructureError
from harness.base.progress import Progress
from harness.beds.access.ssh import SshTarget
from harness.beds.local import netns
from harness.beds.virtual.qemu import free_port
from harness.selftest.image import MACHINE_USER, copy, image_home, machine_image
from harness.selftest.machine import INTERFACE, Machine

SUDOERS = f"{MACHINE_USER} ALL=(ALL) NOPASSWD: ALL\n"
_DUT, _GENERATOR = "dut", "generator"
_SOCKET_NAME_BYTES = len("generator-nic-control")
_VCPUS = 2
_MEMORY_MIB = {_DUT: 1024, _GENERATOR: 768}
_MAC = {_DUT: "02:00:00:00:01:02", _GENERATOR: "02:00:00:00:01:01"}
ADDRESSES = {_DUT: "198.18.1.2/24", _GENERATOR: "198.18.1.1/24"}
_WIRE = {_DUT: netns.WIRE, _GENERATOR: netns.INTERFACE}


def needed() -> needs.Job:
    """What a rack needs of this machine."""
    return needs.Job(
        guests=True,
        guests_mib=sum(_MEMORY_MIB.values()),
        machines="kept" if image_home().is_dir() else "to be made",
    )


class Rack:
    """A context manager; in it the machines exist, and are off until they are switched on.

    Args:
        directory: for disks, consoles and logs; must have none yet.
        sudoers: the sudoers file for the machines' user.
    """

    dut: Machine
    generator: Machine

    def __init__(
        self, directory: Path, *, sudoers: str = SUDOERS, accelerator: str = "tcg",
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory.absolute()
        self._sudoers = sudoers
        self._accelerator = accelerator
        self._progress = progress or Progress(bars=False)
        self._up = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as up:
            self._make(up)
            self._up = up.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._up.close()

    @property
    def machines(self) -> tuple[Machine, Machine]:
        return self.dut, self.generator

    @property
    def control(self) -> Path:
        """The socket with the power buttons."""
        return self._runtime / "control"

    @property
    def known_hosts(self) -> Path:
        """The file with the host keys of both."""
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        """The private key for logins of the machines' user."""
        return self._image.key

    def switch_on(self) -> None:
        """Switch both on, and wait until they are up."""
        for machine in self.machines:
            machine.power_on()
        for machine in self.machines:
            machine.wait_for_ssh()

    def power_command(self, machine: Machine) -> list[str]:
        """A ``power: command:`` for ``machine``, which any process can run."""
        return [sys.executable, "-m", "harness.selftest", "power", str(self.control), machine.name]

    def hosts_yaml(
        self,
        path: Path,
        *,
        dut: Mapping[str, Any] | None = None,
        generator: Mapping[str, Any] | None = None,
        bed: Mapping[str, Any] | None = None,
        top: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a hosts file with both to ``path``.

        By default power is :meth:`power_command` and the console is ``tail``. ``dut``,
        ``generator``, ``bed`` and ``top`` override keys; None removes one.
        """
        from ruamel.yaml import YAML

        changes = {_DUT: dut or {}, _GENERATOR: generator or {}}
        hosts = {
            machine.name: _without_none(
                {
                    "kind": "ssh",
                    "hostname": machine.ssh.hostname,
                    "port": machine.ssh.port,
                    "user": MACHINE_USER,
                    "known_hosts": str(self.known_hosts),
                    "interface": INTERFACE,
                    "address": ADDRESSES[machine.name],
                    "power": {"command": self.power_command(machine)},
                    "console": {"command": ["tail", "-n", "0", "-F", str(machine.console_log)]},
                    **changes[machine.name],
                }
            )
            for machine in self.machines
        }
        beds = {"rack": _without_none({"dut": _DUT, "generator": _GENERATOR, **(bed or {})})}
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(
                {"version": 1, "default_bed": "rack", **(top or {}), "beds": beds, "hosts": hosts},
                file,
            )
        return path

    @contextmanager
    def ssh_agent(self) -> Iterator[dict[str, str]]:
        """Run an ssh-agent with the key, as an operator would; gives the environment."""
        said = process.run(["ssh-agent", "-s"], hint="apt-get install openssh-client").stdout
        found = dict(re.findall(r"(SSH_\w+)=([^;]+);", said))
        environment = {**os.environ, **found}
        try:
            process.run(["ssh-add", "-q", str(self.key)], env=environment)
            yield environment
        finally:
            os.kill(int(found["SSH_AGENT_PID"]), signal.SIGTERM)

    def _make(self, up: contextlib.ExitStack) -> None:
        tools = images.tools(self._progress)
        self._image = machine_image(tools, self._progress)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._runtime = up.enter_context(runtime.directory(name_bytes=_SOCKET_NAME_BYTES))
        starter = up.enter_context(ThreadPoolExecutor(max_workers=1))
        namespace = netns.start(log=self.directory / "cable.log")
        up.callback(namespace.agent.close)

        def machine(name: str) -> Machine:
            made = self._machine(name, tools, namespace, starter)
            up.callback(made.power_off)
            return made

        self.known_hosts.write_text("", encoding="utf-8")
        self.dut, self.generator = machine(_DUT), machine(_GENERATOR)
        up.enter_context(_buttons(self.control, self.machines))

    def _machine(
        self,
        name: str,
        tools: images.Tools,
        namespace: netns.Namespace,
        starter: ThreadPoolExecutor,
    ) -> Machine:
        directory = self.directory / name
        directory.mkdir()
        port = free_port()
        images.make_key(directory / "host_key", name)
        public = " ".join((directory / "host_key.pub").read_text(encoding="utf-8").split()[:2])
        with self.known_hosts.open("a", encoding="utf-8") as known:
            known.write(f"[127.0.0.1]:{port} {public}\n")
        machine = Machine(
            name=name,
            directory=directory,
            runtime=self._runtime,
            tools=tools,
            accelerator=self._accelerator,
            vcpus=_VCPUS,
            memory_mib=_MEMORY_MIB[name],
            mac=_MAC[name],
            namespace=namespace,
            wire=_WIRE[name],
            ssh=SshTarget(
                hostname="127.0.0.1",
                port=port,
                user=MACHINE_USER,
                key=self._image.key,
                known_hosts=self.known_hosts,
                own_configuration=False,
            ),
            starter=starter,
        )
        files = {
            "/etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444),
            "/etc/hostname": (f"{name}\n", 0o644),
            "/etc/hosts": (f"127.0.0.1 localhost {name}\n", 0o644),
            "/etc/ssh/ssh_host_ed25519_key": (
                (directory / "host_key").read_text(encoding="utf-8"),
                0o600,
            ),
            f"/etc/sudoers.d/{MACHINE_USER}": (self._sudoers, 0o440),
        }
        copy(self._image, machine.disk, files)
        return machine


@contextmanager
def _buttons(path: Path, machines: tuple[Machine, ...]) -> Iterator[None]:
    """Serve ``MACHINE on|off|cycle|status`` lines on the socket ``path``."""
    by_name = {machine.name: machine for machine in machines}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            words = self.rfile.readline(256).decode(errors="replace").split()
            answer = "error not understood"
            if len(words) == 2 and words[0] in by_name:
                try:
                    answer = _press(by_name[words[0]], words[1])
                except HarnessError as error:
                    answer = f"error {error.message}"
            self.wfile.write(f"{answer}\n".encode())

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def _press(machine: Machine, button: str) -> str:
    match button:
        case "on":
            machine.power_on()
        case "off":
            machine.power_off()
        case "cycle":
            machine.cycle()
        case "status":
            pass
        case _:
            raise InfrastructureError(f"{machine.name} has no button {button}")
    return "on" if machine.is_on() else "off"


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
