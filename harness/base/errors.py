# SPDX-License-Identifier: MIT
"""The errors a user can meet, a class and an exit code for each kind of cause.

Anything else that escapes is a bug of the harness and ends with :data:`EXIT_BUG`.
"""

from __future__ import annotations

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class HarnessError(Exception):
    """A cause with a message for the user and, where one is known, the way out."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigurationError(HarnessError):
    """What the user wrote (hosts.yaml, options, a tree) cannot be used as it is."""

    exit_code = 2


class InfrastructureError(HarnessError):
    """A machine, tool, network or disk the run needs is not as it has to be."""

    exit_code = 3


class HostLostError(InfrastructureError):
    """A host stopped answering; what it was doing is unknown."""


class DiedLeavingError(HostLostError):
    """A kernel died when it was told to make way for the next."""

    def __init__(self, message: str, release: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.release = release
        """Of the kernel that died."""


class HostRefusedError(InfrastructureError):
    """A host answers and lets nobody in, or is another than the one that was enrolled."""


class LeaseLostError(InfrastructureError):
    """The hosts may be somebody else's by now: nothing more may be done to them."""


class KernelError(HarnessError):
    """A kernel was not patched, built or booted, or it died."""

    exit_code = 4


class TrialVoidError(HarnessError):
    """A trial broke a rule that was declared before it began."""

    exit_code = 5
