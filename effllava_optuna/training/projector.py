"""Train the vision projector for the elites of an epoch, with a cross-validated number of steps.

Vision tower and language model stay frozen. A few dozen steps memorise a few dozen samples, and
memorised samples cannot rank policies. So the number of steps is chosen by cross-validation inside
the proxy set; zero steps is a valid choice. Then one projector is trained on the whole proxy set,
for use, and one without each scoring fold, to score that fold. Every training starts from the
projector of the model as loaded.

It is known that the paper trains the projector for its best candidates between rounds of the
search. Its loss, steps and learning rate are not known: those here are inferred.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effllava_optuna.surgery import FULL_FIT, projector_state
from effllava_optuna.training.projector_trainer import (
    ProjectorScore,
    ProjectorTrainer,
    ProjectorTrainingOptions,
    TrainingBatch,
    count_samples,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import LoadedModel, WeightState

    State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ProjectorUpdate:
    """A trained projector.

    Attributes:
        projectors: Weights for use, then those to score each fold.
        steps: The chosen number of steps; 0 if ``projectors`` are those before the training.
        held_out: Scores on held-out samples, by number of steps from 0 up.
        before: Score on the training samples before the training.
        after: Score on the training samples after it; the gap to ``held_out`` is memorisation.
        seconds: Duration.
    """

    projectors: tuple[State, ...]
    steps: int
    held_out: tuple[ProjectorScore, ...]
    before: ProjectorScore
    after: ProjectorScore
    seconds: float

    @property
    def best(self) -> ProjectorScore:
        """Return the held-out score with the lowest loss; the fewest steps among equals."""
        return _best(self.held_out)


def train_projector(
    loaded: LoadedModel,
    weight_state: WeightState,
    elites: Sequence[Policy],
    batches: Sequence[TrainingBatch],
    options: ProjectorTrainingOptions,
    progress: Callable[[float], None] | None = None,
) -> ProjectorUpdate:
    """Train the projector of ``loaded`` for ``elites``, and return it; the model is unchanged.

    Each step trains on one elite, in turn, and on all samples with a picture; nothing is random.
    If fewer than two parts have pictures, nothing can be held out, and no step is taken.

    Args:
        loaded: The model with its original projector.
        weight_state: Ranking and compensation tables of the elites.
        elites: Policies whose networks the projector is trained for.
        batches: The proxy set.
        options: Steps, learning rate and loss.
        progress: Called with the finished fraction.
    """
    started = time.monotonic()
    with_images = [batch for batch in batches if batch.inputs.has_images]
    if len({batch.part for batch in with_images}) < 2:
        options = replace(options, steps=0)
    else:
        batches = with_images
    parts = sorted({batch.part for batch in batches})
    fits = range(weight_state.folds + 1)
    scores = len(parts) * (1 + -(-options.steps // options.every)) + 2  # of all elites
    total = (len(parts) + len(fits)) * options.steps + scores * len(elites)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(1.0, done / total))

    trainer = ProjectorTrainer(loaded, weight_state, elites, options, advance)
    if progress is not None:
        progress(0.0)
    with trainer.training():
        distilled = [trainer.add_dense_outputs(batch) for batch in batches]
    curves = []
    for part in parts:
        held_out = [item for item in distilled if item.source.part == part]
        others = [item for item in distilled if item.source.part != part]
        curves.append((count_samples(held_out), trainer.held_out_curve(others, held_out)))
    curve = _mean_curve(curves)
    steps = _best(curve).steps

    states: list[State] = []
    with trainer.training() as original:
        before = trainer.score(FULL_FIT, distilled, 0)
        for fit in fits:
            trainer.module.load_state_dict(dict(original))
            for _ in trainer.train(fit, [d for d in distilled if d.source.fit != fit], steps):
                pass
            states.append(projector_state(loaded))
            if fit == FULL_FIT:
                after = trainer.score(FULL_FIT, distilled, steps)
    if progress is not None:
        progress(1.0)
    seconds = round(time.monotonic() - started, 3)
    return ProjectorUpdate(
        projectors=tuple(states),
        steps=steps,
        held_out=curve,
        before=before,
        after=after,
        seconds=seconds,
    )


def _best(scores: Sequence[ProjectorScore]) -> ProjectorScore:
    return min(scores, key=lambda score: (score.loss, score.steps))


def _mean_curve(
    curves: Sequence[tuple[int, tuple[ProjectorScore, ...]]],
) -> tuple[ProjectorScore, ...]:
    """Average the curves of all parts, weighted by their numbers of samples."""
    samples = [count for count, _ in curves]
    total = sum(samples)
    return tuple(
        ProjectorScore(
            scores[0].steps,
            sum(n * score.loss for n, score in zip(samples, scores, strict=True)) / total,
            sum(n * score.accuracy for n, score in zip(samples, scores, strict=True)) / total,
        )
        for scores in zip(*(curve for _, curve in curves), strict=True)
    )
