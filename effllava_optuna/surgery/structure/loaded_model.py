"""A loaded model with its processor and its prunable parts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.checkpoint_format import public_name
from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.structure.context_length import context_length
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE, PrunableParts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, ModelStructure, Ranking
    from effllava_optuna.surgery.structure.component_handle import BlockHandle, ComponentHandle
    from effllava_optuna.surgery.structure.prunable_parts import UnprunablePart
    from effllava_optuna.surgery.visual_tokens.token_reduction import TokenChoice, TokenReduction


@dataclass(frozen=True, slots=True)
class PruningRecord:
    """How a pruned model was made.

    Attributes:
        base_model: Path or hub id of the dense model.
        structure: Digest of the structure of the dense model.
        importance: Criterion by which its units were ranked.
        kept: By component, the number of units kept and the dense width.
    """

    base_model: str
    structure: str
    importance: str
    kept: Mapping[ComponentId, tuple[int, int]]


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model with its processor and its prunable parts.

    Attributes:
        model: A transformers model in evaluation mode, its parameters frozen.
        processor: Creates the inputs of the model.
        parts: The prunable parts of the selected towers.
        source: Name of the model in messages: the path or hub id that it was loaded from.
        towers: The towers whose components are in the structure.
        depth: Whether whole blocks of the decoder are in the structure.
        ranking: The ranking into which the units are permuted; None: their original order.
        pruning_record: How the model was pruned; None: it was not.
        visual_tokens: How its image tokens are reduced; None: they are not.
        stored_dtype: Dtype in which exports are written; None: that of the model.
        lock: Held while the model is narrowed or its projector is trained.
    """

    model: Any
    processor: Any
    parts: PrunableParts
    source: str
    towers: tuple[str, ...] = (LANGUAGE,)
    depth: bool = False
    ranking: Ranking | None = None
    pruning_record: PruningRecord | None = None
    visual_tokens: TokenReduction | None = None
    stored_dtype: torch.dtype | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    @cached_property
    def structure(self) -> ModelStructure:
        """Return the components."""
        return self.parts.structure

    @property
    def handles(self) -> tuple[ComponentHandle, ...]:
        """Return the handles of the attention and MLP components, in forward order."""
        return self.parts.handles

    @property
    def blocks(self) -> tuple[BlockHandle, ...]:
        """Return the blocks that can be removed."""
        return self.parts.blocks

    @property
    def unprunable(self) -> tuple[UnprunablePart, ...]:
        """Return the parts of the selected towers that cannot be pruned, with the reasons."""
        return self.parts.unprunable

    @property
    def device(self) -> torch.device:
        """Return the device of the input embeddings."""
        device = self.model.get_input_embeddings().weight.device
        if not isinstance(device, torch.device):
            raise ModelError(
                f"The input embeddings of {self.source} are on device {device!r}.",
                hint="Load the whole model into memory.",
            )
        return device

    @property
    def export_dtype(self) -> torch.dtype:
        """Return the dtype in which exports are written."""
        dtype: torch.dtype = self.stored_dtype or self.model.dtype
        return dtype

    @property
    def base_name(self) -> str:
        """Return the name of the dense model for files that others read: without a local path."""
        record = self.pruning_record
        return public_name(self.source if record is None else record.base_model)

    @property
    def context(self) -> int | None:
        """Return the largest number of tokens of a prompt with its answer; None: any number."""
        return context_length(self.model.config)

    def with_token_choice(self, choice: TokenChoice) -> LoadedModel:
        """Return this model with its image tokens among the components of a policy."""
        return replace(self, parts=replace(self.parts, tokens=choice))

    @staticmethod
    def of(
        model: Any,
        processor: Any,
        source: str,
        *,
        towers: Sequence[str] | None = (LANGUAGE,),
        depth: bool = False,
    ) -> LoadedModel:
        """Freeze ``model`` and find its prunable parts.

        Args:
            model: A transformers model with a decoder.
            processor: Creates the inputs of the model.
            source: Name of the model in messages.
            towers: The towers to prune: ``language``, ``vision``, ``projector`` ... None: all.
            depth: Whether to offer whole blocks of the decoder, too.

        Raises:
            ModelError: The model has no prunable parts, a selected tower has none, or a parameter
                is not in memory.
        """
        offloaded = [name for name, weight in model.named_parameters() if weight.is_meta]
        if offloaded:
            raise ModelError(
                f"{source}: {offloaded[0]} is offloaded (meta device or disk).",
                hint="Load the whole model into memory.",
            )
        model.eval().requires_grad_(requires_grad=False)
        all_parts = inspect_model(model)
        if towers is None:
            towers = all_parts.towers
        return LoadedModel(
            model=model,
            processor=processor,
            parts=all_parts.select(towers, depth=depth),
            source=source,
            towers=tuple(towers),
            depth=depth,
        ).checked()

    def checked(self) -> LoadedModel:
        """Return this model if each of its towers has something to prune.

        Raises:
            ModelError: A tower has nothing to prune.
        """
        for tower in self.towers:
            if not any(handle.component.tower == tower for handle in self.handles):
                reasons = [f"{p.id}: {p.reason}" for p in self.unprunable if tower in p.id]
                raise ModelError(
                    f"{self.source} has nothing to prune in tower {tower!r}"
                    f"{f' ({reasons[0]})' if reasons else ''}.",
                    hint="`effllava-optuna inspect` lists the prunable parts.",
                )
        return self
