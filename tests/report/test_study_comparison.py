"""Comparison of several studies, and of variants over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.report import study_document
from effllava_optuna.report.page import comparison_page
from effllava_optuna.report.study_comparison import compare_studies, comparison_tables
from tests.report.study_samples import CALIBRATION, CONFIG, facts, finished, text_of

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure


def study(structure: ModelStructure, n_right: int, **settings: Any) -> dict[str, Any]:
    """Return the document of a study whose choice has ``n_right`` right answers of 40."""
    hits = {
        "dense": [1] * 40, "uniform_by_kind": [1] * 10 + [0] * 30,
        "4": [1] * n_right + [0] * (40 - n_right),
    }  # fmt: skip
    config = {table: dict(keys) for table, keys in CONFIG.items()}
    for key, value in settings.items():
        table, _, name = key.partition("_")
        config[table][name] = value
    return study_document(finished(structure, hits, config=config, name=config["study"]["name"]))


def printed(comparison: dict[str, Any]) -> str:
    return text_of(*comparison_tables(comparison))


def test_studies_that_differ_in_seeds_are_one_variant(structure: ModelStructure) -> None:
    comparison = compare_studies(
        [study(structure, n, study_seed=n, study_name=f"s{n}") for n in (20, 24, 28)]
    )
    assert comparison["differing_keys"] == ["study.seed"]
    (variant,) = comparison["variants"]
    assert variant["accuracy_test"] == pytest.approx(0.6)
    assert variant["accuracy_test_sd"] == pytest.approx(0.1)
    assert comparison["differences_to_first"] == []
    assert "Variant A: 3 studies, chosen on test 0.600 (sd 0.100)" in printed(comparison)
    assert [line["seed"] for line in comparison["studies"]] == [20, 24, 28]


def test_variants_are_compared_on_the_seeds_that_both_have(structure: ModelStructure) -> None:
    first = [study(structure, 20 + n, study_seed=n) for n in range(3)]
    second = [study(structure, 24 + n, study_seed=n, search_sampler="tpe") for n in range(4)]
    second[0] = study(structure, 22, study_seed=0, search_sampler="tpe")
    comparison = compare_studies([*first, *second])
    assert comparison["differing_keys"] == ["search.sampler", "study.seed"]
    (pair,) = comparison["differences_to_first"]
    assert [variant["settings"] for variant in comparison["variants"]] == [
        {"search.sampler": "nsga2"}, {"search.sampler": "tpe"},
    ]  # fmt: skip
    assert pair["seeds"] == 3
    # differences .05, .1, .1; t(2, .975) = 4.303
    assert pair["difference"] == pytest.approx(0.25 / 3, abs=1e-5)
    half = 4.30265 * 0.0288675 / 3**0.5
    assert pair["interval"] == pytest.approx([0.25 / 3 - half, 0.25 / 3 + half], abs=1e-5)
    assert "B minus A: +0.083 [" in printed(comparison)
    assert "paired by 3 seeds" in printed(comparison)
    assert "search.sampler nsga2 tpe" in printed(comparison)


def test_one_shared_seed_gives_no_interval_and_none_no_difference(
    structure: ModelStructure,
) -> None:
    one = study(structure, 20)
    assert "from one seed only" in printed(
        compare_studies([one, study(structure, 24, quality_eta=0.0)])
    )
    other = study(structure, 24, quality_eta=0.0, study_seed=1)
    assert "no seed of which both have a finished study" in printed(compare_studies([one, other]))


def test_a_study_under_way_has_a_row(structure: ModelStructure) -> None:
    begun = study_document(facts(structure, calibration=CALIBRATION))
    comparison = compare_studies([study(structure, 20), begun])
    assert comparison["studies"][1]["chosen"] is None
    assert "0.500" in printed(comparison)


def test_the_page_has_a_row_per_study(structure: ModelStructure) -> None:
    documents = [study(structure, n, study_name=f"<{n}>", study_seed=n) for n in (20, 24)]
    text = comparison_page(compare_studies(documents), documents)
    assert "They differ in: study.seed." in text
    assert text.count("&lt;20&gt;") == 1
    assert "Finalists on test" in text


def test_studies_whose_accuracies_are_not_comparable_have_no_gap(
    structure: ModelStructure,
) -> None:
    """An agreement on the proxy, and an accuracy on test."""
    documents = [study(structure, n, study_seed=n, study_name=f"s{n}") for n in (20, 24)]
    for document in documents:
        document["chosen"]["gap"] = None
    comparison = compare_studies(documents)
    (variant,) = comparison["variants"]
    assert variant["gap"] is None
    assert variant["gap_sd"] is None
    assert "on test 0.550 (sd 0.071), measured speed-up " in printed(comparison)
