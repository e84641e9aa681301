from __future__ import annotations

from effllava_optuna.config.cost_estimate import (
    H200,
    ModelSize,
    cpu,
    describe_cost,
    estimate_cost,
)
from effllava_optuna.study import load_config
from tests.study_fixtures import ROOT


def test_a_cost_is_described_with_its_hardware() -> None:
    config = load_config(ROOT / "studies" / "quickstart.toml")
    small = ModelSize(
        layers=6, hidden_size=128, mlp_width=384, group_ratio=0.5, other_parameters=2e5,
        prompt_tokens=28, vision_flops=7e6,
    )  # fmt: skip
    cost = estimate_cost(config, small, cpu(1))
    assert describe_cost(cost, cpu(1)).endswith("minutes on a CPU with 1 thread")
    assert estimate_cost(config, small, cpu(2)).hours < cost.hours
    assert describe_cost(estimate_cost(config, small)).endswith("hours on one H200")
    assert H200.flops > cpu(64).flops
