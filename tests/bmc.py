# SPDX-License-Identifier: MIT
"""BMCs for tests: OpenStack's Redfish emulator and OpenIPMI's simulator, on loopback.

Each drives a machine that the caller describes like hosts.yaml's power command
does: a function that gets ``on``, ``off``, ``cycle`` or ``status`` and answers
the last with a bool, or a command that gets the word as its last argument and
prints ``on`` or ``off``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

USER = "admin"
PASSWORD = """se"same's $(id):x"""  # noqa: S105
IPMI_PASSWORD = "sesame;$(id)"  # noqa: S105
IPMI_NEEDS = ("ipmi_sim", "ipmitool")
_UUID = "4c4c4544-0036-3510-8054-b7c04f573232"

Machine = Callable[[str], bool | None] | Sequence[str]
Odd = tuple[int, dict[str, str], bytes]
Trouble = Callable[[dict[str, Any]], Literal["close"] | Odd | None]


def missing_for_ipmi() -> str | None:
    """What is not installed, for a skip."""
    absent = [name for name in IPMI_NEEDS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def _act(machine: Machine, word: str) -> bool | None:
    if callable(machine):
        return machine(word)
    done = subprocess.run([*machine, word], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() == "on" if word == "status" else None


class RedfishBmc:
    """The emulator of sushy-tools with a driver of ours; :attr:`url` is where it listens.

    ``certificate`` and ``key`` make it HTTPS. :attr:`refuses` is a status with
    which all but the root is answered; :attr:`hangs` takes requests and never
    answers, :attr:`hangs_at` only those to addresses that end so; :attr:`says`
    is sent, chunk by chunk, in place of any answer. :attr:`meets` sees each request before
    anything is done about it, and :attr:`parts` once it is done: a status to answer with,
    with headers and body, ``"close"`` to drop the connection, or None.
    """

    user = USER
    password = PASSWORD
    system = _UUID

    def __init__(
        self,
        machine: Machine,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        sessions: bool = False,
        port: int = 0,
    ) -> None:
        self.machine = machine
        self.meets: Trouble = _no_trouble
        self.parts: Trouble = _no_trouble
        self._port = port
        self.refuses: int | None = None
        self.hangs = False
        self.hangs_at: str | None = None
        self.says: Iterable[bytes] | None = None
        self.asked: list[str] = []
        """Method and path of each request."""
        self.resets: list[str] = []
        """The ResetType of each act."""
        self.allows: list[str] | None = None
        """The values of ResetType; None: the emulator's own."""
        self.tokens = set[str]()
        """Sessions that are open."""
        self._sessions = sessions
        self._free = threading.Event()
        self._tls = (certificate, key) if certificate and key else None
        self._stack = contextlib.ExitStack()
        self.url = ""

    def __enter__(self) -> Self:
        from sushy_tools.emulator.main import RedfishAuthMiddleware
        from werkzeug.serving import make_server

        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        users = directory / "users"
        users.write_text(f"{self.user}:{_bcrypt(self.password)}\n")
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._emulator = RedfishAuthMiddleware(_emulator().wsgi_app, str(users))
        server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, ssl_context=context
        )
        server.daemon_threads = True  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self._stack.callback(thread.join, 5)
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        self._stack.callback(self._free.set)
        self.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        from werkzeug.test import run_wsgi_app

        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append(f"{method} {path}")
        if self.hangs or (self.hangs_at and path.endswith(self.hangs_at)):
            self._free.wait()
        if (odd := self.meets(environ)) is not None:
            return _troubled(odd, environ, start)
        if self.says is not None:
            start("200 OK", [("Content-Type", "application/json")])
            return self.says
        if self.refuses and path.strip("/") != "redfish/v1":
            start(f"{self.refuses} Refused", [("Content-Type", "application/json")])
            return [b'{"error": {"code": "Base.1.0", "message": "no\\u001b[2J thanks"}}']
        if self._sessions and path.startswith("/redfish/v1/SessionService/Sessions"):
            return self._session(environ, start)
        if environ.get("HTTP_X_AUTH_TOKEN") in self.tokens:
            environ["HTTP_AUTHORIZATION"] = _basic(self.user, self.password)
        _CURRENT.bmc = self
        parts, status, headers = run_wsgi_app(self._emulator, environ)
        answer = b"".join(parts)
        if (odd := self.parts(environ)) is not None:
            return _troubled(odd, environ, start)
        if self.allows is not None and method == "GET":
            answer = _allowing(answer, self.allows)
            headers["Content-Length"] = str(len(answer))
        start(status, list(headers))
        return [answer]

    def _session(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        # The emulator has no sessions; this is all of them that a client needs.
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "DELETE":
            self.tokens.discard(path.rpartition("/")[2])
            start("204 No Content", [])
            return []
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        if (asked["UserName"], asked["Password"]) != (self.user, self.password):
            start("401 Unauthorized", [("Content-Type", "application/json")])
            return [b"{}"]
        token = secrets.token_hex(16)
        self.tokens.add(token)
        location = f"{path.rstrip('/')}/{token}"
        start("201 Created", [("X-Auth-Token", token), ("Location", location)])
        return [b"{}"]


def _no_trouble(environ: dict[str, Any]) -> None:
    return None


def _troubled(
    odd: Literal["close"] | Odd, environ: dict[str, Any], start: Callable[..., Any]
) -> Iterable[bytes]:
    if odd == "close":
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start("200 OK", [])
        return []
    status, headers, body = odd
    start(f"{status} Odd", [("Content-Type", "application/json"), *headers.items()])
    return [body]


_CURRENT = threading.local()


def _emulator() -> Any:
    """The emulator's application: one a process, for all BMCs; the driver tells them apart."""
    from sushy_tools import error
    from sushy_tools.emulator import main
    from sushy_tools.emulator.resources.systems.base import AbstractSystemsDriver

    class Driver(AbstractSystemsDriver):  # type: ignore[misc]
        driver = "<callback>"
        systems = [_UUID]  # noqa: RUF012

        def uuid(self, identity: str) -> str:
            if identity != _UUID:
                raise error.NotFound(f"no system {identity}")
            return _UUID

        name = uuid

        def get_power_state(self, identity: str) -> str:
            return "On" if _act(_CURRENT.bmc.machine, "status") else "Off"

        def set_power_state(self, identity: str, state: str) -> None:
            words = {
                "On": "on", "ForceOn": "on", "ForceOff": "off", "ForceRestart": "cycle",
                "PowerCycle": "cycle",
            }  # fmt: skip
            if state not in words:
                raise error.BadRequest(f"no {state}")
            _CURRENT.bmc.resets.append(state)
            _act(_CURRENT.bmc.machine, words[state])

        def get_boot_device(self, identity: str) -> str:
            return "Hdd"

        def set_boot_device(self, identity: str, boot_source: str) -> None:
            raise error.NotSupportedError("no boot device")

        def get_nics(self, identity: str) -> list[object]:
            return []

    if not hasattr(main.app, "harness_driver"):
        main.app.harness_driver = Driver()
        type(main.app).systems = property(lambda app: app.harness_driver)
    return main.app


def _allowing(answer: bytes, allowed: list[str]) -> bytes:
    body = json.loads(answer)
    for action in body.get("Actions", {}).values():
        if isinstance(action, dict):
            action["ResetType@Redfish.AllowableValues"] = allowed
    return json.dumps(body).encode()


def _bcrypt(password: str) -> str:
    import bcrypt

    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class IpmiBmc:
    """OpenIPMI's ``ipmi_sim``; :attr:`port` is its UDP port on 127.0.0.1.

    ``console`` is what its serial over LAN shows: a file that grows, or the
    address of a TCP server such as that of a QEMU serial port. ipmi_sim cannot
    tell its cipher suites, for which ipmitool waits 10 s unless it is told one.
    """

    user = USER
    password = IPMI_PASSWORD
    cipher_suite = 3

    def __init__(self, machine: Machine, *, console: Path | tuple[str, int] | None = None) -> None:
        self.machine = machine
        self.refuses = False
        self.port = _free_udp_port()
        self._console = console
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        control = self._serve_control()
        sol = ""
        if self._console is not None:
            address = self._console
            if isinstance(address, Path):
                address = self._stack.enter_context(serve_file(address))
            sol = f'sol "tcp:{address[0]}:{address[1]}" 115200'
        (self._directory / "lan.conf").write_text(
            f"""name "bmc"
set_working_mc 0x20
startlan 1
addr 127.0.0.1 {self.port}
priv_limit admin
allowed_auths_admin md5
guid a123456789abcdefa123456789abcdef
endlan
chassis_control "{control}"
{sol}
startnow false
user 1 false "" "" user 10
user 2 true "{self.user}" "{self.password}" admin 10
"""
        )
        (self._directory / "bmc.emu").write_text(
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n"
            "sel_enable 0x20 1000 0x0a\nmc_enable 0x20\n"
        )
        self.start()
        self._stack.callback(self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start it, or start it again after :meth:`stop`."""
        with (self._directory / "said").open("ab") as said:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--",
                 "ipmi_sim", "-n", "-c", "lan.conf", "-f", "bmc.emu", "-s", "."],
                cwd=self._directory, stdin=subprocess.DEVNULL, stdout=said,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 10
        while not _udp_port_taken(self.port):
            assert self._process.poll() is None, (self._directory / "said").read_text()
            assert time.monotonic() < until, "ipmi_sim does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """Take the BMC away."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def hang(self) -> None:
        """Keep its port and answer nothing, until :meth:`heal`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def heal(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _serve_control(self) -> str:
        """The command that ipmi_sim gives ``get power`` and ``set power 1`` to."""
        path = self._directory / "control.socket"
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words = self.rfile.readline().decode().split()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(outer._control(words).encode())

        server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        script = self._directory / "control.py"
        script.write_text(
            "import socket, sys\n"
            "line = socket.socket(socket.AF_UNIX)\n"
            f"line.connect({str(path)!r})\n"
            "line.sendall((' '.join(sys.argv[1:]) + '\\n').encode())\n"
            "said = line.makefile().read()\n"
            "print(said)\n"
            "sys.exit(said.startswith('refused'))\n"
        )
        # ipmi_sim joins it with spaces and gives it to a shell.
        return f"{shlex.quote(sys.executable)} -IS {shlex.quote(str(script))}"

    def _control(self, words: list[str]) -> str:
        if self.refuses:
            return "refused"
        match words:
            case ["get", "power"]:
                return f"power:{int(bool(_act(self.machine, 'status')))}"
            case ["get", *others]:
                return "\n".join(f"{other}:default" for other in others)
            case ["set", what, value]:
                value = value.strip('"')
                word = {"power": "on" if value == "1" else "off", "reset": "cycle"}.get(what)
                if word:
                    _act(self.machine, word)
                return ""
        return "refused"


@contextlib.contextmanager
def serve_file(path: Path) -> Any:
    """A TCP server on loopback that sends what is added to ``path``, as a serial port does."""
    ending = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            path.touch()
            with path.open("rb") as file, contextlib.suppress(OSError):
                file.seek(0, os.SEEK_END)
                while not ending.is_set():
                    if chunk := file.read(1024):
                        self.request.sendall(chunk)
                    else:
                        ending.wait(0.05)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address
    finally:
        ending.set()
        server.shutdown()
        server.server_close()


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _udp_port_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
