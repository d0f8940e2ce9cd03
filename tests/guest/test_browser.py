# SPDX-License-Identifier: MIT
"""The HTML report and the trend as a browser draws them: on a screen, on a phone and on paper."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from harness.report import document, render, trend
from harness.results import trend as campaigns
from harness.results.analysis import analyse
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign
from tests.unit.test_beside import with_extras
from tests.unit.test_trend import night

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: make check installs it on Debian"),
]
_SIZES = {"screen": (1280, 900), "phone": (390, 800)}
_FIGURES = {"report": 9, "trend_page": 5}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_campaign(
        tmp_path_factory.mktemp("browser"), effects={"0": 1, "2": 1.1, "8": 1.27}, blocks=6,
        edit=with_extras,
    )  # fmt: skip
    path = root / "report.html"
    path.write_text(render(document(analyse(ResultDirectory.open(root))), "html"))
    return path


@pytest.fixture(scope="module")
def trend_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve nights, of which the last four are slower."""
    root = tmp_path_factory.mktemp("trend")
    for number in range(12):
        night(root, number, step8=1.2 if number < 8 else 1.1)
    path = root / "trend.html"
    path.write_text(trend.render(trend.document(campaigns.trend([root])), "html"))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root chromium cannot make its sandbox; the page is our own and holds no script.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=itertools.product(_FIGURES, _SIZES), ids="-".join)
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    name, size = request.param
    report = request.getfixturevalue(name)
    width, height = _SIZES[size]
    shown = browser.new_page(viewport={"width": width, "height": height})
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("requestfailed", lambda failed: said.append(failed.url))
    shown.goto(report.as_uri())
    yield shown
    shown.close()
    assert said == []


def test_every_figure_is_drawn(page: Page, tmp_path: Path) -> None:
    figures = page.locator("figure")
    assert (
        figures.count() == _FIGURES["trend_page" if page.url.endswith("/trend.html") else "report"]
    )
    for index in range(figures.count()):
        shot = tmp_path / f"figure{index}.png"
        figures.nth(index).locator("svg").screenshot(path=shot)
        pixels = matplotlib.image.imread(shot)[..., :3]
        assert pixels.shape[0] > 60
        # White, ink and at least one more colour that covers something.
        inked = np.abs(pixels - 1).max(axis=2) > 0.1
        coloured = np.ptp(pixels, axis=2) > 0.2
        assert inked.mean() > 0.005
        assert coloured.sum() > 50


def test_nothing_is_wider_than_the_page(page: Page) -> None:
    fits = "() => document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(fits)


@pytest.mark.parametrize("name", _FIGURES)
def test_on_paper_every_figure_is_whole(
    request: pytest.FixtureRequest, name: str, browser: Browser, tmp_path: Path
) -> None:
    page = browser.new_page()
    page.goto(request.getfixturevalue(name).as_uri())
    page.emulate_media(media="print")
    widths = page.locator("figure svg").evaluate_all(
        "figures => figures.map(figure => figure.getBoundingClientRect().width)"
    )
    assert max(widths) < 600
    printed = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert printed.startswith(b"%PDF")


def test_a_change_is_numbered_in_table_and_figure(browser: Browser, trend_page: Path) -> None:
    page = browser.new_page()
    page.goto(trend_page.as_uri())
    assert page.locator("table.changes tbody tr").count() == 5
    number = page.locator("table.changes tbody tr td").first.inner_text()
    assert number == "(1)"
    figure = page.locator("#trend-stack_rx_pps svg")
    assert figure.get_by_text("1", exact=True).count() == 1
    # Every campaign is listed, folded away.
    assert not page.locator("table.campaigns").is_visible()
    page.get_by_text("Campaigns", exact=True).click()
    assert page.locator("table.campaigns tbody tr").count() == 12
    page.close()
