# SPDX-License-Identifier: MIT
"""The faults of lab machines, and what the harness must make of each."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable

from harness.base.errors import HarnessError
from harness.selftest.faults import BACK_S, Fault, Scene
from harness.selftest.image import MACHINE_USER

_UNIT = "/etc/systemd/system/fault.service"
_OURS = "/boot/receive-batching"


def _sysrq(key: str) -> Callable[[Scene], None]:
    return _as_root(f"echo {key} > /proc/sysrq-trigger")


def _as_root(script: str) -> Callable[[Scene], None]:
    """Run ``script`` on the dut, which it may take down."""

    def strike(scene: Scene) -> None:
        with contextlib.suppress(HarnessError):
            scene.rack.dut.run("sudo", "-n", "sh", "-c", script, timeout_s=20)

    return strike


def _meanwhile(script: str) -> Callable[[Scene], None]:
    """Run ``script`` on the dut in the background."""
    return _as_root(f"setsid -f sh -c {shlex.quote(script)} < /dev/null > /dev/null 2>&1")


def _at_boot_of_ours(script: str) -> Callable[[Scene], None]:
    """Run ``script`` at each boot of one of the harness's kernels, before sshd starts."""
    return _unit(
        "Before=ssh.service",
        f"/bin/sh -c {shlex.quote(f'test ! -d {_OURS}/$(uname -r) || {{ {script}; }}')}",
    )


def _at_shutdown(script: str) -> Callable[[Scene], None]:
    return _unit("", "/bin/true", f"ExecStop=/bin/sh -c {shlex.quote(script)}")


def _unit(order: str, start: str, stop: str = "") -> Callable[[Scene], None]:
    start = start.replace("%", "%%").replace("$", "$$")
    text = (
        f"[Unit]\n{order}\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        f"ExecStart={start}\n{stop}\n[Install]\nWantedBy=multi-user.target\n"
    )
    return _as_root(f"printf %s {shlex.quote(text)} > {_UNIT} && systemctl enable --now fault")


_without_unit = _as_root(f"systemctl disable --now fault; rm -f {_UNIT}; systemctl daemon-reload")


def _cut(seconds: float | None, *, generator: bool = False) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        machine = scene.rack.generator if generator else scene.rack.dut
        machine.cut(off=True)
        if seconds is not None:
            time.sleep(seconds)
            machine.cut(off=False)

    return strike


def _killed(scene: Scene) -> None:
    assert scene.process is not None
    scene.process.kill()


def _killed_in_a_hang(scene: Scene) -> None:
    _killed(scene)
    scene.rack.dut.freeze()


def _interrupted(scene: Scene) -> None:
    assert scene.process is not None
    scene.process.send_signal(signal.SIGINT)


def _no_more_files(scene: Scene) -> None:
    """From now on the harness cannot write to any file."""
    assert scene.process is not None
    subprocess.run(["prlimit", "--pid", str(scene.process.pid), "--fsize=0"], check=True)


def _clock(days: int) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        before = int(scene.rack.dut.run("date", "+%s"))
        scene.rack.dut.run("sudo", "-n", "date", "-s", f"@{before + days * 86400}")

    return strike


def _clock_right(scene: Scene) -> None:
    scene.rack.dut.run("sudo", "-n", "date", "-s", f"@{time.time():.0f}")


def _plug_in(scene: Scene) -> None:
    """Plug the cable in again, and start the machine."""
    with contextlib.suppress(HarnessError):
        scene.rack.dut.cut(off=False)
    scene.rack.dut.cycle()
    scene.rack.dut.wait_for_ssh(within_s=BACK_S)
    _release(scene)


def _break_lease(scene: Scene) -> None:
    scene.end("hosts", "release", "dut", "--break", "--hosts", str(scene.hosts()))


def _release(scene: Scene) -> None:
    scene.end("hosts", "release", "dut", "--hosts", str(scene.hosts()))


def _fill(scene: Scene) -> None:
    """Remove the harness's kernels, and leave no room for another."""
    _clean(scene)
    _as_root("fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - 60000000)) /full")(scene)


def _clean(scene: Scene) -> None:
    _as_root("rm -f /full")(scene)
    scene.end("hosts", "clean", "dut", "--hosts", str(scene.hosts()))


def _wait_for_sudo(scene: Scene) -> None:
    scene.rack.dut.run("sh", "-c", "until sudo -n true; do sleep 1; done", timeout_s=180)


_no_root = _as_root(
    """sed -i 's#"root=[^"]*"#"root=/dev/gone"#g' /var/lib/receive-batching/kernels.json"""
)
_another_kernel = _as_root(
    f"for d in {_OURS}/*/; do for f in vmlinuz initrd.img; do cp /boot/$f-* $d/$f; done; done"
)
_no_sudo = _meanwhile(
    f"mv /etc/sudoers.d/{MACHINE_USER} /root/rights; sleep 60;"
    f" mv /root/rights /etc/sudoers.d/{MACHINE_USER}"
)
_chatters = _meanwhile(
    "ip link set $(ip -4 -o address show to 10.0.2.15 | cut -d' ' -f2) down;"
    " while sleep 1; do echo still here > /dev/kmsg; done"
)
_without_netserver = _meanwhile(
    "until pgrep -x netserver; do sleep 0.2; done; sleep 6; pkill -KILL -x netserver"
)
_armed_for_ever = _at_boot_of_ours("grub-editenv - set next_entry=receive-batching-$(uname -r)")
_dies_leaving = _at_shutdown(f"test ! -d {_OURS}/$(uname -r) || echo c > /proc/sysrq-trigger")
_never_armed = _at_shutdown("grub-editenv - unset next_entry")


FAULTS = (
    Fault("none, by kexec", lambda _: None, 0, "results: "),
    Fault("none, by one-shot entry", lambda _: None, 0, "results: ", method="one-shot"),
    Fault("panic", _sysrq("c"), 4, "kernel died: Kernel panic", fast=True),
    Fault("oops", lambda scene: scene.rack.dut.oops(), 4, "kernel died: BUG: kernel NULL pointer"),
    Fault("soft lockup", lambda scene: scene.rack.dut.lock_up(), 4, "kernel died: .*soft lockup"),
    Fault(
        "panic when the kernel is left", _dies_leaving, 4, "died when it was told", after=None,
        mend=_without_unit,
    ),
    Fault("silent reset", lambda scene: scene.rack.dut.cycle(), 4, "is gone and .* runs"),
    Fault("hang", lambda scene: scene.rack.dut.freeze(), 4, "console is silent; after a power"),
    Fault("hang, console goes on", _chatters, 4, "does not answer; after a power cycle"),
    Fault(
        "kernel that mounts no root", _no_root, 4, "is gone", after=None, mend=_clean,
        installed=True,
    ),
    Fault(
        "another kernel in its place", _another_kernel, 3, "was never booted", after=None,
        mend=_clean, installed=True,
    ),
    Fault(
        "one-shot that stays", _armed_for_ever, 3, "would be booted again", after=None,
        method="one-shot", mend=_without_unit,
    ),
    Fault(
        "one-shot that is not taken", _never_armed, 3, "was never booted", after=None,
        method="one-shot", mend=_without_unit,
    ),
    Fault("ssh lost for 30 s", _cut(30), 0, "results: "),
    Fault("ssh to the generator lost for 30 s", _cut(30, generator=True), 0, "results: "),
    Fault("ssh lost for ever", _cut(None), 3, "did not come up", mend=_plug_in, unmet=True),
    Fault("sudo refused", _no_sudo, 3, "sudo", after=None, mend=_wait_for_sudo),
    Fault("generator loses power", lambda scene: scene.rack.generator.cycle(), 0, "lost: "),
    Fault("netserver killed", _without_netserver, 0, "void"),
    Fault(
        "NIC fails", lambda scene: scene.rack.dut.break_nic(), 3, "there was one before",
        mend=_plug_in, unmet=True,
    ),
    Fault(
        "BMC refuses", lambda scene: scene.rack.dut.freeze(), 3, "ended with status", mend=_plug_in,
        dut={"power": {"command": ["false"]}}, unmet=True,
    ),
    Fault(
        "BMC hangs", lambda scene: scene.rack.dut.freeze(), 3, "did not answer in", mend=_plug_in,
        dut={"power": {"command": ["sh", "-c", "sleep 3600"]}}, unmet=True,
    ),
    Fault("lease broken", _break_lease, 3, "lease of dut was lost", mend=_plug_in, unmet=True),
    Fault("clock set back a day", _clock(-1), 0, "results: ", mend=_clock_right),
    Fault("clock set ahead a day", _clock(1), 0, "results: ", mend=_clock_right),
    Fault("disk full on the dut", _fill, 3, "no room", after=None, mend=_clean),
    Fault("disk full here", _no_more_files, 3, "cannot be written", resumes=True),
    Fault("harness killed, kernel up", _killed, -9, "", resumes=True),
    Fault("harness killed, dut leaving", _killed, -9, "", after="leaving", resumes=True),
    Fault(
        "harness killed, dut hangs", _killed_in_a_hang, -9, "", resumes=True, resume_exit_code=4,
    ),
    Fault("harness killed at 20 moments", _killed, -9, "", kills=20, resumes=True),
    Fault("harness interrupted", _interrupted, 130, "interrupted", resumes=True),
)  # fmt: skip
"""In the order in which they strike."""
