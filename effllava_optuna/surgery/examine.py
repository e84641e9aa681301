"""Put to the test what was understood, before anything is built on it.

Of each class of block, one is cut to half its units, and the model must answer as if the other
half only kept silent. A norm over all heads, or head arithmetic in a forward pass, makes a
difference or an error; such places are refused, with what happened.
"""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from effllava_optuna.errors import ModelError, describe
from effllava_optuna.policy import Order, Policy
from effllava_optuna.surgery.depth import unsaid
from effllava_optuna.surgery.discover import Discovery
from effllava_optuna.surgery.handle import Block, Handle, Refusal
from effllava_optuna.surgery.narrow import masked, narrowed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from effllava_optuna.surgery.loaded import Loaded

# Of the largest number: the same sums in another order and memory layout.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_PLAIN = (int, float, bool, str, type(None), FunctionType)
_IDLE = "no influence on the answer"


def examined(loaded: Loaded, inputs: Mapping[str, Any]) -> Loaded:
    """Refuse the sites of ``loaded`` that cannot lose units exactly.

    Args:
        loaded: The model; it is left as it was.
        inputs: Keyword arguments of the model, such as `probe` makes.

    Raises:
        ModelError: The model cannot answer, or a tower has nothing left to cut.
    """
    moved = {name: value.to(loaded.device) for name, value in inputs.items()}
    try:
        dense = _run(loaded, moved, None)
    except Exception as error:  # whatever a model raises
        raise ModelError(
            f"{loaded.source} cannot answer a question: {describe(error)}.",
            hint="Check the checkpoint and the version of transformers.",
        ) from error
    verdicts: dict[object, str] = {}
    refused = []
    parts: list[Handle | Block] = [*loaded.handles, *loaded.blocks]
    for part in parts:
        likeness = _likeness(part)
        verdict = verdicts.get(likeness)
        if verdict is None:
            verdict = _verdict(loaded, part, moved, dense)
            if verdict != _IDLE:  # that is said of a place, not of a class
                verdicts[likeness] = verdict
        if verdict:
            refused.append(Refusal(part.site.id, verdict))
    left = loaded.parts.without(refused)
    return replace(loaded, parts=left.without(unsaid(loaded.model, left.blocks))).checked()


def _verdict(
    loaded: Loaded, part: Handle | Block, inputs: Mapping[str, Any], dense: list[torch.Tensor]
) -> str:
    """Say what is wrong with cutting ``part``; nothing: it can be cut."""
    if part.site.width == part.site.floor:
        return ""
    handles, blocks = ((part,), ()) if isinstance(part, Handle) else ((), (part,))
    alone = replace(loaded, parts=Discovery(handles, blocks, ()))
    scores = np.random.default_rng(0).random(part.site.width)
    policy = Policy.of(alone.anatomy, [part.site.width // 2])
    for half in (scores, -scores):  # all of one may be padding
        order = Order.from_scores(alone.anatomy, "random", {part.site.id: half})
        with masked(alone, policy, order):
            expected = _run(loaded, inputs, part)
        if not torch.equal(expected[0], dense[0]):
            break
    else:
        return _IDLE
    try:
        with narrowed(alone, policy, order):
            found = _run(loaded, inputs, part)
    except Exception as error:  # whatever a forward pass raises
        return f"a forward pass that relies on its size ({describe(error)})"
    tolerance = _TOLERANCE.get(loaded.model.dtype, 1e-4)
    for mine, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        difference = float((mine - theirs).abs().max()) / max(scale, 1e-6)
        if not difference <= tolerance:
            return f"units that are not independent (cutting is off by {difference:.0e})"
    return ""


@torch.no_grad()
def _run(
    loaded: Loaded, inputs: Mapping[str, Any], part: Handle | Block | None
) -> list[torch.Tensor]:
    """Give the logits, and what the module of ``part`` adds to them."""
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, __: object, output: torch.Tensor) -> None:
        caught.append(output.float())

    watched = part.linear(part.output) if isinstance(part, Handle) else None
    hook = watched.register_forward_hook(catch) if watched is not None else None
    try:
        with loaded.lock:
            logits = loaded.model(**inputs).logits.float()
    finally:
        if hook is not None:
            hook.remove()
    return [logits, *caught]


def _likeness(part: Handle | Block) -> object:
    """Give what blocks of one class have in common: types, sizes and settings."""
    return (
        part.site.tower,
        part.site.kind,
        part.site.width,
        tuple(
            (name, type(module), _settings(module), tuple(_shapes(module)))
            for name, module in part.module.named_modules()
        ),
    )


def _settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if type(value) in _PLAIN and name != "layer_idx"
    )


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [weight.shape for weight in module.parameters(recurse=False)]
