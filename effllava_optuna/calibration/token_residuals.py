"""What reading fewer image tokens costs the dense model, in the measure of the other residuals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import IMAGE_TOKENS
from effllava_optuna.surgery import CalibrationBatch, answer_logits, reduced_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.objectives import EncodedBatch
    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery import LoadedModel


@torch.inference_mode()
def token_residuals(
    loaded: LoadedModel, batches: Sequence[EncodedBatch]
) -> dict[ComponentId, dict[int, float]]:
    """Measure the mean squared change of the answer margin by the image tokens that are read.

    Args:
        loaded: The dense model.
        batches: Its proxy set.

    Returns:
        By width of the image tokens, in squared logits, as `Calibration.residuals`; non-decreasing
        as the width falls. Nothing if a policy does not decide how many are read.

    Raises:
        ModelError: Logits are not finite with a share of the image tokens.
    """
    choice = loaded.parts.tokens
    if choice is None:
        return {}
    sums = dict.fromkeys(choice.widths[:-1], 0.0)
    with loaded.lock:
        for encoded in batches:
            batch = encoded.batch
            goal = CalibrationBatch(encoded.seen.inputs, batch.targets, batch.answers)
            whole = answer_logits(loaded, encoded.seen)
            for width, ratio in zip(choice.widths, choice.ratios, strict=False):
                with reduced_tokens(loaded, ratio, selection=choice.selection) as reduced:
                    fewer = answer_logits(reduced, encoded.seen)
                sums[width] += goal.margin_change(whole, fewer)
    samples = sum(len(encoded.batch) for encoded in batches)
    residuals, most = {IMAGE_TOKENS.width: 0.0}, 0.0
    for width, total in reversed(sums.items()):
        if not math.isfinite(total):
            raise ModelError(
                f"{loaded.source} answers no finite logits with {width} % of its image tokens.",
                hint="Use another model.dtype, or leave the share out of pruning.visual_tokens.",
            )
        most = residuals[width] = max(most, total / samples)
    return {IMAGE_TOKENS.id: residuals}
