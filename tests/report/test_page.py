"""The HTML page: whole, and without a network."""

from __future__ import annotations

import math
import re
import tomllib
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from effllava_optuna.report import document
from effllava_optuna.report.figures import figures
from effllava_optuna.report.page import page
from tests.report.made import BUNDLE, SPEC, facts, finished, record

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy
    from effllava_optuna.report import StudyFacts

HITS = {"dense": [1] * 40, "uniform2": [1] * 20 + [0] * 20, "4": [1] * 38 + [0] * 2}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Collects what a page has, and whether its tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


def read(study: StudyFacts, again: str = "a.toml") -> tuple[str, Reader]:
    found = document(study)
    text = page(found, figures(study, found), again)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.addresses == []  # nothing is fetched from anywhere
    return text, reader


def test_a_finished_study_is_told_as_a_whole(anatomy: Anatomy) -> None:
    study = finished(
        anatomy, HITS, manifest={"torch": "9.9", "model": "abc"},
        changes=[{"at": "today", "torch": ["9.8", "9.9"]}], failures={"out of memory": 3},
        updates=[_update()],
    )  # fmt: skip
    text, reader = read(study)
    assert reader.headings == [
        "Policies", "Figures", "Structural risk", "Projector updates", "Trials that failed",
        "Provenance", "Commands",
    ]  # fmt: skip
    assert "trial 4 (chosen)" in text
    assert "torch from 9.8 to 9.9" in text
    assert "export a.toml --trial 4" in text
    # accuracy = quality + eta * risk, and the risk of the made-up rows is -0.5
    assert ">0.9400<" in text
    assert ">-0.0100<" in text


def test_a_study_that_has_just_begun_has_a_page_too(anatomy: Anatomy) -> None:
    for study in (
        facts(None, spec=SPEC),
        facts(anatomy, bundle=BUNDLE, spec=SPEC),
        facts(
            anatomy, record(anatomy, 0, math.nan, math.nan, state="running"), bundle=BUNDLE,
            spec=SPEC,
        ),
        facts(anatomy, record(anatomy, 0, 0.5, 20.0), bundle=BUNDLE, spec=SPEC),
    ):  # fmt: skip
        text, _ = read(study)
        assert "resume a.toml" in text


def test_the_study_file_on_the_page_says_the_same(anatomy: Anatomy) -> None:
    text, _ = read(finished(anatomy, HITS))
    (file,) = re.findall(r"<summary>The study file</summary><pre>(.*?)</pre>", text, re.DOTALL)
    said: dict[str, Any] = tomllib.loads(unescape(file))
    told = {
        table: {k: v for k, v in keys.items() if v is not None} for table, keys in SPEC.items()
    }
    assert said == told


def test_names_are_no_markup(anatomy: Anatomy) -> None:
    text, _ = read(finished(anatomy, HITS, name="<script>alert(1)</script>"), again="<b>.toml")
    assert "<script>alert" not in text
    assert "<b>.toml" not in text
    assert "&lt;b&gt;.toml" in text


def _update() -> dict[str, Any]:
    found: dict[str, Any] = {"steps": 4, "seconds": 20.0, "crossfit_curve": []}
    for name in ("proxy_accuracy", "crossfit_accuracy", "crossfit_loss"):
        found |= {f"{name}_before": 0.5, f"{name}_after": 0.75}
    return found
