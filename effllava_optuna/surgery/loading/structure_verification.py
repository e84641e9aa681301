"""Verify by running the model that the recognised units can be removed.

One block of each class is reduced to half its units; the outputs must equal those of the model
with the other half masked. A norm over all heads, or head arithmetic in a forward pass, causes a
difference or an error; such components are excluded, with the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from effllava_optuna.errors import ModelError, describe
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery.apply.masking import masked
from effllava_optuna.surgery.apply.narrowing import narrowed
from effllava_optuna.surgery.apply.precision import in_float32
from effllava_optuna.surgery.loading.finite_values import require_finite_logits
from effllava_optuna.surgery.structure.block_removal import find_undescribable, module_settings
from effllava_optuna.surgery.structure.component_handle import BlockHandle, ComponentHandle
from effllava_optuna.surgery.structure.prunable_parts import PrunableParts, UnprunablePart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

# As a share of the largest value: both sides add the same terms, in another order and layout. In
# half precision, this would need a tolerance that a weak coupling of the units is within.
_TOLERANCE = 1e-4
_NO_INFLUENCE = "no influence on the logits"


def verify_structure(loaded: LoadedModel, inputs: Mapping[str, Any]) -> LoadedModel:
    """Exclude the components of ``loaded`` whose units cannot be removed exactly.

    Args:
        loaded: The model; it does not change.
        inputs: Keyword arguments of the model, such as `build_example_inputs` returns.

    Raises:
        ModelError: The model cannot run, its logits are not finite, or a tower has nothing left
            to prune.
    """
    moved = {name: value.to(loaded.device) for name, value in inputs.items()}
    try:
        (logits,) = _run(loaded, moved)
        with in_float32(loaded.model):
            dense = _run(loaded, moved)
    except Exception as error:  # a model may raise anything
        raise ModelError(
            f"{loaded.source} does not run on an example: {describe(error)}.",
            hint="Check the checkpoint and the version of transformers.",
        ) from error
    require_finite_logits(loaded, logits[None], ["an example"])
    fault_by_class: dict[object, str] = {}
    unprunable = []
    handles: list[ComponentHandle | BlockHandle] = [*loaded.handles, *loaded.blocks]
    for handle in handles:
        block_class = _block_class(handle)
        fault = fault_by_class.get(block_class)
        if fault is None:
            fault = _find_fault(loaded, handle, moved, dense)
            if fault != _NO_INFLUENCE:  # a property of one place, not of its class
                fault_by_class[block_class] = fault
        if fault:
            unprunable.append(UnprunablePart(handle.component.id, fault))
    parts = loaded.parts.excluding(unprunable)
    parts = parts.excluding(find_undescribable(loaded.model, parts.blocks))
    return replace(loaded, parts=parts).checked()


def _find_fault(
    loaded: LoadedModel,
    handle: ComponentHandle | BlockHandle,
    inputs: Mapping[str, Any],
    dense: list[torch.Tensor],
) -> str:
    """Return why the units of ``handle`` cannot be removed; empty if they can."""
    component = handle.component
    if component.width == component.floor:
        return ""
    handles, blocks = ((handle,), ()) if isinstance(handle, ComponentHandle) else ((), (handle,))
    alone = replace(loaded, parts=PrunableParts(handles, blocks, ()))
    scores = np.random.default_rng(0).random(component.width)
    policy = Policy.of(alone.structure, [component.width // 2])
    for half in (scores, -scores):  # one half may consist of padding
        ranking = Ranking.from_scores(alone.structure, "random", {component.id: half})
        with masked(alone, policy, ranking), in_float32(loaded.model):
            expected = _run(loaded, inputs, handle)
        if not torch.equal(expected[0], dense[0]):
            break
    else:
        return _NO_INFLUENCE
    try:
        with narrowed(alone, policy, ranking), in_float32(loaded.model):
            outputs = _run(loaded, inputs, handle)
    except Exception as error:  # a forward pass may raise anything
        return f"a forward pass that relies on its size ({describe(error)})"
    for output, reference in zip(outputs, expected, strict=True):
        scale = float(reference.abs().max())
        difference = float((output - reference).abs().max()) / max(scale, 1e-6)
        if not difference <= _TOLERANCE:  # also if it is NaN
            return f"units that are not independent (a relative difference of {difference:.0e})"
    return ""


@torch.no_grad()
def _run(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    handle: ComponentHandle | BlockHandle | None = None,
) -> list[torch.Tensor]:
    """Return the logits, but for those of padding, and the outputs of ``handle``'s output layer.

    Some kernels of attention return NaN for padding, which has nothing to read.
    """
    outputs: list[torch.Tensor] = []

    def record(_: nn.Module, __: object, output: torch.Tensor) -> None:
        outputs.append(output.float())

    linear = handle.linear(handle.output) if isinstance(handle, ComponentHandle) else None
    hook = linear.register_forward_hook(record) if linear is not None else None
    try:
        with loaded.lock:
            logits = loaded.model(**inputs).logits.float()
    finally:
        if hook is not None:
            hook.remove()
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == logits.shape[:2]:
        logits = logits[mask.to(device=logits.device, dtype=torch.bool)]
    return [logits, *outputs]


def _block_class(handle: ComponentHandle | BlockHandle) -> object:
    """Return what modules of one class have in common: types, sizes and settings."""
    return (
        handle.component.tower,
        handle.component.kind,
        handle.component.width,
        tuple(
            (name, type(module), module_settings(module), tuple(_shapes(module)))
            for name, module in handle.module.named_modules()
        ),
    )


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [weight.shape for weight in module.parameters(recurse=False)]
