"""The document of a study: what is measured so far, and null for the values to come."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.policy import Policy
from effllava_optuna.report import result_row, study_document
from tests.report.study_samples import CALIBRATION, facts, finished, record

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure


def test_a_study_without_trials_has_a_document() -> None:
    document = study_document(facts(None))
    assert document["dense"] is None
    assert document["front"] == []
    json.dumps(document, allow_nan=False)


def test_the_front_excludes_infeasible_foreign_and_dominated_trials(
    structure: ModelStructure,
) -> None:
    document = study_document(
        facts(
            structure,
            record(structure, 0, 0.5, 20.0),
            record(structure, 1, 0.8, 25.0),
            record(structure, 2, 0.7, 30.0),
            record(structure, 3, 0.9, 10.0, feasible=False),
            record(structure, 4, 0.9, 10.0, kind="user"),
            record(structure, 5, math.nan, math.nan, state="running"),
            calibration=CALIBRATION,
        )
    )
    assert [row["trial"] for row in document["front"]] == [1, 0]
    assert document["front"][0]["speedup_predicted"] == 2.0
    assert document["front"][0]["accuracy_test"] is None
    assert document["trials"] == {
        "planned": 48, "complete": 5, "pruned": 0, "running": 1, "waiting": 0, "fail": 0,
    }  # fmt: skip
    assert document["hypervolume"] == [pytest.approx(0.4 * (52.5 - 20) + 0.3 * (52.5 - 25))]
    json.dumps(document, allow_nan=False)


def test_results_replace_estimates(structure: ModelStructure) -> None:
    document = study_document(finished(structure, {"dense": [1, 1], "7": [1, 0]}))
    assert document["chosen"]["trial"] == 7
    assert document["dense"]["accuracy_test"] == 1.0
    assert [row["accuracy_test"] for row in document["front"]] == [0.5]


def test_a_result_row_refuses_unknown_fields(structure: ModelStructure) -> None:
    with pytest.raises(KeyError, match="no field accuracy_tset; it has trial, epoch"):
        result_row(Policy.dense(structure), accuracy_tset=1.0)
