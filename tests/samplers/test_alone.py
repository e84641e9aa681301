"""The samplers need no other part of the package: only Optuna, numpy, cmaes and psutil."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        blocked = ("torch", "transformers", "datasets", "sklearn", "pydantic", "click", "rich",
                   "plotly", "safetensors", "PIL", "optuna_dashboard")
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)
        if name.startswith("effllava_optuna.") and ".samplers" not in name:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
import optuna
from types import SimpleNamespace
from optuna.distributions import IntDistribution
from effllava_optuna.samplers import {sampler}

genes = {{name: (1, 2, 4, 8) for name in "abc"}}
space = SimpleNamespace(
    epoch=0, distributions={{name: IntDistribution(1, 8) for name in genes}}, levels=genes,
    costs={{name: (1.0, 2.0, 4.0, 8.0) for name in genes}}, budget=20.0, seeds=(),
    allocation=None, stamp={{}}, describe=lambda params: {{}},
)
study = optuna.create_study(
    directions=["maximize", "minimize"], sampler={sampler}(lambda _: space, population_size=5)
)
study.optimize(
    lambda t: (t.suggest_int("a", 1, 8) * t.suggest_int("b", 1, 8), t.suggest_int("c", 1, 8)),
    n_trials=15,
)
assert [t.user_attrs["generation"] for t in study.trials] == [0] * 5 + [1] * 5 + [2] * 5
"""


@pytest.mark.parametrize("sampler", ["EpochNSGAIISampler", "EpochCMASampler"])
def test_a_sampler_runs_without_the_rest_of_the_package(sampler: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", ALONE.format(sampler=sampler)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
