# SPDX-License-Identifier: MIT
"""Temporary refusals of BMCs that are busy, starting, or have just reset their machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import config
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.machine import power
from harness.beds.machine.power import redfish
from tests.bmc import IpmiBmc, Odd, RedfishBmc, missing_for_ipmi
from tests.unit.test_power import OPENSSL, certificate

pytestmark = pytest.mark.unit

IPMI = pytest.mark.skipif(missing_for_ipmi() is not None, reason=str(missing_for_ipmi()))
BUSY = b'{"error": {"code": "Base.1.0.GeneralError", "message": "try again"}}'


class Machine:
    def __init__(self, *, on: bool = False) -> None:
        self.on = on
        self.acts: list[str] = []

    def __call__(self, word: str) -> bool | None:
        if word == "status":
            return self.on
        self.acts.append(word)
        self.on = word != "off"
        return None


def by_redfish(bmc: RedfishBmc, *, within_s: float = 20.0, **more: Any) -> power.Power:
    os.environ["REDFISH_TEST"] = bmc.password
    described = config.Redfish(
        url=bmc.url, user=bmc.user, password=config.EnvironmentSecret(env="REDFISH_TEST"), **more
    )
    return power.connect(config.RedfishPower(redfish=described), "dut", within_s=within_s)


def is_reset(environ: dict[str, Any]) -> bool:
    path: str = environ["PATH_INFO"]
    return environ["REQUEST_METHOD"] == "POST" and path.endswith(".Reset")


class Trouble:
    """``odd`` to the next ``times`` requests that are ``wanted``."""

    def __init__(
        self,
        odd: Any,
        wanted: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        times: int = 1,
    ) -> None:
        self.odd, self.wanted, self.left = odd, wanted, times

    def __call__(self, environ: dict[str, Any]) -> Any:
        if self.left and self.wanted(environ):
            self.left -= 1
            return self.odd
        return None


def after_the_reset(bmc: RedfishBmc) -> Callable[[dict[str, Any]], bool]:
    return lambda environ: bool(bmc.resets) and "/Sessions" not in environ["PATH_INFO"]


@pytest.mark.parametrize(
    "odd",
    [
        (503, {}, BUSY),
        (502, {}, b"<html>bad gateway</html>"),
        (500, {}, b""),
        (429, {"Retry-After": "1"}, b""),
        (503, {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}, BUSY),
        (504, {"Retry-After": "soon"}, b""),
        (401, {}, b""),
        (404, {}, b""),
        (200, {}, b""),
        (200, {}, b"<html>starting</html>"),
        (200, {}, b'{"PowerState": "O'),
        (200, {}, b'{"PowerState": null}'),
        "close",
    ],
)
def test_a_poll_after_the_reset_meets_what_passes(odd: Any) -> None:
    machine = Machine()
    with RedfishBmc(machine, sessions=odd[:1] in [(401,), (503,), "c"]) as bmc:
        bmc.meets = trouble = Trouble(odd, after_the_reset(bmc), times=2)
        by_redfish(bmc).on()
    assert trouble.left == 0
    assert (machine.acts, bmc.resets) == (["on"], ["On"])


def test_the_session_is_forgotten_after_the_reset() -> None:
    machine = Machine()
    with RedfishBmc(machine, sessions=True) as bmc:

        def forget(environ: dict[str, Any]) -> None:
            if is_reset(environ):
                bmc.tokens.clear()

        bmc.parts = forget
        by_redfish(bmc).on()
    assert machine.acts == ["on"]


@pytest.mark.parametrize("odd", [(503, {}, BUSY), (429, {"Retry-After": "2"}, b""), "close",
                                 (200, {}, b"")])  # fmt: skip
def test_the_first_contact_meets_what_passes(odd: Any) -> None:
    machine = Machine(on=True)
    with RedfishBmc(machine) as bmc:
        bmc.meets = Trouble(odd, times=3)
        assert by_redfish(bmc).status() is True


def test_a_bmc_that_starts_refuses_connections() -> None:
    machine = Machine(on=True)
    with RedfishBmc(machine) as free:
        port = int(free.url.rpartition(":")[2])
    bmc = RedfishBmc(machine, port=port)
    bmc.url = free.url
    timer = threading.Timer(4, bmc.__enter__)
    timer.start()
    try:
        by_redfish(bmc).off()
    finally:
        timer.join()
        bmc.__exit__()
    assert machine.acts == ["off"]


@contextlib.contextmanager
def in_front_of(port: int, *, drops: int) -> Iterator[int]:
    """A port that closes the first ``drops`` connections at once, and passes on the others."""

    def passed_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def serve() -> None:
        for number in itertools.count():
            try:
                line, _ = listening.accept()
            except OSError:
                return
            if number < drops:
                line.close()
                continue
            to = socket.create_connection(("127.0.0.1", port))
            for pair in ((line, to), (to, line)):
                threading.Thread(target=passed_on, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@OPENSSL
def test_a_handshake_that_is_broken_off_is_begun_again(tmp_path: Path) -> None:
    made, key = certificate(tmp_path, "IP:127.0.0.1")
    machine = Machine()
    with (
        RedfishBmc(machine, certificate=made, key=key) as bmc,
        in_front_of(int(bmc.url.rpartition(":")[2]), drops=3) as port,
    ):
        bmc.url = f"https://127.0.0.1:{port}"
        by_redfish(bmc, ca=made).on()
    assert machine.acts == ["on"]


@pytest.mark.parametrize("odd", [(503, {}, BUSY), (429, {}, b""), (412, {}, b""), (428, {}, b"")])
@pytest.mark.parametrize("act", ["on", "off", "cycle"])
def test_an_order_that_was_not_taken_is_given_again(odd: Odd, act: str) -> None:
    machine = Machine(on=act != "on")
    said = []
    with RedfishBmc(machine) as bmc:
        trouble = Trouble(odd, is_reset)

        def met(environ: dict[str, Any]) -> Any:
            if is_reset(environ):
                said.append(environ.get("HTTP_IF_MATCH"))
            return trouble(environ)

        bmc.meets = met
        getattr(by_redfish(bmc), act)()
    assert machine.acts == [act]
    assert (said[1] is not None) is (odd[0] in {412, 428})


@pytest.mark.parametrize("odd", [(502, {}, b""), (504, {}, b""), (500, {}, BUSY), "close"])
@pytest.mark.parametrize("act", ["on", "off"])
def test_an_order_that_was_taken_is_not_given_twice(odd: Any, act: str) -> None:
    machine = Machine(on=act != "on")
    with RedfishBmc(machine) as bmc:
        bmc.parts = Trouble(odd, is_reset)
        getattr(by_redfish(bmc), act)()
    assert machine.acts == [act]


@pytest.mark.parametrize("odd", [(502, {}, b""), "close"])
def test_a_cycle_without_an_answer_is_not_ordered_twice(odd: Any) -> None:
    machine = Machine(on=True)
    with RedfishBmc(machine) as bmc:
        bmc.parts = Trouble(odd, is_reset)
        by_redfish(bmc).cycle()
    assert machine.acts == ["cycle"]


def test_a_cycle_that_failed_is_done_by_off_and_on() -> None:
    machine = Machine(on=True)
    with RedfishBmc(machine) as bmc:
        bmc.meets = Trouble((500, {}, BUSY), is_reset)
        by_redfish(bmc, within_s=30).cycle()
    assert machine.acts == ["off", "on"]


def test_a_reader_is_refused_at_once() -> None:
    machine = Machine()
    with RedfishBmc(machine) as bmc:
        bmc.meets = Trouble((403, {}, b""), is_reset, times=99)
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match="answered 403"):
            by_redfish(bmc).on()
    assert time.monotonic() - began < 10
    assert sum(asked.startswith("POST") and "Reset" in asked for asked in bmc.asked) == 1


def test_a_wrong_password_is_not_tried_again() -> None:
    with RedfishBmc(Machine(), sessions=True) as bmc:
        switch = by_redfish(bmc)
        switch._password = "another"  # type: ignore[attr-defined]  # noqa: S105
        with pytest.raises(InfrastructureError, match="answered 401"):
            switch.status()
    assert len([asked for asked in bmc.asked if "Systems" in asked or "Sessions" in asked]) <= 4


def test_the_end_of_the_session_is_no_part_of_the_act() -> None:
    machine = Machine()
    with RedfishBmc(machine, sessions=True) as bmc:

        def met(environ: dict[str, Any]) -> Any:
            if environ["REQUEST_METHOD"] == "DELETE":
                time.sleep(8)
            return None

        bmc.meets = met
        by_redfish(bmc, within_s=8).on()
    assert machine.acts == ["on"]


def test_which_of_several_systems_is_asked_for() -> None:
    several = {"Members": [{"@odata.id": f"/redfish/v1/Systems/{name}"} for name in ("A", "B")]}
    with RedfishBmc(Machine()) as bmc:
        bmc.meets = Trouble(
            (200, {}, json.dumps(several).encode()),
            lambda environ: environ["PATH_INFO"].rstrip("/").endswith("/Systems"),
            times=9,
        )
        with pytest.raises(ConfigurationError) as caught:
            by_redfish(bmc).status()
    assert "several systems, so name one as system; it has: A, B" in caught.value.message
    assert "hosts.dut.power.redfish.system" in (caught.value.hint or "")


# Whatever a BMC says

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["Systems", "@odata.id", "Members", "PowerState", "Actions", "Id", "error",
                         "#ComputerSystem.Reset", "target", "ResetType@Redfish.AllowableValues",
                         "message", "@Message.ExtendedInfo", "@odata.etag", "SessionService",
                         "Sessions", "LastResetTime", "code"]) | st.text(max_size=5),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
ROOT = {
    "Systems": {"@odata.id": "/redfish/v1/Systems"},
    "SessionService": {"@odata.id": "/redfish/v1/SessionService"},
    "Links": {"Sessions": {"@odata.id": "/redfish/v1/SessionService/Sessions"}},
}


@settings(max_examples=150, deadline=None)
@given(
    bodies=st.lists(JSON.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=40),
                    min_size=1, max_size=6),
    statuses=st.lists(st.sampled_from([200, 200, 200, 201, 204, 400, 401, 404, 412, 500, 503]),
                      min_size=1, max_size=4),
    act=st.sampled_from(["status", "on", "off", "cycle"]),
    rooted=st.booleans(),
)  # fmt: skip
def test_whatever_a_bmc_answers_is_told(
    bodies: list[bytes], statuses: list[int], act: str, rooted: bool
) -> None:
    said = [200] * rooted + statuses * 30
    texts = [json.dumps(ROOT).encode()] * rooted + bodies * 30

    def request(_: object, method: str, url: str, **__: object) -> requests.Response:
        answer = requests.Response()
        answer.status_code = said.pop(0) if said else 200
        answer._content = texts.pop(0) if texts else b"{}"
        answer.url = url
        answer.headers.update({"ETag": "x\udc80", "Retry-After": bodies[0].decode("latin-1")[:9]})
        return answer

    asked = {"act": act, "url": "http://bmc", "user": "u", "password": "p", "system": None,
             "ca": None, "within_s": 1, "until": time.monotonic()}  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests.Session, "request", request)
        patched.setattr(time, "sleep", lambda _: None)
        answer = redfish._answer(asked)
    assert ("on" in answer) ^ (isinstance(answer.get("refused"), str) and "hint" in answer)
    json.dumps(answer)


# IPMI


def by_ipmi(bmc: IpmiBmc, *, within_s: float = 20.0, **more: Any) -> power.Power:
    os.environ["IPMI_TEST"] = bmc.password
    described = config.Ipmi(
        hostname="127.0.0.1", port=bmc.port, user=bmc.user, cipher_suite=bmc.cipher_suite,
        password=config.EnvironmentSecret(env="IPMI_TEST"), **more,
    )  # fmt: skip
    return power.connect(config.IpmiPower(ipmi=described), "dut", within_s=within_s)


@IPMI
def test_ipmi_a_bmc_that_starts_is_waited_for() -> None:
    machine = Machine()
    with IpmiBmc(machine) as bmc:
        bmc.stop()
        act = threading.Thread(target=by_ipmi(bmc, within_s=30).on)
        act.start()
        time.sleep(3)
        bmc.start()
        act.join()
    assert machine.acts[0] == "on"


@IPMI
def test_ipmi_a_wrong_password_is_not_tried_again() -> None:
    with IpmiBmc(Machine()) as bmc:
        switch = by_ipmi(bmc)
        switch._env["IPMI_PASSWORD"] = "wrong"  # type: ignore[attr-defined]  # noqa: S105
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match="HMAC is invalid"):
            switch.status()
    assert time.monotonic() - began < 5


@IPMI
def test_ipmi_the_privilege_level_is_named_and_given() -> None:
    machine = Machine(on=True)
    with IpmiBmc(machine) as bmc:
        with pytest.raises(InfrastructureError, match="Insufficient privilege level") as caught:
            by_ipmi(bmc, privilege="user").off()
        assert "privilege: operator" in (caught.value.hint or "")
        by_ipmi(bmc, privilege="operator").off()
        described = by_ipmi(bmc, privilege="operator")._config  # type: ignore[attr-defined]
    # The console is had with the same.
    assert power.ipmi_command(described)[-2:] == ["-L", "OPERATOR"]
    assert set(machine.acts) == {"off"}


def fake_ipmitool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> power.Power:
    """``n`` is how many calls there were, ``act`` what is asked; ``state`` is a file."""
    path = tmp_path / "ipmitool"
    path.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$@" >> calls\nn=$(wc -l < calls)\n'
        'for act; do :; done\nstatus() { echo "Chassis Power is $(cat state)"; }\n'
        f'no() {{ echo "$*" >&2; exit 1; }}\n{script}\n'
        "case $act in status) status;; cycle) ;; *) echo $act > state;; esac\n"
    )
    path.chmod(0o700)
    (tmp_path / "state").write_text("on\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    bmc = IpmiBmc(lambda _: None)
    return by_ipmi(bmc, within_s=10)


PASSING = (
    "Get Chassis Power Status failed: Node busy",
    "Get Chassis Power Status failed: Timeout",
    "Get Chassis Power Status failed: BMC initialization in progress",
    "Error in open session response message : insufficient resources for session",
    "Unable to get Chassis Power Status",
    "Error: Unable to establish IPMI v2 / RMCP+ session",
)


@pytest.mark.parametrize(
    ("said", "at"), [*((said, 3) for said in PASSING), (PASSING[0], 1), (PASSING[-1], 1)]
)
def test_ipmi_what_passes_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, at: int
) -> None:
    switch = fake_ipmitool(tmp_path, monkeypatch, f'test $n = {at} && no "{said}"')
    switch.off()
    calls = (tmp_path / "calls").read_text().split("\n")
    assert sum(call.endswith(" off") for call in calls) == 1


def test_ipmi_an_answer_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = fake_ipmitool(tmp_path, monkeypatch, "test $n = 3 && sleep 60")
    switch.off()
    assert (tmp_path / "state").read_text() == "off\n"


@pytest.mark.parametrize(
    ("act", "said", "orders"),
    [
        ("off", "Set Chassis Power Control to Down/Off failed: Node busy", 2),
        ("cycle", "Set Chassis Power Control to Cycle failed: Not supported in present state", 2),
        ("cycle", "Unable to set Chassis Power Control to Cycle", 1),
    ],
)  # fmt: skip
def test_ipmi_an_order_is_given_again_only_where_it_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, said: str, orders: int
) -> None:
    switch = fake_ipmitool(tmp_path, monkeypatch, f'test $n = 2 && no "{said}"')
    getattr(switch, act)()
    calls = (tmp_path / "calls").read_text().split("\n")
    assert sum(call.endswith(f" {act}") for call in calls) == orders


@pytest.mark.parametrize("said", ["RAKP 2 message indicates an error : unauthorized name",
                                  "Address lookup for rx-bmc failed",
                                  "Set Chassis Power Control to Up/On failed: Invalid command"],
)  # fmt: skip
def test_ipmi_what_stays_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    switch = fake_ipmitool(tmp_path, monkeypatch, f'no "{said}"')
    with pytest.raises(InfrastructureError, match=said.rpartition(": ")[2]):
        switch.status()
    assert (tmp_path / "calls").read_text().count("\n") == 1


@settings(max_examples=100, deadline=None)
@given(out=st.text(max_size=60), err=st.text(max_size=120), status=st.integers(-15, 255))
def test_whatever_ipmitool_prints_is_told(out: str, err: str, status: int) -> None:
    import subprocess

    switch = by_ipmi(IpmiBmc(lambda _: None), within_s=0.1)
    done = subprocess.CompletedProcess(["ipmitool"], status, out, err)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(power.Power, "_run", lambda *_, **__: done)
        if status == 0 and out.strip().endswith(("is on", "is off")):
            assert switch.status() is out.strip().endswith("on")
        else:
            with pytest.raises(InfrastructureError, match=r"dut: the BMC 127\.0\.0\.1"):
                switch.status()


# A command


def test_a_command_that_took_the_order_may_fail_to_tell(tmp_path: Path) -> None:
    path = tmp_path / "power"
    path.write_text(
        f"#!/bin/sh\ncd {tmp_path}\necho x >> calls\n"
        "case $(wc -l < calls)$1 in 3status) exit 7;; *status) cat state;; *) echo $1 > state;; "
        "esac\n"
    )
    path.chmod(0o700)
    (tmp_path / "state").write_text("on\n")
    power.connect(config.CommandPower(command=(str(path),)), "dut", within_s=8).off()
    assert (tmp_path / "state").read_text() == "off\n"
