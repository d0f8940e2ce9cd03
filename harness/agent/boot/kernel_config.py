# SPDX-License-Identifier: MIT
"""The running kernel's configuration and its loaded modules."""

from __future__ import annotations

import gzip
import platform
import zlib
from pathlib import Path
from typing import Any

from harness.agent.faults import AgentError
from harness.agent.foreign import shown

_MAX_BYTES = 2 << 20
_MODULES = Path("/proc/modules")


def kernel_config() -> dict[str, Any]:
    """``{"release": …, "config": text, "modules": [names]}``; no names without module support.

    Raises:
        AgentError: the configuration is not on the host.
    """
    release = platform.release()
    places = [
        Path("/proc/config.gz"),
        Path(f"/boot/config-{release}"),
        Path(f"/lib/modules/{release}/config"),
    ]
    modules = _read(_MODULES) if _MODULES.exists() else b""
    return {
        "release": release,
        "config": _first(places, release).decode(errors="replace"),
        "modules": sorted(line.split()[0] for line in shown(modules).splitlines() if line.strip()),
    }


def _first(places: list[Path], release: str) -> bytes:
    why = []
    for place in places:
        try:
            return _read(place)
        except (OSError, EOFError, zlib.error) as error:
            why.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    raise AgentError(
        f"the configuration of the kernel {release} cannot be read ({'; '.join(why)})",
        hint=f"put it at /boot/config-{release}, or name a .config file as kernel.config",
    )


def _read(path: Path) -> bytes:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise AgentError(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
    return data
