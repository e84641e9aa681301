"""One round of projector training: from the elites of an epoch to the next epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import Policy, finalists, front_of
from effllava_optuna.samplers import Seed
from effllava_optuna.search.epochs import Epoch, NextEpoch
from effllava_optuna.training import ProjectorTrainingOptions, TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.search.epochs import EpochRegistry
    from effllava_optuna.search.evaluator import Evaluator


def train_next_epoch(
    evaluator: Evaluator,
    epochs: EpochRegistry,
    number: int,
    trials: Sequence[TrialRecord],
    progress: Callable[[float], None],
) -> NextEpoch:
    """Train the projector for the elites of an epoch, and narrow the search space around them.

    Args:
        evaluator: The model and the encoded proxy set.
        epochs: The published epochs.
        number: Number of the epoch whose trials are finished.
        trials: The trials of the study.
        progress: Called with the finished share of the training.

    Raises:
        StudyError: No trial of the epoch is feasible and complete.
    """
    config = evaluator.config
    front = front_of([trial for trial in trials if trial.epoch == number])
    if not front:
        raise StudyError(
            f"Epoch {number} has no feasible trial that completed.",
            hint="Allow a larger budget: search.keep_ratio, or search.speedup.",
        )
    table, first = config.projector, epochs.epoch(0)
    elites = [Policy.of(evaluator.structure, trial.widths) for trial in front]
    update = evaluator.inputs.functions.train(
        evaluator.loaded,
        first.weight_state,
        elites[: table.elites],
        training_batches(evaluator),
        ProjectorTrainingOptions(
            steps=table.steps,
            every=table.every,
            learning_rate=table.learning_rate,
            kl=table.kl,
        ),
        progress,
    )
    space = epochs.epoch(number).space.around(
        elites, margin=config.search.margin, first=first.space
    )
    seeds = tuple(
        Seed(
            first.space.encode(Policy.of(evaluator.structure, trial.widths)),
            "reeval",
            trial.number,
        )
        for trial in finalists(front, max(1, config.search.population // 4))
    )
    weight_state = first.weight_state.with_projectors(update.projectors)
    return NextEpoch(Epoch(space, weight_state, seeds), update)


def training_batches(evaluator: Evaluator) -> list[TrainingBatch]:
    """Return the proxy set in the parts that projector training holds out in turn."""
    config = evaluator.config
    parts = config.projector.parts // config.pruning.folds
    return [
        TrainingBatch(batch=encoded.batch, inputs=encoded.seen, part=part, fit=encoded.fit)
        for part, encoded in evaluator.proxy.parts(evaluator.inputs.loaded, parts)
    ]
