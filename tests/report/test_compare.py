"""Several studies beside each other."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from effllava_optuna.report import document
from effllava_optuna.report.compare import compare, comparison, comparison_page
from tests.report.made import BUNDLE, SPEC, facts, finished

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy


def study(anatomy: Anatomy, right: int, **told: Any) -> dict[str, Any]:
    """A finished study whose choice is right on so many of forty."""
    hits = {
        "dense": [1] * 40, "uniform2": [1] * 10 + [0] * 30,
        "4": [1] * right + [0] * (40 - right),
    }  # fmt: skip
    spec = {table: dict(keys) for table, keys in SPEC.items()}
    for key, value in told.items():
        table, _, leaf = key.partition("_")
        spec[table][leaf] = value
    return document(finished(anatomy, hits, spec=spec, name=spec["study"]["name"]))


def told(found: dict[str, Any]) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(comparison(found))
    return console.export_text()


def test_seeds_of_one_study_are_a_group(anatomy: Anatomy) -> None:
    found = compare([study(anatomy, n, study_seed=n, study_name=f"s{n}") for n in (20, 24, 28)])
    assert found["differ"] == ["study.seed"]
    (group,) = found["groups"]
    assert group["accuracy_test"] == pytest.approx(0.6)
    assert group["accuracy_test_sd"] == pytest.approx(0.1)
    assert found["against_first"] == []
    assert "Group A: 3 studies, chosen on test 0.600 (sd 0.100)" in told(found)
    assert [line["seed"] for line in found["studies"]] == [20, 24, 28]


def test_groups_are_compared_on_the_seeds_that_both_have(anatomy: Anatomy) -> None:
    mine = [study(anatomy, 20 + n, study_seed=n) for n in range(3)]
    theirs = [study(anatomy, 24 + n, study_seed=n, search_sampler="tpe") for n in range(4)]
    theirs[0] = study(anatomy, 22, study_seed=0, search_sampler="tpe")
    found = compare([*mine, *theirs])
    assert found["differ"] == ["search.sampler", "study.seed"]
    (pair,) = found["against_first"]
    assert [group["told"] for group in found["groups"]] == [
        {"search.sampler": "nsga2"}, {"search.sampler": "tpe"},
    ]  # fmt: skip
    assert pair["seeds"] == 3
    # differences .05, .1, .1; t(2, .975) = 4.303
    assert pair["difference"] == pytest.approx(0.25 / 3, abs=1e-5)
    half = 4.30265 * 0.0288675 / 3**0.5
    assert pair["interval"] == pytest.approx([0.25 / 3 - half, 0.25 / 3 + half], abs=1e-5)
    assert "B against A: +0.083 [" in told(found)
    assert "paired by 3 seeds" in told(found)
    assert re.search(r"search.sampler +nsga2 +tpe", told(found))


def test_one_seed_says_little_and_none_says_nothing(anatomy: Anatomy) -> None:
    one = study(anatomy, 20)
    assert "says little" in told(compare([one, study(anatomy, 24, quality_eta=0.0)]))
    other = study(anatomy, 24, quality_eta=0.0, study_seed=1)
    assert "they share no seed" in told(compare([one, other]))


def test_a_study_under_way_has_a_line(anatomy: Anatomy) -> None:
    begun = document(facts(anatomy, bundle=BUNDLE, spec=SPEC))
    found = compare([study(anatomy, 20), begun])
    assert found["studies"][1]["chosen"] is None
    assert "0.500" in told(found)


def test_the_page_has_a_line_a_study(anatomy: Anatomy) -> None:
    documents = [study(anatomy, n, study_name=f"<{n}>", study_seed=n) for n in (20, 24)]
    text = comparison_page(compare(documents), documents)
    assert "They differ in: study.seed." in text
    assert text.count("&lt;20&gt;") == 1
    assert "Finalists on test" in text
