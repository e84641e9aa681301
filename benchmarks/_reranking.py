"""A search that ranks and fits all units again around the projector of each epoch.

The package keeps one ranking for a whole study. Here the model is permuted into another ranking
whenever a policy of another epoch is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from _counting import CountingEvaluator, with_evaluator

from effllava_optuna.calibration.calibration_run import calibration_batch
from effllava_optuna.objectives import risk, risk_table
from effllava_optuna.search.epochs.epoch_registry import EpochRegistry
from effllava_optuna.search.epochs.projector_round import train_next_epoch
from effllava_optuna.search.epochs.schedule import EpochSchedule
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.storage.trial_records import effective_records
from effllava_optuna.surgery import (
    FULL_FIT,
    PruningOptions,
    arranged,
    rank_and_compensate,
    use_projector,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from effllava_optuna.calibration.calibration import Calibration
    from effllava_optuna.objectives import EncodedBatch
    from effllava_optuna.policy import Policy
    from effllava_optuna.search.epochs.epoch_registry import NextEpoch
    from effllava_optuna.search.evaluator import Measurement
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import WeightState
    from effllava_optuna.tasks import Scores


@dataclass(frozen=True, slots=True)
class RankedEpoch:
    """The calibration of an epoch.

    Attributes:
        calibration: Ranking, compensation tables and risk table of the epoch.
        weight_state: The same with the projector of the model as it was loaded.
    """

    calibration: Calibration
    weight_state: WeightState


class Rankings:
    """The calibrations of all epochs, and the one that the model is arranged by.

    Args:
        session: A study before its first trial.
    """

    def __init__(self, session: SearchSession) -> None:
        self._resources = session.resources
        self._inputs = session.evaluator.inputs
        first = session.epochs.epoch(0).weight_state
        self.current = RankedEpoch(session.evaluator.calibration, first)
        self._by_digest = {first.digest: self.current}

    def arrange(self, weight_state: WeightState) -> None:
        """Permute the units of the model into the ranking of a weight state."""
        ranked = self._by_digest[weight_state.digest]
        if ranked is not self.current:
            self._resources.close()
            self._enter(ranked)

    def rank_again(
        self, projectors: Sequence[Mapping[str, torch.Tensor]], epoch: int
    ) -> WeightState:
        """Rank and fit all units around a projector; return the weight state with it.

        The projector has been trained on the whole proxy, so that the fits depend a little on the
        samples that they score. The ranking does so in every study.
        """
        self._resources.close()
        previous, config = self.current, self._inputs.config
        loaded, widths = self._inputs.loaded, previous.calibration.widths
        folds = [
            [calibration_batch(encoded.batch) for encoded in batches]
            for batches in self._inputs.proxy.folds
        ]
        options = PruningOptions(config.pruning.importance, seed=config.study.seed)
        with use_projector(loaded, projectors[FULL_FIT]):
            fitted = rank_and_compensate(loaded, folds, widths, options)
        table = risk_table(
            loaded,
            fitted.ranking,
            widths,
            form=config.quality.risk,
            compensation=fitted.compensations[FULL_FIT],
        )
        calibration = replace(
            previous.calibration,
            ranking=fitted.ranking,
            compensations=fitted.compensations,
            risk=table,
        )
        digest = f"{previous.weight_state.digest}, ranked again after epoch {epoch}"
        ranked = RankedEpoch(calibration, calibration.weight_state(digest))
        weight_state = ranked.weight_state.with_projectors(projectors)
        self._by_digest[weight_state.digest] = ranked
        self._enter(ranked)
        return weight_state

    def _enter(self, ranked: RankedEpoch) -> None:
        self._resources.enter_context(arranged(self._inputs.loaded, ranked.calibration.ranking))
        self.current = ranked


@dataclass(frozen=True)
class RerankingEvaluator(CountingEvaluator):
    """An evaluator that arranges the model by the ranking of each policy's weight state.

    Attributes:
        rankings: The calibrations of all epochs.
    """

    rankings: Rankings = field(kw_only=True)

    def risk(self, policy: Policy) -> float:
        """Return the structural-risk term of ``policy`` under the current ranking, in nats."""
        return risk(policy, self.loaded, self.rankings.current.calibration.risk)

    def measure(
        self, policy: Policy, weight_state: WeightState, latency_factor: float = 1.0
    ) -> Measurement:
        """Measure ``policy`` on the proxy set."""
        self.rankings.arrange(weight_state)
        return super().measure(policy, weight_state, latency_factor)

    def score(
        self, policy: Policy, weight_state: WeightState, batches: Sequence[EncodedBatch]
    ) -> Scores:
        """Score ``policy`` on batches of any split."""
        self.rankings.arrange(weight_state)
        return super().score(policy, weight_state, batches)


class RerankingSchedule(EpochSchedule):
    """Opens epochs before which all units are ranked and fitted again around the projector."""

    def advance(self) -> None:
        """Open the next epoch if all slots of this one are finished and it is not the last."""
        number = self.epochs.latest
        if number + 1 < self.evaluator.config.search.epochs and self.is_finished(number):
            with self.evaluator.loaded.lock:
                self.epochs.publish(number + 1, lambda: self._next_epoch(number))

    def _next_epoch(self, number: int) -> NextEpoch:
        """Train the projector under the current ranking, then rank again."""
        if not isinstance(self.evaluator, RerankingEvaluator):
            raise TypeError("This schedule needs a RerankingEvaluator.")
        rankings = self.evaluator.rankings
        first = replace(self.epochs.epoch(0), weight_state=rankings.current.weight_state)
        epochs = EpochRegistry(self.epochs.control_study, self.epochs.artifact_store, first)
        following = train_next_epoch(
            self.evaluator, epochs, number, effective_records(self.study), self.report_stage
        )
        weight_state = rankings.rank_again(following.update.projectors, number)
        return replace(following, epoch=replace(following.epoch, weight_state=weight_state))


def rank_each_epoch(session: SearchSession) -> SearchSession:
    """Return the session with a ranking of its own for each epoch."""
    parts = {part.name: getattr(session.evaluator, part.name) for part in fields(Evaluator)}
    evaluator = RerankingEvaluator(**parts, rankings=Rankings(session))
    return with_evaluator(session, evaluator, RerankingSchedule)
