from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from effllava_optuna.config.cost_estimate import (
    H200,
    ModelSize,
    cpu,
    describe_cost,
    estimate_cost,
)
from effllava_optuna.study import load_config
from tests.study_fixtures import ROOT

QUICKSTART = ROOT / "studies" / "quickstart.toml"
SMALL = ModelSize(
    layers=6, hidden_size=128, mlp_width=384, group_ratio=0.5, other_parameters=2e5,
    prompt_tokens=28, vision_flops=7e6,
)  # fmt: skip
LARGE = ModelSize(
    layers=32, hidden_size=4096, mlp_width=11008, group_ratio=1.0, other_parameters=4e8,
    prompt_tokens=650, vision_flops=2e11,
)  # fmt: skip


def test_answers_that_are_scored_token_by_token_cost_their_logits() -> None:
    config = load_config(QUICKSTART)
    written = replace(SMALL, output_parameters=6_000_000, answer_tokens=16)
    agreeing = load_config(QUICKSTART, ("quality.measure='agreement'",))
    hours = [
        estimate_cost(each, size, cpu(2)).hours
        for each, size in ((config, SMALL), (config, written), (agreeing, written))
    ]
    assert hours == sorted(hours)
    assert hours[1] - hours[0] > 0.01
    # The logits again, and the divergence from those of the dense model.
    assert hours[2] - hours[1] > 0.5 * (hours[1] - hours[0])


def test_a_cost_is_described_with_its_hardware() -> None:
    config, small = load_config(QUICKSTART), SMALL
    cost = estimate_cost(config, small, cpu(1))
    assert describe_cost(cost, cpu(1)).endswith("minutes on a CPU with 1 thread")
    assert estimate_cost(config, small, cpu(2)).hours < cost.hours
    assert describe_cost(estimate_cost(config, small)).endswith("hours on one H200")
    assert H200.flops > cpu(64).flops
    dense_answers = load_config(
        ROOT / "studies" / "quickstart.toml", ("quality.measure='agreement'",)
    )
    assert estimate_cost(dense_answers, small, cpu(1)).hours > cost.hours


def test_tables_in_context_take_memory_and_time() -> None:
    config = load_config(QUICKSTART)
    costs = {
        epochs: estimate_cost(
            load_config(QUICKSTART, ("pruning.in_context=true", f"search.epochs={epochs}")), LARGE
        )
        for epochs in (1, 2, 3, 4)
    }
    plain = estimate_cost(config, LARGE)
    assert costs[1].table_gb == plain.table_gb  # there is no next epoch
    one_set = costs[2].table_gb - plain.table_gb
    assert costs[3].table_gb - costs[2].table_gb == pytest.approx(one_set, abs=0.1)
    assert costs[4].table_gb == costs[3].table_gb
    assert costs[3].hours > plain.hours


def test_each_share_of_the_image_tokens_has_a_table_and_residuals_of_its_own() -> None:
    shares = ((), ("pruning.visual_tokens=[0.5]",), ("pruning.visual_tokens=[0.5, 0.25]",))
    # Either the time limit or the number of checks determines how long the tables take.
    limited, counted = (
        [estimate_cost(load_config(QUICKSTART, (*table, *more)), LARGE).hours for more in shares]
        for table in (
            ("latency.checks=1", "latency.seconds=1e6", "search.speedup=1.5"),
            ("latency.checks=500", "latency.seconds=0", "search.speedup=1.5"),
        )
    )
    residuals = limited[1] - limited[0]
    assert residuals == pytest.approx(limited[2] - limited[1])
    assert residuals > 0
    half, quarter = (after - before - residuals for before, after in pairwise(counted))
    assert half == pytest.approx(2 * quarter)
    assert counted[2] > 1.2 * counted[0]
