"""When an epoch opens, and what the sampler may propose in it.

The schedule is a function of what is stored, never of how often something was called: an epoch
opens when all slots of the one before are finished, whichever process notices it first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from effllava_optuna.samplers import epoch_finished
from effllava_optuna.search.budget import budget_of
from effllava_optuna.search.epochs.epoch_view import EpochView
from effllava_optuna.search.epochs.projector_round import train_next_epoch
from effllava_optuna.search.epochs.seeding import CurveProgramme, allocation_of
from effllava_optuna.storage.names import OVER_BUDGET
from effllava_optuna.storage.trial_records import effective_records

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.policy import CostModel, Policy
    from effllava_optuna.search.epochs.epoch_registry import EpochRegistry
    from effllava_optuna.search.evaluator import Evaluator


class SearchOver(Exception):
    """All slots of the last epoch are finished."""


class EpochSchedule:
    """Opens the epochs of a study, and describes them to the sampler.

    Args:
        study: The study.
        evaluator: Trains the projector and measures policies.
        epochs: The published epochs.
        report_stage: Called with the current stage and its finished share.
        endless: Whether the last epoch goes on for as long as trials are asked for, as with
            ``n_trials`` of ``study.optimize``. If False, `view` raises `SearchOver` at the end.
    """

    def __init__(
        self,
        study: Study,
        evaluator: Evaluator,
        epochs: EpochRegistry,
        report_stage: StageCallback,
        *,
        endless: bool,
    ) -> None:
        self.study = study
        self.evaluator = evaluator
        self.epochs = epochs
        self.report_stage = report_stage
        self.endless = endless
        self._views: dict[int, EpochView] = {}

    @property
    def finished(self) -> bool:
        """Return whether all slots of the last epoch are finished."""
        last = self.evaluator.config.search.epochs - 1
        return self.epochs.latest >= last and self.is_finished(last)

    def is_finished(self, epoch: int) -> bool:
        """Return whether all slots of an epoch are finished."""
        search = self.evaluator.config.search
        return epoch_finished(
            self.study.get_trials(deepcopy=False),
            epoch,
            population_size=search.population,
            generations=search.generations,
        )

    def view(self) -> EpochView:
        """Return the current epoch for the sampler; open the next one first if it is due.

        Raises:
            SearchOver: All slots of the last epoch are finished, and the search is not endless.
        """
        self.advance()
        if not self.endless and self.finished:
            raise SearchOver
        return self.view_of(self.epochs.latest)

    def view_of(self, number: int) -> EpochView:
        """Return a published epoch for the sampler."""
        if number not in self._views:
            epoch, config = self.epochs.epoch(number), self.evaluator.config
            calibration, factor = self.evaluator.calibration, epoch.latency_factor
            costs = budget_of(config, calibration, factor)
            allocation = allocation_of(epoch, costs, config.search)
            self._views[number] = EpochView(
                space=epoch.space,
                cost_model=costs,
                seeds=epoch.seeds,
                allocation=allocation,
                programme=CurveProgramme(epoch.space, costs, calibration, allocation),
                weight_state=epoch.weight_state.digest,
                predict_latency=partial(calibration.latency.predict, factor=factor),
                describe_policy=partial(self.describe, costs=costs),
            )
        return self._views[number]

    def describe(self, policy: Policy, costs: CostModel) -> dict[str, Any]:
        """Return the user attributes of a policy that are known before it is measured."""
        has_term = self.evaluator.inputs.functions.term is not None
        excess = costs.explain_excess(policy)
        return {
            **({"term": round(self.evaluator.term(policy), 6)} if has_term else {}),
            "widths": list(policy.widths),
            "keep_ratio": round(policy.keep_ratio, 6),
            "risk": round(self.evaluator.risk(policy), 6),
            **({} if excess is None else {OVER_BUDGET: excess}),
        }

    def advance(self) -> None:
        """Open the next epoch if all slots of this one are finished and it is not the last."""
        number = self.epochs.latest
        if number + 1 >= self.evaluator.config.search.epochs or not self.is_finished(number):
            return
        with self.evaluator.loaded.lock:
            self.epochs.publish(
                number + 1,
                lambda: train_next_epoch(
                    self.evaluator,
                    self.epochs,
                    number,
                    effective_records(self.study),
                    self.report_stage,
                ),
            )
