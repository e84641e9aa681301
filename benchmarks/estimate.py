"""Estimate what studies need: ``python benchmarks/estimate.py FILE ...``.

Prints the cost model of `effllava_optuna.config.cost_estimate`. No checkpoint is read: the sizes
of known models are below.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from effllava_optuna.config.cost_estimate import ModelSize, describe_cost, estimate_cost
from effllava_optuna.study import load_config

SHAPES = {
    "llava-hf/llava-1.5-7b-hf": ModelSize(
        layers=32,
        hidden_size=4096,
        mlp_width=11008,
        group_ratio=1.0,
        other_parameters=0.59e9,
        prompt_tokens=680,
        vision_flops=0.39e12,
    ),
    "llava-hf/llava-1.5-13b-hf": ModelSize(
        layers=40,
        hidden_size=5120,
        mlp_width=13824,
        group_ratio=1.0,
        other_parameters=0.67e9,
        prompt_tokens=680,
        vision_flops=0.39e12,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelSize(
        layers=28,
        hidden_size=3584,
        mlp_width=18944,
        group_ratio=1 / 7,
        other_parameters=1.77e9,
        prompt_tokens=500,
        vision_flops=0.8e12,
    ),
    "HuggingFaceTB/SmolVLM-Instruct": ModelSize(
        layers=24,
        hidden_size=2048,
        mlp_width=8192,
        group_ratio=1.0,
        other_parameters=0.63e9,
        prompt_tokens=1250,
        vision_flops=5e12,
    ),
}


def main() -> None:
    """Print the estimate of each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for file in parser.parse_args().files:
        config = load_config(file)
        cost = describe_cost(estimate_cost(config, SHAPES[config.model.path]))
        print(f"{file}: {cost} (a cost model, not measured)")


if __name__ == "__main__":
    main()
