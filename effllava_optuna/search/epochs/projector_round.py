"""From the elites of an epoch to the next epoch: projector training and latency correction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import StudyError
from effllava_optuna.logging import get_logger
from effllava_optuna.objectives import fit_correction
from effllava_optuna.policy import Policy, best_and_spread, front_of
from effllava_optuna.samplers import Seed
from effllava_optuna.search.budget import attainable_factor, budget_of, speed_setting
from effllava_optuna.search.epochs.context_round import try_context
from effllava_optuna.search.epochs.epoch_registry import Epoch, NextEpoch
from effllava_optuna.search.epochs.seeding import seeds_in_context
from effllava_optuna.training import ProjectorTrainingOptions, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.search.epochs.epoch_registry import EpochRegistry
    from effllava_optuna.search.evaluator import Evaluator
    from effllava_optuna.surgery import WeightState

_logger = get_logger(__name__)


def train_next_epoch(
    evaluator: Evaluator,
    epochs: EpochRegistry,
    number: int,
    trials: Sequence[TrialRecord],
    report_stage: StageCallback,
) -> NextEpoch:
    """Train the projector for the elites of an epoch, and narrow the search space around them.

    With ``pruning.in_context``, the compensation tables are fitted around the incumbent first.
    Policies of its front are run whole, and correct the latencies that the next epoch predicts.

    Args:
        evaluator: The model and the encoded proxy set.
        epochs: The published epochs.
        number: Number of the epoch whose trials are finished.
        trials: The trials of the study.
        report_stage: Called with the current stage and its finished share.

    Raises:
        StudyError: No trial of the epoch is feasible and complete.
    """
    config = evaluator.config
    front = front_of([trial for trial in trials if trial.epoch == number])
    if not front:
        raise StudyError(
            f"Epoch {number} has no feasible trial that completed.",
            hint="Allow a larger budget: search.keep_ratio, search.speedup or search.latency_ms.",
        )
    table, first = config.projector, epochs.epoch(0)
    elites = [Policy.of(evaluator.structure, trial.widths) for trial in front]
    fitted, in_context = try_context(
        evaluator,
        first.weight_state,
        epochs.epoch(number).weight_state.compensations,
        elites[: table.elites],
        report_stage,
    )
    weight_state, update = fitted, None
    pictured = any(sample.image is not None for sample in evaluator.proxy.samples)
    if table.steps and pictured:
        update = evaluator.inputs.functions.train(
            evaluator.loaded,
            fitted,
            elites[: table.elites],
            training_batches(evaluator),
            ProjectorTrainingOptions(
                steps=table.steps,
                every=table.every,
                learning_rate=table.learning_rate,
                kl=table.kl,
            ),
            lambda share: report_stage("training the projector", share),
        )
    if update is not None and update.steps:  # else the values of earlier epochs may still count
        weight_state = weight_state.with_projectors(update.projectors)
    factor, latency_errors = _recheck_latency(
        evaluator,
        weight_state,
        [
            Policy.of(evaluator.structure, t.widths)
            for t in best_and_spread(front, config.latency.rechecks)
        ],
        epochs.epoch(number).latency_factor,
        lambda share: report_stage("timing the front", share),
    )
    space = epochs.epoch(number).space.around(
        elites, margin=config.search.margin, first=first.space
    )
    if not budget_of(config, evaluator.calibration, factor).allows(space.narrowest):
        space = epochs.epoch(number).space.around(
            [*elites, evaluator.calibration.narrowest],
            margin=config.search.margin,
            first=first.space,
        )
    again = [
        Seed(
            first.space.encode(Policy.of(evaluator.structure, trial.widths)),
            "reeval",
            trial.number,
        )
        for trial in best_and_spread(front, max(1, config.search.population // 4))
    ]
    known = {
        trial.widths
        for trial in trials
        if trial.measured and trial.weight_state == weight_state.digest
    }
    seeds, centre = seeds_in_context(space, again, known, config.search)
    epoch = Epoch(space, weight_state, seeds, centre, factor)
    accuracy = sum(trial.accuracy for trial in front) / len(front)
    return NextEpoch(epoch, accuracy, update, latency_errors, in_context)


def _recheck_latency(
    evaluator: Evaluator,
    weight_state: WeightState,
    policies: Sequence[Policy],
    former_factor: float,
    progress: Callable[[float], None],
) -> tuple[float, tuple[float, ...]]:
    """Run policies of a front whole; fit the factor of the next epoch.

    Returns:
        The factor, and the relative error of each latency under ``former_factor``.
    """
    dense = Policy.dense(evaluator.structure)
    policies = [policy for policy in policies if policy != dense]
    if not policies:
        return former_factor, ()
    calibration = evaluator.calibration
    table = calibration.latency
    networks = [(weight_state, policy) for policy in (dense, *policies)]
    measured = evaluator.time_networks(
        networks, evaluator.config.latency.recheck_seconds, progress
    )
    errors = [
        table.predict(policy, former_factor) / table.dense_total_ms * measured[0] / ms - 1
        for policy, ms in zip(policies, measured[1:], strict=True)
    ]
    fitted = fit_correction(table, policies, measured)
    factor = attainable_factor(evaluator.config, calibration, fitted)
    if factor != fitted:
        _logger.warning(
            f"{speed_setting(evaluator.config)}: by the policies that were run "
            "whole, no policy is this fast; the search continues near the narrowest one."
        )
    return factor, tuple(errors)


def training_batches(evaluator: Evaluator) -> list[TrainingBatch]:
    """Return the proxy set in the parts that projector training holds out in turn."""
    config = evaluator.config
    parts = config.projector.parts // config.pruning.folds
    return [
        TrainingBatch(batch=encoded.batch, inputs=encoded.seen, part=part, fit=encoded.fit)
        for part, encoded in evaluator.proxy.parts(evaluator.inputs.loaded, parts)
    ]
