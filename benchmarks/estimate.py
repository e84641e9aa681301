"""What a study would need: ``python benchmarks/estimate.py studies/llava-1.5-7b-scienceqa.toml``.

The cost model of `effllava_optuna.study.estimate`. No checkpoint is read: the shapes of known
models are below.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from effllava_optuna.study import StudySpec, read_spec
from effllava_optuna.study.estimate import Shape, estimate
from effllava_optuna.study.estimate import told as told_of

SHAPES = {
    "llava-hf/llava-1.5-7b-hf": Shape(32, 4096, 11008, 1.0, 0.59e9, 680, 0.39e12),
    "llava-hf/llava-1.5-13b-hf": Shape(40, 5120, 13824, 1.0, 0.67e9, 680, 0.39e12),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(28, 3584, 18944, 1 / 7, 1.77e9, 500, 0.8e12),
    "HuggingFaceTB/SmolVLM-Instruct": Shape(24, 2048, 8192, 1.0, 0.63e9, 1250, 5e12),
}


def told(spec: StudySpec) -> str:
    """Say what a study needs, as its file does."""
    return told_of(estimate(spec, SHAPES[spec.model.path]))


def main() -> None:
    """Print the estimate of each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for file in parser.parse_args().files:
        print(f"{file}: {told(read_spec(file))} (a cost model, not measured)")


if __name__ == "__main__":
    main()
