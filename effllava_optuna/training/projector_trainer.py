"""Train one projector for the networks of several policies, and score it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from effllava_optuna.surgery import (
    answer_logits,
    narrowed,
    projector,
    projector_state,
    use_projector,
)
from effllava_optuna.tasks import answer_divergence, answer_loss, score_logits
from effllava_optuna.training.steps import training_steps, unfrozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import EncodedInputs, LoadedModel, WeightState
    from effllava_optuna.tasks import Batch


@dataclass(frozen=True, slots=True)
class ProjectorTrainingOptions:
    """How the projector is trained.

    Attributes:
        steps: Largest number of steps.
        every: Steps between two evaluations on held-out samples; there is one after the last step.
        learning_rate: Learning rate of AdamW, constant.
        kl: Weight of the KL divergence to the dense model, relative to the answer loss.
    """

    steps: int = 16
    every: int = 4
    learning_rate: float = 1e-3
    kl: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A batch of proxy samples for projector training.

    Attributes:
        batch: Tokenised samples with answers.
        inputs: Their model inputs, pictures encoded up to the projector.
        part: Part of the proxy set that they belong to; parts are held out in turn.
        fit: Index of the compensation table and projector that were fitted without them.
    """

    batch: Batch
    inputs: EncodedInputs
    part: int
    fit: int


@dataclass(frozen=True, slots=True)
class ProjectorScore:
    """Scores after some steps, averaged over samples and elites.

    Attributes:
        steps: Steps taken.
        loss: Mean answer loss, in nats.
        accuracy: Fraction of right answers.
    """

    steps: int
    loss: float
    accuracy: float


class DistilledBatch(NamedTuple):
    """A batch with the log-probabilities of the dense model at its answer positions."""

    source: TrainingBatch
    dense: torch.Tensor


class ProjectorTrainer:
    """The projector of a model, trained for the networks of the elites.

    Args:
        loaded: The model with its original projector.
        weight_state: Ranking and compensation tables of the elites.
        elites: Policies whose networks the projector is trained for.
        options: Steps, learning rate and loss.
        advance: Called after each step, and after each score of an elite.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        weight_state: WeightState,
        elites: Sequence[Policy],
        options: ProjectorTrainingOptions,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.loaded = loaded
        self.weight_state = weight_state
        self.elites = elites
        self.options = options
        self.advance = advance
        self.module = projector(loaded.model)

    @contextmanager
    def training(self) -> Iterator[Mapping[str, torch.Tensor]]:
        """Make the projector trainable, with deterministic algorithms; restore it on exit.

        Yields:
            A copy of the original weights.
        """
        original = projector_state(self.loaded)
        deterministic = torch.are_deterministic_algorithms_enabled()
        with self.loaded.lock, use_projector(self.loaded, original), torch.enable_grad():
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
            try:
                with unfrozen(self.module):
                    yield original
            finally:
                torch.use_deterministic_algorithms(mode=deterministic)

    @torch.no_grad()
    def add_dense_outputs(self, batch: TrainingBatch) -> DistilledBatch:
        """Compute the dense model's outputs; call it before any training step."""
        logits = answer_logits(self.loaded, batch.inputs)
        return DistilledBatch(batch, logits.float().log_softmax(-1))

    def held_out_curve(
        self, batches: Sequence[DistilledBatch], held_out: Sequence[DistilledBatch]
    ) -> tuple[ProjectorScore, ...]:
        """Train on ``batches`` and score one held-out part, from step 0 up."""
        fit = held_out[0].source.fit
        with self.training():
            scores = [self.score(fit, held_out, 0)]
            for step in self.train(fit, batches, self.options.steps):
                scores.append(self.score(fit, held_out, step))
        return tuple(scores)

    def train(self, fit: int, batches: Sequence[DistilledBatch], steps: int) -> Iterator[int]:
        """Take ``steps`` steps, each with the next elite and all batches; see `training_steps`."""
        samples = count_samples(batches)

        def backward(step: int, scale: float) -> None:
            elite = self.elites[(step - 1) % len(self.elites)]
            with self._network(elite, fit) as network:
                for distilled in batches:
                    weight = len(distilled.source.batch) / samples
                    torch.autograd.backward(self._loss(network, distilled) * (weight * scale))
            self.advance()

        return training_steps(
            self.module.parameters(),
            backward,
            steps=steps,
            every=self.options.every,
            learning_rate=self.options.learning_rate,
            dtype=self.loaded.model.dtype,
        )

    @torch.no_grad()
    def score(self, fit: int, batches: Sequence[DistilledBatch], steps: int) -> ProjectorScore:
        """Score all elites on ``batches`` with the present projector."""
        loss, hits = 0.0, 0.0
        for elite in self.elites:
            with self._network(elite, fit) as network:
                for source, _ in batches:
                    logits = answer_logits(network, source.inputs)
                    loss += float(answer_loss(logits, source.batch).sum())
                    hits += float(score_logits(logits, source.batch).hit.sum())
            self.advance()
        answers = len(self.elites) * count_samples(batches)
        return ProjectorScore(steps, loss / answers, hits / answers)

    @contextmanager
    def _network(self, elite: Policy, fit: int) -> Iterator[LoadedModel]:
        """Narrow the model to an elite under one fit, with the present projector."""
        ranking = self.weight_state.ranking
        compensation = self.weight_state.compensations[fit]
        with narrowed(self.loaded, elite, ranking, compensation) as network:
            yield network

    def _loss(self, network: LoadedModel, distilled: DistilledBatch) -> torch.Tensor:
        batch = distilled.source.batch
        logits = answer_logits(network, distilled.source.inputs)
        divergence = answer_divergence(logits, distilled.dense, batch).mean()
        return answer_loss(logits, batch).mean() + self.options.kl * divergence


def count_samples(batches: Sequence[DistilledBatch]) -> int:
    """Count the samples of all batches."""
    return sum(len(distilled.source.batch) for distilled in batches)
