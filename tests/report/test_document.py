from __future__ import annotations

import io
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from effllava_optuna.report import document, entry, policies, summary
from tests.report.made import BUNDLE, facts, record, row

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy


def text(document: dict[str, Any]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary(document), policies(document))
    console.file.close()
    return console.export_text()


def test_a_study_that_has_not_begun_is_a_document_too() -> None:
    found = document(facts(None))
    assert found["dense"] is None
    assert found["front"] == []
    json.dumps(found, allow_nan=False)


def test_the_front_leaves_out_what_is_infeasible_foreign_or_beaten(anatomy: Anatomy) -> None:
    found = document(
        facts(
            anatomy,
            record(anatomy, 0, 0.5, 20.0),
            record(anatomy, 1, 0.8, 25.0),
            record(anatomy, 2, 0.7, 30.0),
            record(anatomy, 3, 0.9, 10.0, feasible=False),
            record(anatomy, 4, 0.9, 10.0, kind="foreign"),
            record(anatomy, 5, math.nan, math.nan, state="running"),
            bundle=BUNDLE,
        )
    )
    assert [row["trial"] for row in found["front"]] == [1, 0]
    assert found["front"][0]["speedup_predicted"] == 2.0
    assert found["front"][0]["accuracy_test"] is None
    assert found["trials"] == {
        "planned": 48, "complete": 5, "pruned": 0, "running": 1, "waiting": 0, "fail": 0,
    }  # fmt: skip
    assert found["hypervolume"] == [pytest.approx(0.4 * (52.5 - 20) + 0.3 * (52.5 - 25))]
    assert "The search is not over" in text(found)
    json.dumps(found, allow_nan=False)


def test_results_take_the_place_of_estimates(anatomy: Anatomy) -> None:
    dense = row(anatomy, [1], 50.0, accuracy_test=0.97, accuracy_test_interval=(0.95, 0.99))
    chosen = row(anatomy, [1, 0], 25.0, trial=7, epoch=1)
    results = {
        "dense": dense, "uniform": None, "uniform2": None, "front": [chosen], "chosen": chosen,
    }  # fmt: skip
    found = document(facts(anatomy, bundle=BUNDLE, results=results))
    assert found["chosen"]["trial"] == 7
    shown = text(found)
    assert "[0.950 0.990]" in shown
    assert "trial 7  <- chosen" in shown
    assert "accuracy 0.500 [0.000, 1.000] on test (dense 0.970 [0.950, 0.990]), 2.00x" in shown


def test_an_entry_refuses_keys_that_readers_do_not_know(anatomy: Anatomy) -> None:
    from effllava_optuna.policy import Policy

    with pytest.raises(KeyError, match="accuracy_tset"):
        entry(policy=Policy.dense(anatomy), anatomy=anatomy, accuracy_tset=1.0)


def test_a_report_says_what_latency_is_the_latency_of(anatomy: Anatomy) -> None:
    plain = text(document(facts(anatomy, bundle=BUNDLE)))
    assert "Predicted latency is off by 3.0% on random policies (mean)." in plain
    origin = {
        "batch": 8, "prompt_tokens": 640, "new_tokens": 16, "dtype": "bfloat16",
        "device": "a card", "threads": 0,
    }  # fmt: skip
    latency = {"errors": [0.02, -0.04], "launched": ["vision"], "origin": origin}
    bundle = BUNDLE | {"latency": {"error": 0.03, "spread": None, "vision_ms": 5.0} | latency}
    told = text(document(facts(anatomy, bundle=bundle)))
    assert "ms: of 8 prompts of 640 tokens, new tokens: 16, in bfloat16 on a card." in told
    assert "off by 3.0% on 2 random policies (mean). Launching kernels was timed, too: vis" in told
    assert "an earlier study's" not in told
    spec = {"latency": {"table": "tables.json"}}
    told = text(document(facts(anatomy, bundle=bundle, spec=spec)))
    assert "kept in tables.json: this one may be an earlier study's" in told
