"""Optuna's contract suite for samplers, run on ours with a fixed space.

Every trial that the suite asks for suggests the genes of the space beside the suite's own
parameters. So each trial has a slot, and later generations depend on earlier results. A generation
is queued in advance; its waiting trials are hidden from the suite.

Not applicable:

* The space is fixed, and genes are integers. Parameters of other kinds, conditional ones and those
  whose range changes are not genes: Optuna draws them with ``sample_independent``.
* `RelativeSamplerTestCase` calls ``sample_relative`` for trials that ``before_trial`` never saw,
  with distributions of its own. Our samplers assign genomes only to trials that have a slot.
* `SingleOnlySamplerTestCase` is for samplers that refuse two objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase
from optuna.trial import TrialState

from effllava_optuna.samplers import (
    EpochCMASampler,
    EpochNSGAIISampler,
    EpochSpdySampler,
    EpochStockSampler,
    Programme,
    ProgrammeView,
    SpaceView,
    slot_of,
)
from tests.samplers.toy import ToyProgramme, ToySpace, toy_space

if TYPE_CHECKING:
    _: SpaceView = ToySpace({})
    _view: ProgrammeView = ToySpace({})
    _programme: Programme = ToyProgramme(4, 40)

SPACE = toy_space(budget=40.0, programme=ToyProgramme(4, 40))
POPULATION_SIZE = 5  # many studies of the suite have 10 or 20 trials
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "nsga2": lambda: EpochNSGAIISampler(lambda _: SPACE, population_size=POPULATION_SIZE),
    "cma": lambda: EpochCMASampler(lambda _: SPACE, population_size=POPULATION_SIZE),
    "spdy": lambda: EpochSpdySampler(lambda _: SPACE, population_size=POPULATION_SIZE),
    "stock": lambda: EpochStockSampler(lambda _: SPACE, "tpe", population_size=POPULATION_SIZE),
}


class TestContract(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture(params=SAMPLERS)
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return SAMPLERS[request.param]

    @pytest.fixture(autouse=True)
    def _genes_are_suggested(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make ``Study.ask``, which ``Study.optimize`` calls too, suggest the genes."""
        ask = optuna.Study.ask

        def ask_for_genes(
            study: optuna.Study, fixed_distributions: dict[str, BaseDistribution] | None = None
        ) -> optuna.Trial:
            with monkeypatch.context() as patch:  # the stock sampler asks another study
                patch.setattr(optuna.Study, "ask", ask)
                trial = ask(study, {**SPACE.distributions, **(fixed_distributions or {})})
            slot = slot_of(study.get_trials(deepcopy=False)[trial.number])
            assert slot is not None
            assert (slot.generation > 0) == (trial.number >= POPULATION_SIZE)
            widths = {name: trial.params[name] for name in SPACE.levels}
            assert all(widths[name] in levels for name, levels in SPACE.levels.items())
            assert sum(widths.values()) <= 40
            return trial

        monkeypatch.setattr(optuna.Study, "ask", ask_for_genes)

    @pytest.fixture(autouse=True)
    def _waiting_trials_are_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hide the waiting trials: the suite counts trials, and reads the last one."""
        started = [state for state in TrialState if state != TrialState.WAITING]
        trials = property(lambda study: study.get_trials(states=started))
        monkeypatch.setattr(optuna.Study, "trials", trials)
