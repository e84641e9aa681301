"""A small space, its objective and its storage, for tests and for the processes they start."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from effllava_optuna.samplers import (
    Allocation,
    EpochNSGAIISampler,
    Programme,
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
    programme: Callable[[Sequence[FrozenTrial]], Programme | None] = lambda trials: None

    @property
    def distributions(self) -> dict[str, IntDistribution]:
        return {name: IntDistribution(1, levels[-1]) for name, levels in self.levels.items()}

    @property
    def costs(self) -> dict[str, list[float]]:
        return {name: [float(width) for width in levels] for name, levels in self.levels.items()}

    def known_values(self, params: Mapping[str, int]) -> tuple[float | None, ...]:
        return None, float(sum(params.values()))

    def is_comparable(self, trial: FrozenTrial) -> bool:
        return all(trial.user_attrs.get(name) == value for name, value in self.stamp.items())

    def describe(self, params: Mapping[str, int]) -> dict[str, Any]:
        return {"size": sum(params.values())}


def toy_space(genes: int = 4, **fields: Any) -> ToySpace:
    return ToySpace({f"g{i}": (1, 2, 4, 6, 8, 12, 16) for i in range(genes)}, **fields)


class ToyProgramme:
    """Exact dynamic programming over the gains of `measure` without its pairs, as a `Programme`.

    Args:
        genes: Number of genes of a `toy_space`; neighbours share a weight.
        budget: The largest limit.
    """

    def __init__(self, genes: int, budget: int) -> None:
        self.levels = toy_space(genes).levels
        names = [*self.levels]
        self.groups = [names[start : start + 2] for start in range(0, genes, 2)]
        self.largest = min(budget, 16 * genes)

    def __call__(self, trials: Sequence[FrozenTrial]) -> ToyProgramme:
        return self

    def solve(self, coefficients: Sequence[float], position: float) -> dict[str, int]:
        narrowest = len(self.levels)
        limit = round(self.largest - (self.largest - narrowest) * position)
        weights = [
            math.exp(coefficient)
            for names, coefficient in zip(self.groups, coefficients, strict=True)
            for _ in names
        ]
        best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by the cost so far
        for gene, (weight, levels) in enumerate(zip(weights, self.levels.values(), strict=True)):
            longer: dict[int, tuple[float, tuple[int, ...]]] = {}
            for (spent, (gain, widths)), width in itertools.product(best.items(), levels):
                state = (gain + weight * (gene + 1) * width / (width + 4), (*widths, width))
                cost = spent + width
                if cost <= limit and state > longer.get(cost, (-1.0, ())):
                    longer[cost] = state
            best = longer
        return dict(zip(self.levels, max(best.values())[1], strict=True))

    def position(self, params: Mapping[str, int]) -> float:
        saved = self.largest - sum(params.values())
        return saved / (self.largest - len(self.levels))


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
