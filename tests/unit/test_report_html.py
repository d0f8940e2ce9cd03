# SPDX-License-Identifier: MIT
from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit

Json = dict[str, Any]
_VOID_TAGS = {"meta", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """What is in a page, and whether its tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.uses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID_TAGS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "xlink:href", "src", "clip-path") and value:
                self.uses.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _html(root: Path) -> str:
    return render(document(analyse(ResultDirectory.open(root))), "html")


@pytest.fixture(scope="module")
def nine_steps(tmp_path_factory: pytest.TempPathFactory) -> str:
    def with_settings(boot: Json, block: int, *_: Any) -> Json:
        after = {"rx_queues": 1, "rx_usecs": 60 + (block == 2)}
        return boot | {"settings": {"dut": {"before": {"rx_queues": block}, "after": after}}}

    effects = {str(step): 1 + step / 50 for step in range(9)}
    root = tmp_path_factory.mktemp("nine")
    return _html(make_campaign(root, effects=effects, blocks=6, edit=with_settings))


def test_the_page_is_whole_and_every_figure_is_drawn(nine_steps: str) -> None:
    page = Page(nine_steps)
    assert page.tags.count("svg") == page.tags.count("figure") == page.tags.count("figcaption") == 5
    assert len(page.ids) == len(set(page.ids))
    for name in ("change", "rates", "lists", "drops", "cost"):
        assert name in page.ids
    assert page.tags.count("table") >= 4
    for step in range(1, 9):
        assert f"step {step} against step 0: " in page.text


def test_the_page_needs_no_network_and_runs_nothing(nine_steps: str) -> None:
    page = Page(nine_steps)
    assert "script" not in page.tags
    for use in page.uses:
        assert use.startswith(("#", "url(#", "data:,")), use
        if use != "data:,":
            assert re.sub(r"url\(|[#)]", "", use) in page.ids
    assert "url(http" not in nine_steps
    assert "@import" not in nine_steps


def test_the_page_says_what_the_table_says(nine_steps: str) -> None:
    text = Page(nine_steps).text
    assert "virtual bed, TCG: not a hardware figure" in text
    assert "published hardware result" in text
    assert "INCOMPLETE" not in text
    # Host by host what was set; what a host had before may differ from boot to boot.
    assert "settings that differed between boots: dut.after.rx_usecs" in text
    assert "dut.before.rx_queues" in text


def test_the_same_result_gives_the_same_page(tmp_path: Path) -> None:
    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.1}, blocks=2)
    assert _html(root) == _html(root)


def test_an_incomplete_result_has_no_verdict(tmp_path: Path) -> None:
    root = make_campaign(
        tmp_path,
        effects={"0": 1.0, "8": 1.1},
        blocks=6,
        edit=lambda boot, block, *_: None if block == 6 else boot,
    )
    text = Page(_html(root)).text
    assert "INCOMPLETE: 10 of 12 boots are finished" in text
    assert "faster" not in text
    assert "no verdict: incomplete: 10 of 12 boots" in text


def test_nothing_in_a_result_becomes_markup(tmp_path: Path) -> None:
    evil = "$\\frac{$ <script>alert(1)</script><img src=x onerror=alert(1)>"

    def spoilt(boot: Json, block: int, *_: Any) -> Json:
        boot["trials"][1]["void"] = [{"rule": evil, "detail": evil}]
        boot["settings"] = {evil: {"after": {evil: evil}}}
        for trial in boot["trials"]:
            for stage in (trial["trace"] or {"stages": []})["stages"]:
                stage["name"] = evil
        if block == 2:
            boot |= {"outcome": "failed", "error": {"class": "KernelError", "message": evil}}
        return boot

    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.1}, blocks=2, edit=spoilt)
    page = Page(_html(root))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert evil in page.text
