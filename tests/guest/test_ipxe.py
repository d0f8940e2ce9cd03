# SPDX-License-Identifier: MIT
"""A second driver, written by others: iPXE's, which loads a file through the virtual NIC."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from harness import config, images
from harness.base import cache, process
from harness.base.progress import Progress
from harness.beds.local import netns
from harness.beds.local.nic_model import sending_side

pytestmark = [pytest.mark.guest, pytest.mark.others]

OURS, THEIRS, PORT = "198.18.1.1", "198.18.1.2", 8080
SCRIPT = f"""#!ipxe
set net0/ip {THEIRS}
set net0/netmask 255.255.255.0
ifopen net0 && imgfetch http://{OURS}:{PORT}/file && imgfetch http://{OURS}:{PORT}/loaded ||
ifclose net0
poweroff
"""
LOADS_S = 120  # 4 s on an idle machine


@pytest.fixture
def ipxe() -> Path:
    """Debian's iPXE as a kernel; that of Debian 12 does not know this NIC yet."""

    def make(making: Path) -> None:
        root = making / "root.tar"
        process.run(
            ["mmdebstrap", "--variant=extract", "--include=ipxe", images.SUITE, str(root),
             *filter(None, [images.mirror()])]
        )  # fmt: skip
        with tarfile.open(root) as archive, (making / "ipxe.lkrn").open("wb") as kernel:
            member = archive.extractfile("./usr/lib/ipxe/ipxe.lkrn")
            assert member is not None
            kernel.write(member.read())
        root.unlink()

    at = cache.root() / "tools" / f"ipxe-{images.SUITE}"
    return cache.entry(at, make, what="iPXE") / "ipxe.lkrn"


def test_ipxe_loads_a_file_over_the_nic(ipxe: Path, tmp_path: Path) -> None:
    dut = config.bed(config.load(config.locate(None)), "virtual").dut
    assert isinstance(dut, config.QemuHost)
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(random.Random(1).randbytes(2_000_000))
    (served / "loaded").write_bytes(b"#!ipxe\n")
    (tmp_path / "script").write_text(SCRIPT)
    with Progress() as progress:
        tools = images.tools(progress)
    with sending_side(dut, tmp_path, cpu=0) as side:
        namespace = netns.Namespace(agent=side.agent, mac=side.mac)
        for words in (
            f"address add {OURS}/24 dev {side.interface}",
            f"link set {side.interface} gso_max_segs 1",  # a wire carries no segments of 64 KiB
        ):
            process.run(namespace.command(["ip", *words.split()]))
        nic = {"driver": "vfio-user-pci",
               "socket": {"type": "unix", "path": str(side.nic_socket)}}  # fmt: skip
        guest = [
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256M",
            "-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max",
            "-object", "memory-backend-memfd,id=ram,size=256M,share=on",
            "-kernel", str(ipxe), "-initrd", str(tmp_path / "script"), "-device", json.dumps(nic),
        ]  # fmt: skip
        server = [sys.executable, "-m", "http.server", str(PORT), "--directory", str(served)]
        with (
            (tmp_path / "server.log").open("w") as log,
            subprocess.Popen(namespace.command(server), stdout=log, stderr=log) as serving,
        ):
            try:
                process.run(tools.qemu(guest), timeout_s=LOADS_S)
            finally:
                serving.terminate()
    asked = (tmp_path / "server.log").read_text()
    # It asks for the second file once it has the whole first one.
    assert '"GET /file HTTP/1.1" 200' in asked
    assert '"GET /loaded HTTP/1.1" 200' in asked, (asked, (tmp_path / "nic.log").read_text())
