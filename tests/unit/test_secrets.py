# SPDX-License-Identifier: MIT
"""Secrets from the environment, a file or the keyring, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness import config
from harness.base.errors import ConfigurationError
from harness.beds.machine.power import secrets

pytestmark = pytest.mark.unit


def of_file(path: Path, content: bytes, mode: int = 0o600) -> config.FileSecret:
    path.write_bytes(content)
    path.chmod(mode)
    return config.FileSecret(file=path)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMC_PASSWORD", "se'same")
    assert secrets.read(config.EnvironmentSecret(env="BMC_PASSWORD")) == "se'same"


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("BMC_PASSWORD", raising=False)
    if value is not None:
        monkeypatch.setenv("BMC_PASSWORD", value)
    with pytest.raises(ConfigurationError, match="BMC_PASSWORD holds no password") as caught:
        secrets.read(config.EnvironmentSecret(env="BMC_PASSWORD"))
    assert "export BMC_PASSWORD" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"open", b"open\n", b"open\r\n", b"open\nmore\n"])
def test_the_first_line_of_a_file(tmp_path: Path, content: bytes) -> None:
    assert secrets.read(of_file(tmp_path / "password", content)) == "open"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="other users can read") as caught:
        secrets.read(of_file(tmp_path / "password", b"sesame\n", mode))
    assert caught.value.hint == f"chmod 600 {tmp_path}/password"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    secret = of_file(tmp_path / "password", b"sesame\n")
    os.chown(secret.file, 65534, 65534)
    with pytest.raises(ConfigurationError, match="other users can read"):
        secrets.read(secret)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no password"),
        (b"\nsesame\n", "holds no password"),
        (b"\xff\xfe\n", "not text"),
        (b"a\x1b[2J\n", "not one line of text"),
        (b"a\x00b\n", "not one line of text"),
        (b"x" * 100_000, "not one line of text"),
    ],
)
def test_what_is_no_password(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        secrets.read(of_file(tmp_path / "password", content))
    assert len(str(caught.value)) < 500


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigurationError, match="is not a file"):
        secrets.read(config.FileSecret(file=tmp_path / "fifo"))
    with pytest.raises(ConfigurationError, match="No such file"):
        secrets.read(config.FileSecret(file=tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match=f"{tmp_path}"):
        secrets.read(config.FileSecret(file=tmp_path))


def test_from_the_keyring() -> None:
    keyring = pytest.importorskip("keyring", reason="keyring is not installed")
    from keyring.backend import KeyringBackend

    class Memory(KeyringBackend):
        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            if service == "locked":
                raise keyring.errors.KeyringLocked("it is locked")
            return {("bmc.lab", "admin"): "sesame"}.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None: ...

    before = keyring.get_keyring()
    keyring.set_keyring(Memory())  # type: ignore[no-untyped-call]
    try:
        assert secrets.read(config.KeyringSecret(keyring="bmc.lab/admin")) == "sesame"
        with pytest.raises(ConfigurationError, match="holds no password") as caught:
            secrets.read(config.KeyringSecret(keyring="bmc.lab/other"))
        assert caught.value.hint == "keyring set bmc.lab other"
        with pytest.raises(ConfigurationError, match="it is locked"):
            secrets.read(config.KeyringSecret(keyring="locked/admin"))
    finally:
        keyring.set_keyring(before)


def test_without_the_package_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigurationError, match="keyring is not installed") as caught:
        secrets.read(config.KeyringSecret(keyring="bmc/admin"))
    assert "[keyring]" in (caught.value.hint or "")
