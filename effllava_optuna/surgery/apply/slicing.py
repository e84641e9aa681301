"""Create a smaller model of its own from a policy."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from effllava_optuna.surgery.apply.narrowing import narrowed
from effllava_optuna.surgery.structure.loaded_model import LoadedModel, PruningRecord
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE, UnprunablePart
from effllava_optuna.surgery.structure.unread_blocks import remove_unread_blocks

if TYPE_CHECKING:
    from collections.abc import Collection

    from effllava_optuna.policy import Policy, Ranking
    from effllava_optuna.surgery.apply.compensation_table import CompensationTable


def sliced(
    loaded: LoadedModel,
    policy: Policy,
    ranking: Ranking,
    compensation: CompensationTable | None = None,
) -> LoadedModel:
    """Create the smaller model of ``policy``; ``loaded`` does not change.

    Blocks of a vision tower whose output nothing reads (the last one of LLaVA) are omitted.

    Args:
        loaded: The model.
        policy: Number of units kept at each component.
        ranking: Order of the units; the first are kept.
        compensation: As for `narrowed`.

    Returns:
        A model with memory of its own, whose structure has the kept widths.

    Raises:
        PolicyError: The policy belongs to another structure.
        ModelError: As for `narrowed`.

    Example:
        >>> from effllava_optuna import Policy, load, rank_units
        >>> loaded = load("digits-vlm", device="cpu")
        >>> half = Policy.uniform(loaded.structure, ratio=0.5)
        >>> small = sliced(loaded, half, rank_units(loaded))
        >>> tuple(component.width for component in small.structure.components[:2])
        (2, 192)
    """
    with narrowed(loaded, policy, ranking, compensation) as network:
        # Views share the memory of the dense weights: the slice needs copies of their content.
        memo: dict[int, Any] = {}
        for parameter in network.model.parameters():
            weight = parameter.detach().clone().contiguous()
            memo[id(parameter)] = nn.Parameter(weight, requires_grad=False)
        model = copy.deepcopy(network.model, memo)
    remove_unread_blocks(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    small = LoadedModel.of(
        model, network.processor, loaded.source, towers=loaded.towers, depth=loaded.depth
    )
    widths = policy.active_widths
    record = PruningRecord(
        base_model=loaded.source,
        structure=policy.structure.digest,
        importance=ranking.method,
        kept={
            component.id: (widths[component.id], component.width)
            for component in loaded.structure.components
        },
    )
    removed = [b.component.layer for b in loaded.blocks if not widths[b.component.id]]
    unprunable = _renumbered(loaded.unprunable, removed)
    ids = {component.id for component in small.structure.components}
    parts = small.parts.excluding([part for part in unprunable if part.id in ids])
    return replace(
        small,
        parts=parts,
        pruning_record=record,
        visual_tokens=network.visual_tokens,
        stored_dtype=loaded.stored_dtype,
    )


def _renumbered(
    parts: Collection[UnprunablePart], removed: Collection[int]
) -> list[UnprunablePart]:
    """Renumber the blocks of ``parts`` after the decoder blocks ``removed`` are gone."""
    renumbered = []
    for part in parts:
        tower, _, block_and_kind = part.id.partition(".")
        number, _, kind = block_and_kind.partition(".")
        layer = int(number)
        if tower == LANGUAGE:
            if layer in removed:
                continue
            layer -= sum(block < layer for block in removed)
        renumbered.append(UnprunablePart(f"{tower}.{layer:02d}.{kind}", part.reason))
    return renumbered
