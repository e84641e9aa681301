"""A finished study in Chromium, without a network.

Screenshots go to the directory in ``EFFLLAVA_SCREENSHOTS``, or to that of pytest. To create
the pictures in docs/images again from a database, run ``EFFLLAVA_DASHBOARD=sqlite:///FILE.db
pytest -m browser tests/dashboard/test_browser.py --write-tables``; the study has the name of the
file.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from effllava_optuna.policy import IMAGE_TOKENS, Component, Kind, ModelStructure
from tests.dashboard.conftest import running_dashboard
from tests.report.study_samples import figures_of, two_epochs
from tests.study_fixtures import ROOT, FinishedStudy, invoke

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page, ViewportSize

CHROMIUM = Path("/usr/bin/chromium")
PICTURES = [ROOT / "docs" / "images" / f"{name}.png" for name in ("dashboard", "report")]
WIDTHS = pytest.mark.parametrize("width", [800, 1200, 1300])
SIZE: ViewportSize = {"width": 1500, "height": 1000}
FIGURES = {
    "sensitivity": "Sensitivity of each component",
    "front_by_epoch": "Accuracy against speed-up, by epoch",
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


@WIDTHS
def test_a_study_opens_on_its_front_sensitivity_and_widths(
    visit: Visit, screenshots: Path, width: int
) -> None:
    page = visit.page
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(visit.home)
    page.locator("#graph-pareto-front .main-svg").first.wait_for()
    boxes = {}
    for name in FIGURES:
        plot = page.locator(plot_of(name))
        plot.locator(".main-svg").first.wait_for()
        box = plot.bounding_box()
        assert box is not None
        boxes[name] = box
    order = sorted(boxes, key=lambda name: (round(boxes[name]["y"]), boxes[name]["x"]))
    assert order[:3] == ["front_by_epoch", "sensitivity", "width_ratios"]
    assert boxes["front_by_epoch"]["y"] < 120
    pareto = page.locator("#graph-pareto-front").bounding_box()
    assert pareto is not None
    assert pareto["y"] > max(box["y"] for box in boxes.values())
    assert min(box["width"] for box in boxes.values()) > 480
    assert width_of(page) <= width
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
        visit.save_screenshot(f"study-{width}-{scheme}", screenshots)


@WIDTHS
def test_the_texts_of_a_figure_do_not_overlap_and_stay_inside_it(visit: Visit, width: int) -> None:
    page = visit.page
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(visit.home)
    for name in FIGURES:
        plot = page.locator(plot_of(name))
        plot.locator(".main-svg").first.wait_for()
        assert faults_of_texts(plot) == []


def faults_of_texts(plot: Locator) -> list[tuple[str, str]]:
    """Return the texts of a figure that are cut, or overlap another one or the buttons."""
    plot.hover(position={"x": 3, "y": 3})  # shows the buttons, and no values
    frame = plot.evaluate("plot => plot.getBoundingClientRect().toJSON()")
    buttons = plot.locator(".modebar-btn").evaluate_all(
        "all => all.map(b => ['button', b.getBoundingClientRect().toJSON()])"
    )
    assert buttons
    texts = plot.locator("svg text:visible").evaluate_all(
        # A line of a title is a tspan of its own.
        "all => all.flatMap(t => t.querySelector('tspan.line') ? "
        "[...t.querySelectorAll('tspan.line')] : [t])"
        ".map(t => [t.textContent, t.getBoundingClientRect().toJSON()])"
    )
    visible = [(text, box) for text, box in texts if text and box["width"]]
    assert len(visible) > 8
    faults = [
        (text, "the frame")
        for text, box in visible
        if box["left"] < frame["left"] - 1
        or box["right"] > frame["right"] + 1
        or box["top"] < frame["top"] - 1
        or box["bottom"] > frame["bottom"] + 1
    ]
    for index, (text, box) in enumerate(visible):
        for other_text, other_box in [*visible[index + 1 :], *buttons]:
            if overlapping(box, other_box):
                faults.append((text, other_text))
    return faults


def overlapping(one: dict[str, float], other: dict[str, float]) -> bool:
    """Return whether two boxes overlap by more than two pixels in both directions."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return across > 2 and down > 2


def width_of(page: Page) -> int:
    """Return the width of the content of a page, which is that of its window if all fits."""
    width: int = page.evaluate("document.documentElement.scrollWidth")
    return width


def test_widths_of_two_towers_fit_a_frame_of_the_dashboard(
    chromium: Browser, tmp_path: Path, screenshots: Path
) -> None:
    components = [
        Component(tower, layer, kind, 32, 100)
        for tower, layers in (("vision", 24), ("language", 32))
        for layer in range(layers)
        for kind in (Kind.ATTN, Kind.MLP)
    ]
    study = two_epochs(ModelStructure((IMAGE_TOKENS, *components)))
    file = tmp_path / "figure.html"
    figures_of(study)["width_ratios"].write_html(
        file, default_width="548px", default_height="450px"
    )
    page = chromium.new_page(viewport=SIZE)
    page.goto(file.as_uri())
    page.locator(".main-svg").first.wait_for()
    assert faults_of_texts(page.locator(".js-plotly-plot")) == []
    page.screenshot(path=screenshots / "two-towers.png")
    page.close()


@WIDTHS
def test_nothing_in_a_report_is_cut(
    chromium: Browser, smoke: FinishedStudy, report: Path, screenshots: Path, width: int
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(report.as_uri())
    page.wait_for_function(
        "() => [...document.querySelectorAll('.charts > div')].every(column => "
        "column.querySelector('.main-svg')?.clientWidth <= column.clientWidth)"
    )
    assert width_of(page) <= width
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert width_of(page) <= width
    tables = page.locator(".wide").evaluate_all("all => all.map(t => t.scrollWidth-t.clientWidth)")
    rules = {choice["trial"] for choice in smoke.document()["choices"]}
    assert len(tables) == 3 + (len(rules) > 1)  # rules that agree are a line
    assert set(tables) == {0}
    plots = page.locator(".js-plotly-plot").all()
    assert len(plots) == len(FIGURES)
    for plot in plots:
        assert faults_of_texts(plot) == []
    buttons = page.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert set(buttons) == {"Download plot as a PNG", "Reset axes"}  # and none that uploads
    page.screenshot(path=screenshots / f"report-{width}.png", full_page=True)
    page.close()


@pytest.fixture(scope="module")
def report(smoke: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML page of the smoke study."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    invoke("report", smoke.file, "--out", file)
    return file


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


@WIDTHS
def test_the_note_is_as_wide_as_the_window(visit: Visit, screenshots: Path, width: int) -> None:
    page = visit.page
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{visit.home}/note")
    page.get_by_text("effllava-optuna export").first.wait_for()
    assert width_of(page) <= width
    for part in ("main table", "main code"):
        parts = page.locator(part)
        assert parts.count() >= 1
        ends = parts.evaluate_all("all => all.map(part => part.getBoundingClientRect().right)")
        assert max(ends) <= width - 16
    parts.last.scroll_into_view_if_needed()
    visit.save_screenshot(f"note-{width}", screenshots)


def test_the_pictures_in_the_docs_can_be_created_again(
    chromium: Browser, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    url = os.environ.get("EFFLLAVA_DASHBOARD")
    if not pytestconfig.getoption("--write-tables") or url is None:
        for file in PICTURES:
            assert file.stat().st_size < 300_000
            with Image.open(file) as picture:
                assert picture.size[0] == 1300
        return
    study = ("--storage", url, "--study-name", Path(url).stem)
    invoke("report", *study, "--out", tmp_path / "report.html")
    with running_dashboard(*study) as address:
        pages = (address, (tmp_path / "report.html").as_uri())
        for file, uri in zip(PICTURES, pages, strict=True):
            page = chromium.new_page(viewport={"width": 1300, "height": 1560})
            page.goto(uri)
            page.locator(".js-plotly-plot[id$=projector] .main-svg").first.wait_for()
            page.wait_for_load_state("networkidle")
            with Image.open(io.BytesIO(page.screenshot())) as picture:
                picture.convert("RGB").save(file, optimize=True)
            page.close()
