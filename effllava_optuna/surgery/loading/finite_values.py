"""Refuse a dense model whose weights or answers are not finite (transformers issue 33294)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_OVERFLOW = "Float16 overflows beyond 65,504: use bfloat16 or float32 (model.dtype)."


def require_finite_weights(model: Any, source: str) -> None:
    """Check that all weights of a model are finite.

    Raises:
        ModelError: One is NaN or inf; the message names the first.
    """
    for name, weight in model.named_parameters():
        # One pass without another tensor; the sum of finite float16 can overflow in float16.
        total = weight.detach().sum(dtype=torch.promote_types(weight.dtype, torch.float32))
        if not torch.isfinite(total) and not torch.isfinite(weight).all():
            half = weight.dtype == torch.float16
            raise ModelError(
                f"{source!r} has {_kind(weight)} in its weight {name}.",
                hint=_OVERFLOW
                if half and not torch.isnan(weight).any()
                else "Use an intact checkpoint.",
            )


def require_finite_logits(
    loaded: LoadedModel, logits: torch.Tensor, places: Sequence[str]
) -> None:
    """Check that the logits of a dense model are finite.

    Args:
        loaded: The model.
        logits: Shape ``(places, ...)``.
        places: What each row answers, as in "answers NaN to {place}".

    Raises:
        ModelError: They are not; the message names the first place and counts the others.
    """
    finite = torch.isfinite(logits).flatten(1).all(1)
    if finite.all():
        return
    rows = [row for row, is_finite in enumerate(finite.tolist()) if not is_finite]
    others = f" and {len(rows) - 1} others" if len(rows) > 1 else ""
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    raise ModelError(
        f"The dense model {loaded.source!r} answers {_kind(logits[rows])} to "
        f"{places[rows[0]]}{others} in {dtype}.",
        hint=_OVERFLOW
        if loaded.model.dtype == torch.float16
        else "Check the checkpoint and the version of transformers.",
    )


def _kind(values: torch.Tensor) -> str:
    return "NaN" if torch.isnan(values).any() else "inf"
