"""The weights of a pruned model that a recovery trains."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import projector
from effllava_optuna.surgery.structure.inspection import language_model
from effllava_optuna.training.steps import unfrozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from effllava_optuna.surgery import LoadedModel


class Adaptation(Protocol):
    """A selection of weights to train."""

    def trainable_weights(
        self, pruned: LoadedModel, seed: int
    ) -> AbstractContextManager[list[nn.Parameter]]:
        """Return a context in which some weights of ``pruned`` can be trained.

        Their final values stay in the model; after an exception the model is unchanged.
        """


@dataclass(frozen=True, slots=True)
class ProjectorAdaptation:
    """Train the projector alone."""

    @contextmanager
    def trainable_weights(self, pruned: LoadedModel, seed: int) -> Iterator[list[nn.Parameter]]:
        """Yield the weights of the projector; ``seed`` is not used.

        Raises:
            ModelError: The model has none.
        """
        with _trainable(_projector(pruned)) as weights:
            yield weights


def _projector(pruned: LoadedModel) -> nn.Module:
    try:
        return projector(pruned.model)
    except ModelError as error:
        raise ModelError(
            error.message, hint="Train adapters of the decoder instead: --part lora."
        ) from error


@contextmanager
def _trainable(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Yield the weights of a module; after an exception they are what they were."""
    original = {name: weight.clone() for name, weight in module.state_dict().items()}
    with unfrozen(module):
        try:
            yield list(module.parameters())
        except BaseException:
            module.load_state_dict(original)
            raise


@dataclass(frozen=True, slots=True)
class LoraAdaptation:
    """Train low-rank adapters of the decoder's linear layers, and merge them (Hu et al. 2021).

    Attributes:
        rank: Rank of each adapter.
        alpha: The product of an adapter's matrices is multiplied by ``alpha / rank``.
    """

    rank: int = 8
    alpha: int = 16

    @contextmanager
    def trainable_weights(self, pruned: LoadedModel, seed: int) -> Iterator[list[nn.Parameter]]:
        """Add adapters in float32 to a decoder of any dtype, and yield their weights.

        Raises:
            ModelError: peft is not installed.
        """
        if find_spec("peft") is None:
            raise ModelError(
                "LoRA adapters need peft, which is not installed.",
                hint="Run `pip install 'effllava-optuna[recover]'`, or train the projector.",
            )
        import peft

        decoder = {id(module) for module in language_model(pruned.model).modules()}
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=[
                name
                for name, module in pruned.model.named_modules()
                if id(module) in decoder and isinstance(module, nn.Linear)
            ],
        )
        adapted = peft.LoraModel(pruned.model, config, "recovery")
        merged = False
        try:
            weights = [weight for weight in pruned.model.parameters() if weight.requires_grad]
            generator = torch.Generator().manual_seed(seed)
            for weight in weights:
                weight.data = weight.data.float()
            for name, weight in pruned.model.named_parameters():
                if "lora_A" in name:
                    normal = torch.randn(weight.shape, generator=generator)
                    weight.data.copy_(normal / weight.shape[1] ** 0.5)
            yield weights
            adapted.merge_and_unload(safe_merge=True)
            merged = True
        finally:
            if not merged:
                adapted.unload()
            pruned.model.requires_grad_(requires_grad=False)


@dataclass(frozen=True, slots=True)
class JointAdaptation:
    """Train the projector and adapters of the decoder together.

    Attributes:
        lora: The adapters.
    """

    lora: LoraAdaptation = field(default_factory=LoraAdaptation)

    @contextmanager
    def trainable_weights(self, pruned: LoadedModel, seed: int) -> Iterator[list[nn.Parameter]]:
        """Yield the weights of both.

        Raises:
            ModelError: The model has no projector, or peft is not installed.
        """
        module = _projector(pruned)
        # The adapters come first: they freeze everything else.
        with (
            self.lora.trainable_weights(pruned, seed) as adapters,
            _trainable(module) as weights,
        ):
            yield [*adapters, *weights]


if TYPE_CHECKING:
    _: tuple[Adaptation, ...] = (ProjectorAdaptation(), LoraAdaptation(), JointAdaptation())
