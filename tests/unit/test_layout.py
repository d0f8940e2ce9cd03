# SPDX-License-Identifier: MIT
"""Where a layout places the code of a kernel's objects."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.kernels.layout import code_sizes, placed, without_debug
from harness.kernels.walk import _LD

pytestmark = pytest.mark.unit

HEADERS = """In archive vmlinux.a:

net/core/dev.o:     file format elf64-x86-64

Sections:
Idx Name          Size      VMA               LMA               File off  Algn
  0 .text         00000b74  0000000000000000  0000000000000000  00000040  2**4
                  CONTENTS, ALLOC, LOAD, RELOC, READONLY, CODE
  1 .text.fixup   00000010  0000000000000000  0000000000000000  00000630  2**0
  2 .init.text    00000630  0000000000000000  0000000000000000  00000630  2**5

arch/x86/kernel/madt.o:     file format elf64-x86-64

  0 .text         00000012  0000000000000000  0000000000000000  00001000  2**12

net/core/empty.o:     file format elf64-x86-64

  0 .text         00000000  0000000000000000  0000000000000000  00000040  2**0
"""
SCRIPT = """ .text : {
  KEEP(*(.head.text))
  . = ALIGN(16); *(.text.hot .text.hot.*) *(.text .text.fixup)
 }
 /DISCARD/ : { *(.exitcall.exit) }
"""
_SLOT = re.compile(r"\. = (0x[0-9a-f]+); \*vmlinux\.a:(\S+)\(\.text")
_NAMES = [f"net/file{number}.o" for number in range(12)]


def slots(script: str) -> dict[str, int]:
    return {name: int(at, 16) for at, name in _SLOT.findall(script)}


def test_code_is_counted_by_object() -> None:
    assert code_sizes(HEADERS) == {"net/core/dev.o": 0xB74 + 0x10}


@given(
    sizes=st.dictionaries(st.sampled_from(_NAMES), st.integers(1, 100_000), min_size=1),
    layout=st.integers(1, 50),
)
def test_no_object_reaches_into_the_slot_of_another(sizes: dict[str, int], layout: int) -> None:
    found = slots(placed(SCRIPT, sizes, [], layout))
    assert found.keys() == sizes.keys()
    in_order = sorted(found, key=found.__getitem__)
    for name, following in itertools.pairwise(in_order):
        assert found[name] + sizes[name] <= found[following]
        assert found[following] % 64 == 0


def test_what_no_patch_touches_lies_at_the_same_address_in_every_step() -> None:
    sizes = dict.fromkeys(_NAMES, 5000)
    touched = ["net/file3.c", "net/file7.c", "include/linux/skbuff.h"]
    step0 = slots(placed(SCRIPT, sizes, touched, 1))
    step8 = slots(placed(SCRIPT, sizes | {"net/file3.o": 7000, "net/file7.o": 9000}, touched, 1))
    same = [name for name in _NAMES if name not in ("net/file3.o", "net/file7.o")]
    assert [step0[name] for name in same] == [step8[name] for name in same]
    assert max(step0[name] for name in same) < min(step0["net/file3.o"], step0["net/file7.o"])


def test_layouts_differ_and_come_again() -> None:
    sizes = dict.fromkeys(_NAMES, 5000)
    assert placed(SCRIPT, sizes, [], 1) == placed(SCRIPT, dict(reversed(sizes.items())), [], 1)
    assert slots(placed(SCRIPT, sizes, [], 1)) != slots(placed(SCRIPT, sizes, [], 2))


def test_the_rest_of_the_script_stays() -> None:
    made = placed(SCRIPT, {"net/a.o": 100}, [], 1)
    assert made.endswith(SCRIPT[SCRIPT.index("*(.text.hot") :])
    assert "/DISCARD/ : { *(.debug_*) *(.exitcall.exit) }" in without_debug(made)


def test_another_script_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \.text\.hot"):
        placed(".text : { *(.text) }", {"net/a.o": 100}, [], 1)


@pytest.mark.parametrize(
    ("output", "types_known", "debug"),
    [
        (".tmp_vmlinux1", False, True),  # Linux 6.12
        (".tmp_vmlinux1", True, False),
        (".tmp_vmlinux.btf", False, True),  # Linux 6.1
        (".tmp_vmlinux.btf", True, False),
        ("vmlinux", False, False),
    ],
)
def test_only_what_types_are_taken_from_keeps_debug_information(
    tmp_path: Path, output: str, types_known: bool, debug: bool
) -> None:
    def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True
        )

    (tmp_path / "ld.sh").write_text(_LD)
    (tmp_path / "a.c").write_text("int a(void) { return 0; }\n")
    script = tmp_path / "arch/x86/kernel/vmlinux.lds"
    script.parent.mkdir(parents=True)
    script.write_text("SECTIONS {\n" + SCRIPT.replace("KEEP(*(.head.text))", "") + "}\n")
    assert run("gcc", "-g", "-c", "a.c").returncode == 0
    assert run("ar", "rcsT", "vmlinux.a", "a.o").returncode == 0
    if types_known:
        (tmp_path / "btf").touch()
    link = ["sh", "ld.sh", f"--script=./{script.relative_to(tmp_path)}", "-o", output]
    env = {"KERNEL_LAYOUT": "1", "KERNEL_TOUCHED": "", "KERNEL_BTF": "btf"}
    done = run(*link, "--whole-archive", "vmlinux.a", **env)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in tmp_path.iterdir()} - {"btf", "layout.lds"}
    assert made == {"ld.sh", "a.c", "a.o", "vmlinux.a", "arch", output}
    assert (".debug_info" in run("objdump", "-h", output).stdout) == debug
    assert run(*link, "no.o", **env).returncode != 0


@pytest.mark.parametrize(
    ("script", "archive"), [("--script=", "vmlinux.a"), ("-T ", "built-in.a")], ids=["6.12", "4.18"]
)
def test_the_link_of_a_kernel_is_told_from_others(
    tmp_path: Path, script: str, archive: str
) -> None:
    def run(command: str) -> str:
        return subprocess.run(
            ["sh", "-ec", command],
            cwd=tmp_path,
            env={**os.environ, "KERNEL_LAYOUT": "1", "KERNEL_TOUCHED": "", "KERNEL_BTF": "none"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    (tmp_path / "ld.sh").write_text(_LD)
    (tmp_path / "a.c").write_text("int a(void) { return 0; }\n")
    lds = tmp_path / "arch/x86/kernel/vmlinux.lds"
    lds.parent.mkdir(parents=True)
    lds.write_text("SECTIONS {\n" + SCRIPT.replace("KEEP(*(.head.text))", "") + "}\n")
    run(f"gcc -c a.c && ar rcsTP {archive} a.o")
    run(f"sh ld.sh -o placed {script}./arch/x86/kernel/vmlinux.lds --whole-archive {archive}")
    assert "a.o(.text .text.fixup)" in (tmp_path / "layout.lds").read_text()
    assert re.search(r"^0*4000 T a$", run("nm placed"), re.MULTILINE)
    (tmp_path / "layout.lds").unlink()
    run(f"sh ld.sh -r -o other --whole-archive {archive}")
    assert not (tmp_path / "layout.lds").exists()
