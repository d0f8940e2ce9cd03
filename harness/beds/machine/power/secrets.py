# SPDX-License-Identifier: MIT
"""Passwords, read from the place that hosts.yaml names; the file itself never has any."""

from __future__ import annotations

import os
import stat

from harness import config
from harness.base.errors import ConfigurationError

_LONGEST = 4096


def read(secret: config.Secret) -> str:
    """The password; keep it out of messages, logs and arguments.

    Raises:
        ConfigurationError: it is missing, empty, not one line of text, or in a file
            that others can read.
    """
    if isinstance(secret, config.EnvironmentSecret):
        where = f"the environment variable {secret.env}"
        value = os.environ.get(secret.env)
        hint = f"read -rs {secret.env} && export {secret.env}"
    elif isinstance(secret, config.FileSecret):
        where, hint = f"{secret.file}", "its first line must be the password"
        value = _first_line(secret)
    else:
        where, hint = f"{secret.keyring} in the keyring", _set_hint(secret)
        value = _from_keyring(secret)
    if not value:
        raise ConfigurationError(f"{where} holds no password", hint=hint)
    if not value.isprintable() or len(value) > _LONGEST:
        raise ConfigurationError(f"{where} does not hold a password: not one line of text")
    return value


def _first_line(secret: config.FileSecret) -> str:
    path = secret.file
    try:
        # O_NONBLOCK: a FIFO is refused, not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{path} is not a file")
            if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
                raise ConfigurationError(f"other users can read {path}", hint=f"chmod 600 {path}")
            return file.readline(_LONGEST + 2).decode().rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror}", hint="hosts.yaml names this file for a password"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} does not hold a password: not text") from error


def _from_keyring(secret: config.KeyringSecret) -> str | None:
    try:
        import keyring
        import keyring.errors
    except ImportError as error:
        raise ConfigurationError(
            f"{secret.keyring}: the package keyring is not installed",
            hint="pip install 'receive-batching-harness[keyring]'",
        ) from error
    service, _, user = secret.keyring.partition("/")
    try:
        value: str | None = keyring.get_password(service, user)
    except keyring.errors.KeyringError as error:
        raise ConfigurationError(
            f"{secret.keyring}: the keyring cannot be read: {error}",
            hint="unlock it, or put the password into a file of mode 600",
        ) from error
    return value


def _set_hint(secret: config.KeyringSecret) -> str:
    return f"keyring set {secret.keyring.replace('/', ' ')}"
