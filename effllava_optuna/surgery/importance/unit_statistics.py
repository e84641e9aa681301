"""Statistics of units on calibration samples: their effect on the output, and input moments.

Both are taken at the inputs of the output matrices (``o_proj``, ``down_proj``), where a unit is a
group of columns. The effect is measured on the answer margin, the logit of the likeliest answer
minus that of the second likeliest. The loss ranks units worse: its gradient vanishes for samples
that the model answers with confidence.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.importance.moments import Moments, TokenWeights
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

    Inputs = Mapping[str, Any]

TOKEN_WEIGHTS = ("gradient", "all", "text")
_PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id")


@dataclass(frozen=True, slots=True)
class UnitStatistics:
    """Statistics of one component's units over a set of samples.

    Attributes:
        effect: Shape ``(width,)``, float64: sum over samples (in a vision tower: over pictures) of
            the squared first-order change of the goal if the unit is set to zero.
        moments: Moments of the inputs of the output matrix.
        squared_gradient: Sum over tokens of the squared norm of the margin's gradient at the
            inputs of the output matrix.
    """

    effect: torch.Tensor
    moments: Moments
    squared_gradient: float

    def __add__(self, other: UnitStatistics) -> UnitStatistics:
        return UnitStatistics(
            self.effect + other.effect,
            self.moments + other.moments,
            self.squared_gradient + other.squared_gradient,
        )


def collect_statistics(
    loaded: LoadedModel,
    handles: Sequence[ComponentHandle],
    batches: Sequence[CalibrationBatch],
    *,
    tokens: str = "gradient",
    goal: str = "margin",
    full: bool = True,
) -> dict[ComponentId, UnitStatistics]:
    """Collect the statistics that every ranking and compensation needs, in one sweep.

    Memory: for each handle a float64 matrix of ``columns`` squared, two with gradient weights.
    If that is too much, call it with fewer handles at a time.

    Args:
        loaded: The model.
        handles: The components; columns are counted in the model's present order.
        batches: Calibration samples.
        tokens: Token weights of the moments. ``gradient``: the squared gradient of the answer
            margin for `GRADIENT_PART` of the weight, equal weights for the other part. ``all``:
            equal weights. ``text``: equal weights for the tokens that are not placeholders of a
            picture; in a vision tower, which has no text tokens, the same as ``all``.
        goal: Scalar whose change the effect measures: ``margin``, or ``loss`` of the right answer.
        full: Compute whole matrices of second moments; if false, their diagonals.

    Raises:
        ModelError: ``tokens`` or ``goal`` is unknown, the loss has no answers, a component
            computes NaN or infinity, or no sample runs a component.
    """
    collected: dict[ComponentId, UnitStatistics] = {}
    for batch in batches:
        for handle, inputs in weighted_inputs(loaded, handles, batch, tokens=tokens, goal=goal):
            component = handle.component.id
            statistics = UnitStatistics(
                inputs.effect,
                inputs.tokens.moments(inputs.x, full=full),
                float(inputs.squared_gradients.sum()),
            )
            earlier = collected.get(component)
            collected[component] = statistics if earlier is None else earlier + statistics
    for handle in handles:
        if handle.component.id not in collected:
            raise _never_run(handle)
    return collected


@dataclass(frozen=True, slots=True)
class WeightedInputs:
    """Inputs of one component's output matrix on one batch, token by token.

    Attributes:
        x: Shape ``(tokens, columns)``, float64, 0 at padding.
        tokens: The weights of the tokens.
        effect: See `UnitStatistics`.
        squared_gradients: Shape ``(tokens,)``: squared norm of the margin's gradient at ``x``, 0
            at padding.
    """

    x: torch.Tensor
    tokens: TokenWeights
    effect: torch.Tensor
    squared_gradients: torch.Tensor


def weighted_inputs(
    loaded: LoadedModel,
    handles: Sequence[ComponentHandle],
    batch: CalibrationBatch,
    *,
    tokens: str = "gradient",
    goal: str = "margin",
) -> Iterator[tuple[ComponentHandle, WeightedInputs]]:
    """Run one batch forward and backward, and yield the inputs of each component.

    Components of a vision tower are skipped if the batch has no pictures.

    Args, Raises: as `collect_statistics`.
    """
    if tokens not in TOKEN_WEIGHTS:
        raise ModelError(
            f"{tokens!r} is not a token weight.", hint=f"Use {', '.join(TOKEN_WEIGHTS)}."
        )
    inputs = {name: value.to(loaded.device) for name, value in batch.inputs.items()}
    with loaded.lock, torch.enable_grad(), capture_inputs(handles) as captured:
        count = batch.positions
        kept = last_positions(loaded, inputs, count)
        logits = loaded.model(**inputs, logits_to_keep=kept).logits[:, -count:].float()
        if "pixel_values" not in inputs:
            handles = [
                handle
                for handle in handles
                if handle.component.id in captured or handle.component.tower == LANGUAGE
            ]
        values = [_finite_inputs(handle, captured) for handle in handles]
        # Token weights come from the margin, whatever the goal is.
        margin = batch.goal(logits, "margin")
        margin_gradients = _gradients(margin, values, retain=goal != "margin")
        goal_gradients = margin_gradients
        if goal != "margin":
            goal_gradients = _gradients(batch.goal(logits, goal), values)
    for handle, *tensors in zip(handles, values, margin_gradients, goal_gradients, strict=True):
        value, margin_gradient, goal_gradient = _by_sample(handle, tensors, inputs)
        real, text = _token_masks(loaded, handle, value, inputs)
        x = value * real[..., None].to(value.dtype)
        effect = _squared_effect(x * goal_gradient, inputs, handle.columns)
        real, text = real.flatten(), text.flatten()
        squared_gradients = margin_gradient.flatten(0, -2).double().pow(2).sum(-1) * real
        weights = {"gradient": squared_gradients, "all": real, "text": text}[tokens]
        uniform = real if tokens == "gradient" else None
        weighted = TokenWeights(weights, uniform)
        yield (
            handle,
            WeightedInputs(x.flatten(0, -2).double(), weighted, effect, squared_gradients),
        )


def last_positions(
    loaded: LoadedModel, inputs: Mapping[str, torch.Tensor], count: int
) -> int | torch.Tensor:
    """Return the argument ``logits_to_keep`` for which all blocks compute all positions.

    Blocks that share the keys of others (Gemma 4 E2B) compute no others than those of the logits
    if it is an integer.

    Args:
        loaded: The model.
        inputs: Its keyword arguments.
        count: Number of last positions whose logits are wanted.
    """
    if not getattr(loaded.model.config.get_text_config(), "num_kv_shared_layers", 0):
        return count
    tokens = inputs["input_ids"]
    return torch.arange(tokens.shape[1] - count, tokens.shape[1], device=tokens.device)


def weigh_tokens(
    loaded: LoadedModel,
    groups: Iterable[Sequence[ComponentHandle]],
    batches: Sequence[CalibrationBatch],
    tokens: str,
) -> tuple[dict[ComponentId, TokenWeights], ...]:
    """Compute the weights of the tokens in the dense model, which no context changes.

    Args:
        loaded: The dense model.
        groups: Its components; the gradients of one group at a time are in memory.
        batches: Calibration samples.
        tokens: See `collect_statistics`.

    Returns:
        For each batch, the weights by component; without those that it does not run.
    """
    weights: tuple[dict[ComponentId, TokenWeights], ...] = tuple({} for _ in batches)
    for handles in groups:
        for batch, by_component in zip(batches, weights, strict=True):
            for handle, inputs in weighted_inputs(loaded, handles, batch, tokens=tokens):
                by_component[handle.component.id] = inputs.tokens
    return weights


@contextmanager
def capture_inputs(
    handles: Sequence[ComponentHandle],
) -> Iterator[dict[ComponentId, torch.Tensor]]:
    """Capture the inputs of the output matrices during the forward passes in the context.

    Yields:
        The last inputs of each component that ran, with ``requires_grad`` if gradients are on.
    """
    captured: dict[ComponentId, torch.Tensor] = {}
    hooks = []
    for handle in handles:

        def capture(
            _: Any, inputs: tuple[torch.Tensor], component: ComponentId = handle.component.id
        ) -> None:
            if torch.is_grad_enabled() and not inputs[0].requires_grad:
                inputs[0].requires_grad_()
            captured[component] = inputs[0]

        hooks.append(handle.linear(handle.output).register_forward_pre_hook(capture))
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


def _finite_inputs(
    handle: ComponentHandle, captured: Mapping[ComponentId, torch.Tensor]
) -> torch.Tensor:
    """Return the captured inputs of a component, if it ran and they are finite."""
    value = captured.get(handle.component.id)
    if value is None:
        raise _never_run(handle)
    if not bool(torch.isfinite(value).all()):
        raise ModelError(
            f"{handle.component.id} computes NaN or infinity on the calibration samples.",
            hint="Use dtype float32 or bfloat16, and check the checkpoint.",
        )
    return value


def _never_run(handle: ComponentHandle) -> ModelError:
    return ModelError(
        f"{handle.component.id} is not run by the calibration samples.",
        hint="Use samples with pictures, as the search does.",
    )


def _gradients(
    goal: torch.Tensor, values: Sequence[torch.Tensor], *, retain: bool = False
) -> list[torch.Tensor]:
    """Compute the gradient of ``goal`` at each tensor; 0 if it does not depend on the tensor."""
    gradients = torch.autograd.grad(goal, list(values), retain_graph=retain, allow_unused=True)
    return [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(values, gradients, strict=True)
    ]


def _by_sample(
    handle: ComponentHandle, tensors: Iterable[torch.Tensor], inputs: Inputs
) -> list[torch.Tensor]:
    """Return tensors of a decoder in the shape ``(samples, tokens, columns)``.

    OPT computes its MLPs on the tokens of all samples in one row.
    """
    shape = inputs["attention_mask"].shape if handle.component.tower == LANGUAGE else None
    return [
        tensor.detach() if shape is None else tensor.detach().reshape(*shape, tensor.shape[-1])
        for tensor in tensors
    ]


def _token_masks(
    loaded: LoadedModel, handle: ComponentHandle, x: torch.Tensor, inputs: Inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two masks over tokens, 1 or 0: tokens that are not padding, and text tokens."""
    if handle.component.tower != LANGUAGE:
        ones = x.new_ones(x.shape[:-1], dtype=torch.float64)
        return ones, ones
    real = inputs["attention_mask"].to(x.device).double()
    text = real.clone()
    for name in _PLACEHOLDERS:
        token = getattr(loaded.model.config, name, None)
        if token is not None:
            text[(inputs["input_ids"] == token).to(x.device)] = 0
    return real, text


def _squared_effect(change: torch.Tensor, inputs: Inputs, columns: int) -> torch.Tensor:
    """Sum ``change`` by sample and unit, and return the sum of its squares by unit.

    Args:
        change: Input times gradient, shape ``(samples, ..., width * columns)``, or ``(tokens,
            width * columns)`` in a vision tower that packs all pictures into one sequence.
        inputs: Keyword arguments of the model.
        columns: Columns of one unit.
    """
    change = change.double()
    if change.dim() > 2:
        change = change.flatten(1, -2).sum(1)
    elif "image_grid_thw" in inputs:  # pictures of several sizes, one after the other
        sizes = inputs["image_grid_thw"].prod(-1)
        ends = (sizes.cumsum(0) * len(change) // sizes.sum()).tolist()
        starts = [0, *ends[:-1]]
        change = torch.stack([change[i:j].sum(0) for i, j in zip(starts, ends, strict=True)])
    return change.reshape(len(change), -1, columns).sum(-1).pow(2).sum(0)
