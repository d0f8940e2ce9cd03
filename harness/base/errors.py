# SPDX-License-Identifier: MIT
"""The errors that users can cause or meet; each class has an exit code.

Any other exception is a bug of the harness and ends with :data:`EXIT_BUG`.
"""

from __future__ import annotations

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class HarnessError(Exception):
    """An error with a message for the user and, if known, a hint with the fix."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigurationError(HarnessError):
    """The user's input (hosts.yaml, options, a tree) is wrong."""

    exit_code = 2


class InfrastructureError(HarnessError):
    """A machine, tool, network or disk does not work as required."""

    exit_code = 3


class BusyError(InfrastructureError):
    """Somebody else uses a machine or a bed; it may be free later."""


class HostLostError(InfrastructureError):
    """A host stopped answering; its state is unknown."""


class DiedLeavingError(HostLostError):
    """A kernel died while it was shutting down for the next boot."""

    def __init__(self, message: str, release: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.release = release
        """The release of the kernel that died."""


class HostRefusedError(InfrastructureError):
    """A host refuses the login, or does not have the host key that was enrolled."""


class LeaseLostError(InfrastructureError):
    """Somebody else may hold the hosts by now: nothing more may be done to them."""


class KernelError(HarnessError):
    """A kernel could not be patched, built or booted, or it died."""

    exit_code = 4


class TrialVoidError(HarnessError):
    """A trial broke a void rule."""

    exit_code = 5
