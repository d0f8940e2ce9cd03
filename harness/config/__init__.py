# SPDX-License-Identifier: MIT
"""The configuration: ``hosts.yaml`` as frozen, validated models. First in the flow.

Importing it imports pydantic; the command line does so only for commands that
need a configuration.
"""

from harness.config.load import bed, json_schema, load, locate
from harness.config.models import (
    Bed,
    BedSettings,
    Coalesce,
    GitSource,
    Host,
    HostsFile,
    Kernel,
    Load,
    MachineCpus,
    NetnsHost,
    PackageSource,
    Placement,
    QemuHost,
    Source,
    SshHost,
    TarballSource,
)

__all__ = [
    "Bed",
    "BedSettings",
    "Coalesce",
    "GitSource",
    "Host",
    "HostsFile",
    "Kernel",
    "Load",
    "MachineCpus",
    "NetnsHost",
    "PackageSource",
    "Placement",
    "QemuHost",
    "Source",
    "SshHost",
    "TarballSource",
    "bed",
    "json_schema",
    "load",
    "locate",
]
