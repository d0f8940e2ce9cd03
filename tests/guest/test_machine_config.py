# SPDX-License-Identifier: MIT
"""A machine's configuration through the kconfig of the kernel that is built for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from harness import config
from harness.kernels import HostConfig
from harness.kernels.configuration import chosen, options
from harness.kernels.source import Tree, resolve

pytestmark = [pytest.mark.guest, pytest.mark.others]


def test_a_machine_s_own_configuration_takes_what_the_experiment_needs(tmp_path: Path) -> None:
    """As a distribution would send it: signed, locked down, all of it modules."""
    tree = Tree.of(resolve(config.Kernel().source))
    hidden = ("MAKE", "MFLAGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}

    def make(objects: Path, more: Sequence[str], more_env: Mapping[str, str]) -> None:
        objects.mkdir(exist_ok=True)
        subprocess.run(
            ["make", f"O={objects}", *more],
            cwd=tree.directory,
            env={**env, **more_env},
            stdin=subprocess.DEVNULL,
            check=True,
            capture_output=True,
        )

    make(tmp_path / "host", ["defconfig"], {})
    make(tmp_path / "host", ["mod2yesconfig"], {})
    make(tmp_path / "host", ["yes2modconfig"], {})
    sent = (tmp_path / "host/.config").read_text() + (
        'CONFIG_LOCALVERSION=".el9"\nCONFIG_LOCALVERSION_AUTO=y\nCONFIG_DEBUG_INFO_DWARF5=y\n'
        "CONFIG_SECURITY_LOCKDOWN_LSM=y\nCONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_ALL=y\n"
        'CONFIG_SYSTEM_TRUSTED_KEYS="certs/rhel.pem"\nCONFIG_GONE_SINCE=y\n'
    )
    asked = chosen(config.Kernel(), HostConfig(sent, ("ext4", "sfc", "of_another_kernel")))
    (tmp_path / "objects").mkdir()
    asked.write(tmp_path / "objects", make)
    text = (tmp_path / "objects/.config").read_text()
    asked.check(text)
    have = options(text)
    assert have["CONFIG_EXT4_FS"] == "CONFIG_EXT4_FS=m"
    assert have["CONFIG_SFC"] == "CONFIG_SFC=m"
    assert have["CONFIG_LOCALVERSION"] == 'CONFIG_LOCALVERSION=""'
    assert have["CONFIG_DEBUG_INFO_BTF"] == "CONFIG_DEBUG_INFO_BTF=y"
    assert (
        have.get("CONFIG_SYSTEM_TRUSTED_KEYS", 'CONFIG_SYSTEM_TRUSTED_KEYS=""')
        == 'CONFIG_SYSTEM_TRUSTED_KEYS=""'
    )
    assert options(sent)["CONFIG_E1000E"] == "CONFIG_E1000E=m"
    assert have.get("CONFIG_E1000E") != "CONFIG_E1000E=m", "it is not loaded"
    assert not (tmp_path / "objects-config").exists()
