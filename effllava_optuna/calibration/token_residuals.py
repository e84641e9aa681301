"""What reading fewer image tokens costs the dense model, in the measure of the other residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
    """
    choice = loaded.parts.tokens
    if choice is None:
        return {}
    goals = [CalibrationBatch(e.seen.inputs, e.batch.targets, e.batch.answers) for e in batches]
    with loaded.lock:
        whole = [answer_logits(loaded, encoded.seen) for encoded in batches]
        samples = sum(len(encoded.batch) for encoded in batches)
        residuals, most = {IMAGE_TOKENS.width: 0.0}, 0.0
        for width, ratio in reversed([*zip(choice.widths, choice.ratios, strict=False)]):
            with reduced_tokens(loaded, ratio, selection=choice.selection) as reduced:
                change = sum(
                    goal.margin_change(before, answer_logits(reduced, encoded.seen))
                    for goal, before, encoded in zip(goals, whole, batches, strict=True)
                )
            most = residuals[width] = max(most, change / samples)
    return {IMAGE_TOKENS.id: residuals}
