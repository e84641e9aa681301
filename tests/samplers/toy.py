"""A small space, its objective and its storage, for tests and for the processes they start."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection

from effllava_optuna.samplers import (
    Allocation,
    EpochNSGAIISampler,
    Seed,
    duplicate_of,
    effective_trials,
)
from effllava_optuna.storage.connection import open_storage

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)


@dataclass(frozen=True)
class ToySpace:
    levels: Mapping[str, Sequence[int]]
    epoch: int = 0
    budget: float | None = None
    seeds: Sequence[Seed] = ()
    allocation: Allocation | None = None
    stamp: Mapping[str, Any] = field(default_factory=lambda: {"space": "toy"})

    @property
    def distributions(self) -> dict[str, IntDistribution]:
        return {name: IntDistribution(1, levels[-1]) for name, levels in self.levels.items()}

    @property
    def costs(self) -> dict[str, list[float]]:
        return {name: [float(width) for width in levels] for name, levels in self.levels.items()}

    def known_values(self, params: Mapping[str, int]) -> tuple[float | None, ...]:
        return None, float(sum(params.values()))

    def is_comparable(self, trial: optuna.trial.FrozenTrial) -> bool:
        return bool(trial.user_attrs["space"] == self.stamp["space"])

    def describe(self, params: Mapping[str, int]) -> dict[str, Any]:
        return {"size": sum(params.values())}


def toy_space(genes: int = 4, **fields: Any) -> ToySpace:
    return ToySpace({f"g{i}": (1, 2, 4, 6, 8, 12, 16) for i in range(genes)}, **fields)


def sampler_of(space: ToySpace, **options: Any) -> EpochNSGAIISampler:
    return EpochNSGAIISampler(lambda study: space, **{"population_size": 6, **options})


def measure(params: Mapping[str, int]) -> tuple[float, float]:
    """Compute quality (up, saturating, later genes and neighbours help) and size (down)."""
    widths = [params[name] for name in sorted(params)]
    gains = [(i + 1) * width / (width + 4) for i, width in enumerate(widths)]
    pairs = itertools.pairwise(gains)
    return sum(gains) + sum(min(pair) for pair in pairs), float(sum(widths))


def suggest(trial: optuna.Trial, space: ToySpace) -> dict[str, int]:
    return {
        name: trial.suggest_int(name, distribution.low, distribution.high)
        for name, distribution in space.distributions.items()
    }


def objective_of(space: ToySpace) -> Any:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = suggest(trial, space)
        duplicate = duplicate_of(trial.study, trial.number)
        if duplicate is not None:
            raise RuntimeError(f"duplicate of {duplicate}")
        return measure(params)

    return objective


def digest(study: optuna.Study) -> str:
    """Digest slot, kind, parameters and values of every slot's effective trial."""
    rows = [
        [str(slot), trial.user_attrs["kind"], dict(sorted(trial.params.items())), trial.values]
        for slot, trial in effective_trials(study.get_trials(deepcopy=False)).items()
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def open_study(url: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(
        storage=open_storage(url, create=True),
        study_name="toy",
        directions=DIRECTIONS,
        sampler=sampler,
        load_if_exists=True,
    )
