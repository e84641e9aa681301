"""Run a policy without changing a weight: the output of removed units is replaced by zeros.

Masking is slow but easy to verify: it is the reference for narrowing and slicing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.surgery.apply.arrangement import is_arranged, ranked_units
from effllava_optuna.surgery.apply.reduced_model import with_tokens_of
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from effllava_optuna.policy import Policy, Ranking
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@contextmanager
def masked(loaded: LoadedModel, policy: Policy, ranking: Ranking) -> Iterator[LoadedModel]:
    """Mask the units that ``policy`` removes, with hooks that are removed on exit.

    Args:
        loaded: The model.
        policy: Number of units kept at each component.
        ranking: Order of the units; the first are kept.

    Raises:
        PolicyError: The policy belongs to another structure.
        ModelError: The ranking belongs to another structure.
    """
    policy.check(loaded.structure)
    hooks = []
    with loaded.lock, with_tokens_of(loaded, policy) as network:
        in_order = is_arranged(loaded, ranking)
        kept = policy.active_widths
        for handle in loaded.handles:
            width, output = handle.component.width, handle.linear(handle.output)
            units = torch.arange(width) if in_order else ranked_units(ranking, handle)
            kept_units = units[: kept[handle.component.id]]
            mask = torch.zeros(width * handle.columns, dtype=torch.bool)
            mask[element_indices(kept_units, handle.columns)] = True
            mask = mask.to(output.weight.device)

            def zero_removed(
                _: nn.Module, inputs: tuple[torch.Tensor], mask: torch.Tensor = mask
            ) -> torch.Tensor:
                return inputs[0].masked_fill(~mask, 0)

            hooks.append(output.register_forward_pre_hook(zero_removed))
        hooks += [
            block.module.register_forward_hook(_return_input, with_kwargs=True)
            for block in loaded.blocks
            if not kept[block.component.id]
        ]
        try:
            yield network
        finally:
            for hook in hooks:
                hook.remove()


def _return_input(_: nn.Module, inputs: Any, named: Mapping[str, Any], output: Any) -> Any:
    """Replace the hidden states that a block computed by those that it received."""
    hidden_states = inputs[0] if inputs else named["hidden_states"]
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states
