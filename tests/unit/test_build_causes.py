# SPDX-License-Identifier: MIT
"""When a kernel does not build, the lines with the cause are shown, whatever tool said them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.agent.tracing.stages import clones
from harness.base.errors import KernelError
from harness.kernels import configuration
from harness.kernels.walk import _build_error, causes

pytestmark = pytest.mark.unit

STEPS = "".join(f"  CC      net/core/a{n}.o\n  AR      drivers/net/b{n}.a\n" for n in range(40))
END = (
    "make[2]: *** [/src/scripts/Makefile.vmlinux:34: vmlinux] Error 1\n"
    "make[1]: *** [/src/Makefile:1167: vmlinux] Error 2\n"
    "make: *** [Makefile:224: __sub-make] Error 2\n"
)
LONG = "".join(f"  SORTTAB something{n}\n" for n in range(20))


@pytest.mark.parametrize(
    "cause",
    [
        "BTF: .tmp_vmlinux1: pahole version v1.9 is too old, need at least v1.16",
        "Failed to generate BTF for vmlinux",
        "/cache/pahole.sh: 8: pahole: not found",
        "FAILED: load BTF from vmlinux: Invalid argument",
        "ld: net/core/dev.o: in function `f': dev.c:(.text+0x1): undefined reference to `g'",
        "ld: cannot find -lelf: No such file or directory",
        "net/core/dev.c:17:5: error: expected ';' before 'return'",
        "scripts/sign-file.c:25:10: fatal error: openssl/opensslv.h: No such file or directory",
        "gcc: fatal error: Killed signal terminated program cc1",
        "cc1: internal compiler error: Segmentation fault",
        "/bin/sh: 1: bc: not found",
        'ERROR: modpost: "f" [drivers/net/ethernet/sfc/sfc.ko] undefined!',
        "make[3]: *** No rule to make target 'net/x.c', needed by 'net/x.o'.  Stop.",
        "ld: final link failed: No space left on device",
        "zstd: error 70 : Write error : cannot write block : No space left on device",
        "Error: gcc-12 plugin headers are not found: unrecognized option '-fplugin'",
    ],
)
def test_the_cause_is_among_what_is_shown(cause: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{STEPS}{cause}\n{LONG}{END}")
    error = _build_error(log, 2)
    assert f"  | {cause}" in error.message
    assert str(log) in (error.hint or "")
    assert len(error.message.splitlines()) < 20


def test_the_first_cause_of_several_and_those_after_it() -> None:
    said = "a.c:1:1: error: one\n  1 | f();\n" + LONG + "b.c:1:1: error: two\n" + END
    shown = causes(STEPS + said)
    assert shown.index("a.c:1:1: error: one") < shown.index("b.c:1:1: error: two")
    assert "  1 | f();" in shown


def test_a_warning_before_it_is_not_the_cause() -> None:
    shown = causes(
        "x.c:1:1: warning: variable not found in set\n" * 3 + "y.c:2:2: error: no\n" + END
    )
    assert any("y.c" in line for line in shown)


def test_what_nobody_knows_is_shown_as_it_was_said() -> None:
    shown = causes(STEPS + "objtool: this went astray\n" + LONG + END)
    assert "objtool: this went astray" in shown
    assert shown[-1].startswith("make: ***")


@given(st.text(max_size=300))
def test_whatever_a_build_says(text: str) -> None:
    assert set(causes(text)) <= set(text.splitlines())


@pytest.mark.parametrize(("version", "told"), [("115", "pahole is 1.15, too old"),
                                               ("0", "not installed")])  # fmt: skip
def test_kconfig_drops_what_pahole_is_too_old_for(version: str, told: str) -> None:
    chosen = configuration.benchmark()
    have = "".join(
        f"{line}\n" for line in chosen.asked.splitlines() if "DEBUG_INFO_BTF" not in line
    )
    with pytest.raises(KernelError, match=told) as caught:
        chosen.check(f"{have}CONFIG_PAHOLE_VERSION={version}\n")
    assert "dwarves" in (caught.value.hint or "")
    with pytest.raises(KernelError) as caught:
        chosen.check(f"{have}CONFIG_PAHOLE_VERSION=125\n")
    assert "pahole" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["ip_list_rcv"], "ip_list_rcv"),
        (["ip_list_rcv.llvm.1234567890123456789"], "ip_list_rcv.llvm.1234567890123456789"),
        (["ip_list_rcv.constprop.0"], "ip_list_rcv.constprop.0"),
        (["ip_list_rcv.isra.0.constprop.1"], "ip_list_rcv.isra.0.constprop.1"),
        (["ip_list_rcv.constprop.0.isra.0"], "ip_list_rcv.constprop.0.isra.0"),
        (["ip_list_rcv.part.0"], None),
        (["ip_list_rcv.part.0", "ip_list_rcv.constprop.0"], "ip_list_rcv.constprop.0"),
        (["ip_list_rcv.cold", "ip_list_rcv.llvm.7"], "ip_list_rcv.llvm.7"),
        (["ip_list_rcv.isra.0.cold", "ip_list_rcv_core", "xip_list_rcv"], None),
    ],
)
def test_a_clone_counts_as_the_function(there: list[str], found: str | None) -> None:
    assert next(iter(clones("ip_list_rcv", there)), None) == found
