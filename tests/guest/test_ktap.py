# SPDX-License-Identifier: MIT
"""What the kernel's own KTAP parser makes of a report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import config
from harness.kernels.source import Tree, resolve
from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.expect import hold, parse
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.guest

READ = """
import sys
import kunit_parser
found = kunit_parser.parse_run_tests(sys.stdin.read().splitlines())
print(*(test.status.name for test in found.subtests))
"""


def test_the_kernels_parser_reads_it(tmp_path: Path) -> None:
    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.2}, blocks=2)
    analysis = analyse(ResultDirectory.open(tmp_path))
    steps = ("0", "8")
    findings = hold(
        analysis,
        [
            parse("step8 ip_rcv_per_packet < 0.01", steps),
            parse("step0 ip_rcv_per_packet < 0.01", steps),
            parse("step8 stack_rx_pps > step0", steps),
        ],
    )
    source = Tree.of(resolve(config.load(config.locate(None)).kernel.source))
    read = subprocess.run(
        [sys.executable, "-c", READ],
        input=render(document(analysis, findings), "ktap"),
        env={"PYTHONPATH": str(source.directory / "tools/testing/kunit")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout.splitlines()[-1].split() == [
        "SUCCESS",
        "SUCCESS",
        "SUCCESS",
        "FAILURE",
        "SKIPPED",
    ]
