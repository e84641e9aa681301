"""What a person sees: a finished study in Chromium, without a network.

Pictures go to the directory in ``EFFLLAVA_SCREENSHOTS``, or to pytest's own. With
``--write-tables`` docs/images/dashboard.png is made anew, from the study of the database that
``EFFLLAVA_DASHBOARD`` names: ``EFFLLAVA_DASHBOARD=sqlite:///studies/quickstart.db pytest
tests/study/test_browser.py --write-tables``, after quickstart has run.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.study.conftest import ROOT, Ran, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, ViewportSize

CHROMIUM = Path("/usr/bin/chromium")
PICTURE = ROOT / "docs" / "images" / "dashboard.png"
SIZE: ViewportSize = {"width": 1500, "height": 1000}
FIGURES = {
    "front_by_epoch": "Accuracy against latency, by epoch",
    "hypervolume": "Hypervolume within each epoch",
    "kept_widths": "Share of its width that each layer keeps",
    "proxy_and_test": "What the proxy promised, and what test gave",
    "projector": "Loss of the projector, by update",
}
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (Debian's package chromium)"
)


@dataclass
class Visit:
    """A page, and what went wrong on it."""

    page: Page
    home: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page, add = self.page, self.complaints.append
        page.on("console", lambda told: add(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: add(str(error)))
        page.on("requestfailed", lambda asked: add(f"failed: {asked.url} {asked.failure}"))
        page.on(
            "response", lambda got: add(f"{got.status} {got.url}") if got.status > 399 else None
        )

    def keep(self, name: str, where: Path) -> None:
        """Keep a picture of the whole page."""
        self.page.screenshot(path=where / f"{name}.png", full_page=True)


@contextmanager
def served(*target: object) -> Iterator[str]:
    """Serve a study with the verb ``dashboard``; give the address of its page."""
    process = subprocess.Popen(
        command("dashboard", *target, "--port", 0),
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    if process.stdout is None:
        raise AssertionError
    try:
        yield process.stdout.readline().split()[2]
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def home(smoke: Ran) -> Iterator[str]:
    """The address of the page of the smoke study."""
    with served(smoke.file) as address:
        yield address


@pytest.fixture
def visit(chromium: Browser, home: str) -> Iterator[Visit]:
    """A page that must not complain, and must ask nobody but the study."""
    context = chromium.new_context(viewport=SIZE)
    page = context.new_page()
    page.set_default_timeout(60_000)
    server = home.split("/dashboard")[0]
    page.route(
        lambda url: not url.startswith((server, "data:", "blob:")), lambda route: route.abort()
    )
    found = Visit(page, home)
    yield found
    context.close()
    assert found.complaints == []


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept."""
    told = os.environ.get("EFFLLAVA_SCREENSHOTS")
    place = Path(told) if told else tmp_path_factory.mktemp("screenshots")
    place.mkdir(parents=True, exist_ok=True)
    return place


def plot_of(name: str) -> str:
    """Give the selector of a figure of ours."""
    return f"[id='user-defined-plot:{name}']"


def inked(picture: bytes) -> int:
    """Count the colours of a picture: an empty one has few."""
    colours = Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1 << 24)
    return len(colours or ())


def test_the_page_of_a_study_shows_its_front_and_all_figures(visit: Visit, album: Path) -> None:
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
    visit.keep("study", album)


def test_no_words_of_a_figure_run_into_others_or_out_of_it(visit: Visit) -> None:
    page = visit.page
    page.goto(visit.home)
    for name in FIGURES:
        plot = page.locator(plot_of(name))
        plot.locator(".main-svg").first.wait_for()
        frame = plot.bounding_box()
        texts = plot.locator("svg text:visible").evaluate_all(
            "all => all.map(t => [t.textContent, t.getBoundingClientRect().toJSON()])"
        )
        around = plot.evaluate("plot => plot.getBoundingClientRect().toJSON()")
        shown = [(told, box) for told, box in texts if told and box["width"]]
        assert frame is not None
        assert len(shown) > 8, name
        for told, box in shown:
            assert box["left"] >= around["left"] - 1, (name, told)
            assert box["right"] <= around["right"] + 1, (name, told)
            assert box["bottom"] <= around["bottom"] + 1, (name, told)
        for place, (told, box) in enumerate(shown):
            for other, there in shown[place + 1 :]:
                assert not overlapping(box, there), (name, told, other)


def overlapping(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two boxes share more than a rim of two pixels."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return bool(across > 2 and down > 2)


def test_the_note_is_read_as_words_a_table_and_a_command(visit: Visit, album: Path) -> None:
    page = visit.page
    page.goto(f"{visit.home}/note")
    page.get_by_text("mix epochs").first.wait_for()
    page.get_by_role("cell", name=re.compile(r"trial \d+, chosen")).wait_for()
    command = page.get_by_text("effllava_optuna.study").first
    command.wait_for()
    assert " export " in page.inner_text("body")
    visit.keep("note", album)


def test_the_page_of_a_finalist_shows_its_policy(visit: Visit, smoke: Ran, album: Path) -> None:
    page, chosen = visit.page, smoke.document()["chosen"]["trial"]
    page.goto(f"{visit.home}/trials?numbers={chosen}")
    page.get_by_role("heading", name=f"Trial {chosen} ").wait_for()
    picture = page.locator("img[alt='policy.png']")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector(\"img[alt='policy.png']\").naturalWidth")
    assert picture.evaluate("image => image.naturalWidth") == 960
    page.get_by_text("policy.json").first.wait_for()
    assert inked(picture.screenshot()) > 8
    visit.keep("trial", album)


def test_the_control_study_opens(visit: Visit, album: Path) -> None:
    page = visit.page
    page.goto(visit.home.rsplit("/studies", 1)[0])
    page.get_by_text("smoke/projector").first.click()
    page.locator("#plot-history .scatterlayer .point").first.wait_for()
    page.wait_for_load_state("networkidle")
    visit.keep("control", album)
    page.goto(f"{page.url.split('?')[0].rstrip('/')}/note")
    told = page.get_by_text("One trial is one attempt").first
    told.wait_for()
    assert told.is_visible()


def test_the_picture_in_the_readme_can_be_made_anew(
    chromium: Browser, pytestconfig: pytest.Config
) -> None:
    url = os.environ.get("EFFLLAVA_DASHBOARD")
    if not pytestconfig.getoption("--write-tables") or url is None:
        assert PICTURE.stat().st_size < 300_000
        with Image.open(PICTURE) as picture:
            assert picture.size[0] >= 1200
        return
    with served("--storage", url, "--study-name", Path(url).stem) as address:
        page = chromium.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(address)
        for name in FIGURES:
            page.locator(f"{plot_of(name)} .main-svg").first.wait_for()
        page.wait_for_load_state("networkidle")
        boxes = [page.locator(plot_of(name)).bounding_box() for name in FIGURES]
        known = [box for box in boxes if box is not None]
        top, left = min(box["y"] for box in known), min(box["x"] for box in known)
        whole = page.screenshot(
            full_page=True,
            clip={
                "x": left - 8,
                "y": top - 8,
                "width": max(box["x"] + box["width"] for box in known) - left + 16,
                "height": max(box["y"] + box["height"] for box in known) - top + 16,
            },
        )
        page.close()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(whole)) as picture:
        picture.convert("RGB").save(PICTURE, optimize=True)
