"""A finished study in Chromium, without a network.

Screenshots go to the directory in ``EFFLLAVA_SCREENSHOTS``, or to that of pytest. To create
docs/images/dashboard.png again from a database, run ``EFFLLAVA_DASHBOARD=sqlite:///FILE.db pytest
-m browser tests/dashboard/test_browser.py --write-tables``; the study has the name of the file.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.dashboard.conftest import running_dashboard
from tests.study_fixtures import ROOT, FinishedStudy, invoke

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, ViewportSize

CHROMIUM = Path("/usr/bin/chromium")
PICTURE = ROOT / "docs" / "images" / "dashboard.png"
SIZE: ViewportSize = {"width": 1500, "height": 1000}
FIGURES = {
    "sensitivity": "Sensitivity of each component",
    "front_by_epoch": "Accuracy against latency, by epoch",
    "hypervolume": "Hypervolume within each epoch",
    "width_ratios": "Width ratio of each layer",
    "proxy_and_test": "Accuracy on test against accuracy on the proxy",
    "projector": "Loss of the projector, by update",
}
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (Debian's package chromium)"
    ),
]


@dataclass
class Visit:
    """A page, and the errors that occurred on it."""

    page: Page
    home: str
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page, add = self.page, self.errors.append
        page.on("console", lambda message: add(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: add(str(error)))
        page.on("requestfailed", lambda request: add(f"failed: {request.url} {request.failure}"))
        page.on(
            "response",
            lambda response: (
                add(f"{response.status} {response.url}") if response.status >= 400 else None
            ),
        )

    def save_screenshot(self, name: str, directory: Path) -> None:
        """Save a screenshot of the whole page."""
        self.page.screenshot(path=directory / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, dashboard_url: str) -> Iterator[Visit]:
    """A page that must have no errors, and must request nothing from other servers."""
    context = chromium.new_context(viewport=SIZE)
    page = context.new_page()
    page.set_default_timeout(60_000)
    server = dashboard_url.split("/dashboard")[0]
    page.route(
        lambda url: not url.startswith((server, "data:", "blob:")), lambda route: route.abort()
    )
    visit = Visit(page, dashboard_url)
    yield visit
    context.close()
    assert visit.errors == []


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the screenshots."""
    name = os.environ.get("EFFLLAVA_SCREENSHOTS")
    directory = Path(name) if name else tmp_path_factory.mktemp("screenshots")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def plot_of(name: str) -> str:
    """Return the selector of a figure of this package."""
    return f"[id='user-defined-plot:{name}']"


def n_colours(picture: bytes) -> int:
    """Count the colours of a picture; an empty one has few."""
    colours = Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1 << 24)
    return len(colours or ())


def test_the_page_of_a_study_shows_its_front_and_all_figures(
    visit: Visit, screenshots: Path
) -> None:
    page = visit.page
    page.goto(visit.home)
    page.locator("#graph-pareto-front .scatterlayer .point").first.wait_for()
    for name, title in FIGURES.items():
        plot = page.locator(plot_of(name))
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        assert title in plot.inner_text()
        box = plot.bounding_box()
        assert box is not None
        assert box["width"] > 500
        assert box["height"] > 300
    visit.save_screenshot("study", screenshots)


def test_the_texts_of_a_figure_do_not_overlap_and_stay_inside_it(visit: Visit) -> None:
    page = visit.page
    page.goto(visit.home)
    for name in FIGURES:
        plot = page.locator(plot_of(name))
        plot.locator(".main-svg").first.wait_for()
        texts = plot.locator("svg text:visible").evaluate_all(
            "all => all.map(t => [t.textContent, t.getBoundingClientRect().toJSON()])"
        )
        frame = plot.evaluate("plot => plot.getBoundingClientRect().toJSON()")
        visible = [(text, box) for text, box in texts if text and box["width"]]
        assert len(visible) > 8, name
        for text, box in visible:
            assert box["left"] >= frame["left"] - 1, (name, text)
            assert box["right"] <= frame["right"] + 1, (name, text)
            assert box["bottom"] <= frame["bottom"] + 1, (name, text)
        for index, (text, box) in enumerate(visible):
            for other_text, other_box in visible[index + 1 :]:
                assert not overlapping(box, other_box), (name, text, other_text)


def overlapping(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two boxes overlap by more than two pixels in both directions."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return bool(across > 2 and down > 2)


def test_the_charts_of_a_report_fit_their_columns(
    chromium: Browser, smoke: FinishedStudy, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    invoke("report", smoke.file, "--out", report)
    page = chromium.new_page(viewport=SIZE)
    page.goto(report.as_uri())
    page.wait_for_function(
        "() => [...document.querySelectorAll('.charts > div')].every(column => "
        "column.querySelector('.main-svg')?.clientWidth <= column.clientWidth)"
    )
    assert page.locator(".charts > div").count() >= 4
    page.close()


def test_the_note_has_a_text_a_table_and_a_command(visit: Visit, screenshots: Path) -> None:
    page = visit.page
    page.goto(f"{visit.home}/note")
    parts = [
        page.get_by_text("mix epochs").first,
        page.get_by_role("cell", name=re.compile(r"trial \d+ \(chosen\)")),
        page.get_by_text("effllava-optuna export").first,
    ]
    for part in parts:
        part.wait_for()
        assert part.is_visible()
    visit.save_screenshot("note", screenshots)


def test_the_page_of_a_finalist_shows_its_policy(
    visit: Visit, smoke: FinishedStudy, screenshots: Path
) -> None:
    page, chosen = visit.page, smoke.document()["chosen"]["trial"]
    page.goto(f"{visit.home}/trials?numbers={chosen}")
    page.get_by_role("heading", name=f"Trial {chosen} ").wait_for()
    picture = page.locator("img[alt='policy.png']")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector(\"img[alt='policy.png']\").naturalWidth")
    assert picture.evaluate("image => image.naturalWidth") == 960
    page.get_by_text("policy.json").first.wait_for()
    assert n_colours(picture.screenshot()) > 8
    visit.save_screenshot("trial", screenshots)


def test_the_control_study_opens(visit: Visit, screenshots: Path) -> None:
    page = visit.page
    page.goto(visit.home.rsplit("/studies", 1)[0])
    page.get_by_text("smoke/projector").first.click()
    page.locator("#plot-history .scatterlayer .point").first.wait_for()
    page.wait_for_load_state("networkidle")
    visit.save_screenshot("control", screenshots)
    page.goto(f"{page.url.split('?')[0].rstrip('/')}/note")
    note = page.get_by_text("Each trial is one attempt").first
    note.wait_for()
    assert note.is_visible()


def test_the_picture_in_the_readme_can_be_created_again(
    chromium: Browser, pytestconfig: pytest.Config
) -> None:
    url = os.environ.get("EFFLLAVA_DASHBOARD")
    if not pytestconfig.getoption("--write-tables") or url is None:
        assert PICTURE.stat().st_size < 300_000
        with Image.open(PICTURE) as picture:
            assert picture.size[0] >= 1200
        return
    with running_dashboard("--storage", url, "--study-name", Path(url).stem) as address:
        page = chromium.new_page(viewport=SIZE)
        page.goto(address)
        for name in FIGURES:
            page.locator(f"{plot_of(name)} .main-svg").first.wait_for()
        page.wait_for_load_state("networkidle")
        boxes = [page.locator(plot_of(name)).bounding_box() for name in FIGURES]
        visible = [box for box in boxes if box is not None]
        top, left = min(box["y"] for box in visible), min(box["x"] for box in visible)
        whole = page.screenshot(
            full_page=True,
            clip={
                "x": left - 8,
                "y": top - 8,
                "width": max(box["x"] + box["width"] for box in visible) - left + 16,
                "height": max(box["y"] + box["height"] for box in visible) - top + 16,
            },
        )
        page.close()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(whole)) as picture:
        picture.convert("RGB").save(PICTURE, optimize=True)
