"""The HTML page: whole, and without a network."""

from __future__ import annotations

import math
import re
import tomllib
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import IMAGE_TOKENS, ModelStructure
from effllava_optuna.report import study_document
from effllava_optuna.report.figures.study_figures import study_figures
from effllava_optuna.report.page import study_page
from effllava_optuna.report.policy_table import status_lines
from tests.report.study_samples import CALIBRATION, CONFIG, facts, finished, record

if TYPE_CHECKING:
    from effllava_optuna.report import StudyFacts

HITS = {"dense": [1] * 40, "uniform_by_kind": [1] * 20 + [0] * 20, "4": [1] * 38 + [0] * 2}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Collects headings and addresses, and checks that tags close in order."""

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


def read(study: StudyFacts, study_arguments: str = "a.toml") -> tuple[str, Reader]:
    document = study_document(study)
    text = study_page(document, study_figures(study, document), study_arguments)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.addresses == []  # the page loads nothing
    return text, reader


def test_the_page_of_a_finished_study_has_all_sections(structure: ModelStructure) -> None:
    study = finished(
        structure, HITS, manifest={"torch": "9.9", "model": "abc"},
        changes=[{"at": "today", "torch": ["9.8", "9.9"]}], failures={"out of memory": 3},
        updates=[_update()], trials=[record(structure, 4, 0.9, 25.0)],
        sensitivity={"curves": {structure.components[0].id: {1: 0.25}}, "source": "measured"},
    )  # fmt: skip
    text, reader = read(study)
    assert reader.headings == [
        "The front", "Policies", "Widths of the layers", "Sensitivity curves", "More figures",
        "Commands", "Failed trials", "Details: noise, latency, memory",
        "Details: structural risk", "Details: projector updates", "Details: provenance",
    ]  # fmt: skip
    assert "trial 4 (chosen)" in text
    assert "torch from 9.8 to 9.9" in text
    assert "export a.toml --trial 4" in text
    (update,) = re.findall(r"<tr><td>(.*?)</td><td>4</td><td>20</td>", text)
    assert update == "2"  # the projector of the second epoch
    # accuracy = quality + eta * risk, and the risk of the rows is -0.5
    assert ">0.9400<" in text
    assert ">-0.0100<" in text


def test_details_are_folded_and_the_policies_are_not(structure: ModelStructure) -> None:
    text, reader = read(finished(structure, HITS, updates=[_update()]))
    folded = re.findall(r"<details class=\"folded\"><summary><h2>(.*?)</h2>", text)
    assert folded == [title for title in reader.headings if title.startswith("Details: ")]
    assert len(folded) >= 3


def test_the_page_opens_with_what_was_chosen_and_explains_its_words(
    structure: ModelStructure,
) -> None:
    study = finished(structure, HITS)
    text, _ = read(study)
    chosen, progress, words = re.findall(r'<p class="lead">(.*?)</p>', text)
    assert [unescape(progress), unescape(chosen)] == status_lines(study_document(study))
    assert chosen.startswith("Trial 4 was chosen: ")
    assert {"policy", "trial", "proxy", "finalists", "validation", "test"} <= set(
        re.findall(r"\w+", words)
    )


def test_the_page_mentions_image_tokens_only_where_they_are_searched(
    structure: ModelStructure,
) -> None:
    with_tokens = ModelStructure((IMAGE_TOKENS, *structure.components))
    for searched, expected in ((structure, 0), (with_tokens, 1)):
        text, _ = read(finished(searched, HITS))
        *_, words = re.findall(r'<p class="lead">(.*?)</p>', text)
        assert words.count("how many image tokens") == expected


def test_a_study_that_has_just_begun_has_a_page(structure: ModelStructure) -> None:
    for study in (
        facts(None),
        facts(structure, calibration=CALIBRATION),
        facts(
            structure,
            record(structure, 0, math.nan, math.nan, state="running"),
            calibration=CALIBRATION,
        ),
        facts(structure, record(structure, 0, 0.5, 20.0), calibration=CALIBRATION),
    ):  # fmt: skip
        text, reader = read(study)
        assert "resume a.toml" in text
        assert ("The front" in reader.headings) == any(trial.measured for trial in study.trials)


def test_the_study_file_on_the_page_equals_the_config(structure: ModelStructure) -> None:
    text, _ = read(finished(structure, HITS))
    (file,) = re.findall(r"<summary>The study file</summary><pre>(.*?)</pre>", text, re.DOTALL)
    assert tomllib.loads(unescape(file)) == {
        table: {key: value for key, value in values.items() if value is not None}
        for table, values in CONFIG.items()
    }


def test_sensitivity_curves_have_a_section_of_their_own(structure: ModelStructure) -> None:
    curves = {component.id: {1: 0.25} for component in structure.components}
    sensitivity = {"curves": curves, "source": "measured"}
    text, reader = read(finished(structure, HITS, sensitivity=sensitivity))
    assert "Sensitivity curves" in reader.headings
    section = text.partition("<h2>Sensitivity curves</h2>")[2].partition("<h2>")[0]
    assert section.count('id="sensitivity"') == text.count('id="sensitivity"') == 1
    assert section.count('<div style="height:300px;') == 1  # has room for six components
    assert text.count('<div style="height:300px;') == 1
    assert "Sensitivity" not in read(finished(structure, HITS))[1].headings


def test_names_are_escaped(structure: ModelStructure) -> None:
    text, _ = read(finished(structure, HITS, name="<script>alert(1)</script>"), "<b>.toml")
    assert "<script>alert" not in text
    assert "<b>.toml" not in text
    assert "&lt;b&gt;.toml" in text


def _update() -> dict[str, Any]:
    update: dict[str, Any] = {
        "steps": 4, "seconds": 20.0, "crossfit_curve": [],
        "latency_factor": 1.0, "latency_errors": [], "in_context": None,
    }  # fmt: skip
    for name in ("proxy_accuracy", "crossfit_accuracy", "crossfit_loss"):
        update |= {f"{name}_before": 0.5, f"{name}_after": 0.75}
    return update
