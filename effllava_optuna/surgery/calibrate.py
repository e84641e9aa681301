"""What the calibration samples tell about the units: the effect of each, and moments.

Both look at the inputs of the output matrices (``o_proj``, ``down_proj``): there a unit is some
columns. The answer margin, the logit of the likeliest answer minus that of the next, says what
matters; the plain loss says less, since its gradient vanishes where a model is sure.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.discover import LANGUAGE
from effllava_optuna.surgery.moments import Moments, Sums

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery.handle import Handle
    from effllava_optuna.surgery.loaded import Loaded

    Inputs = Mapping[str, Any]

TOKENS = ("gradient", "all", "text")
_PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id")


@dataclass(frozen=True, slots=True)
class Probe:
    """Some calibration samples.

    Attributes:
        inputs: Keyword arguments of the model, padded on the left.
        targets: Shape ``(samples, targets)``: tokens that the answer may begin with, -1 where
            a sample has fewer. None: any token.
        answers: Shape ``(samples,)``: which of ``targets`` is right, or which token where there
            are none; only the loss asks for it. Or, without targets, shape ``(samples,
            positions)``: the token that each of the last positions shall predict, -100 where
            none; then all of them count, and what is no answer does not.
    """

    inputs: Inputs
    targets: torch.Tensor | None = None
    answers: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """What some probes told about one site.

    Attributes:
        effect: Shape ``(width,)``, float64: sum over samples (in a tower: pictures) of the
            squared first-order change if the unit fell silent.
        moments: Of the inputs of the output matrix.
    """

    effect: torch.Tensor
    moments: Moments

    def __add__(self, other: Survey) -> Survey:
        return Survey(self.effect + other.effect, self.moments + other.moments)


def survey(
    loaded: Loaded,
    handles: Sequence[Handle],
    probes: Sequence[Probe],
    *,
    tokens: str = "gradient",
    goal: str = "margin",
    full: bool = True,
) -> dict[SiteId, Survey]:
    """Collect in one sweep what every order and refit asks of ``probes``.

    Memory: a matrix of ``columns`` squared in float64 for each of ``handles``, two where tokens
    are weighted by gradient; call it with few sites at a time where that is much.

    Args:
        loaded: The model.
        handles: The sites; their columns are taken as they are now.
        probes: Calibration samples.
        tokens: What tokens weigh in the moments. ``gradient``: by the squared gradient of the
            answer margin, `GRADIENT_SHARE` of it. ``all``: the same. ``text``: only those that
            stand for no picture; in a vision tower there are none, and all weigh the same.
        goal: Whose change the effect is: ``margin``, or ``loss`` of the right answer.
        full: Whole matrices of second moments; if not, their diagonals.

    Raises:
        ModelError: ``tokens`` or ``goal`` is unknown, the loss has no answers, a site computes
            what is not finite, or is never run.
    """
    found: dict[SiteId, Survey] = {}
    for probe in probes:
        for handle, seen in observe(loaded, handles, probe, tokens=tokens, goal=goal):
            mine = Survey(seen.effect, seen.moments(seen.x, full=full))
            old = found.get(handle.site.id)
            found[handle.site.id] = mine if old is None else old + mine
    for handle in handles:
        if handle.site.id not in found:
            raise _silent(handle)
    return found


@dataclass(frozen=True, slots=True)
class Observed:
    """What one probe told about one site, token by token.

    Attributes:
        x: Shape ``(tokens, columns)``, float64, 0 where there is padding.
        focus: Shape ``(tokens,)``: what sets tokens apart, see `Moments`.
        rest: Shape ``(tokens,)``: 1, or 0 where there is padding; None: there is no rest.
        effect: See `Survey`.
    """

    x: torch.Tensor
    focus: torch.Tensor
    rest: torch.Tensor | None
    effect: torch.Tensor

    def moments(
        self, left: torch.Tensor, right: torch.Tensor | None = None, *, full: bool = True
    ) -> Moments:
        """Give the moments of ``left``, or of ``left`` with ``right``, under these weights."""
        rest = None if self.rest is None else Sums.of(left, self.rest, right, full=full)
        return Moments(Sums.of(left, self.focus, right, full=full), rest)


def observe(
    loaded: Loaded,
    handles: Sequence[Handle],
    probe: Probe,
    *,
    tokens: str = "gradient",
    goal: str = "margin",
) -> Iterator[tuple[Handle, Observed]]:
    """Run one probe forward and backward; give what each of ``handles`` saw, one by one.

    Where a probe has no pictures, nothing comes of a vision tower.

    Args, raises: those of `survey`.
    """
    if tokens not in TOKENS:
        raise ModelError(f"There is no token weight {tokens!r}.", hint=f"Use {', '.join(TOKENS)}.")
    inputs = {name: value.to(loaded.device) for name, value in probe.inputs.items()}
    caught: dict[SiteId, torch.Tensor] = {}
    with loaded.lock, torch.enable_grad(), watching(handles, caught):
        positions = _positions(probe)
        logits = loaded.model(**inputs, logits_to_keep=positions).logits[:, -positions:].float()
        blind = "pixel_values" not in inputs
        handles = [
            handle for handle in handles if not blind or handle.site.id in caught or
            handle.site.tower == LANGUAGE
        ]  # fmt: skip
        at = [caught[site] for site in _checked(handles, caught)]
        # Token weights always come from the margin.
        margins = _gradients(_margin(logits, probe), at, again=goal != "margin")
        changes = margins if goal == "margin" else _gradients(_goal(logits, probe, goal), at)
    for handle, value, margin, change in zip(handles, at, margins, changes, strict=True):
        real, text = _masks(loaded, handle, value, inputs)
        x = value.detach() * real[..., None].to(value.dtype)
        effect = _effect(x * change, inputs, handle.columns)
        real, text = real.flatten(), text.flatten()
        if tokens == "gradient":
            focus = margin.flatten(0, -2).double().pow(2).sum(-1) * real
        else:
            focus = real if tokens == "all" else text
        rest = real if tokens == "gradient" else None
        yield handle, Observed(x.flatten(0, -2).double(), focus, rest, effect)


@contextmanager
def watching(handles: Sequence[Handle], caught: dict[SiteId, torch.Tensor]) -> Iterator[None]:
    """Catch the inputs of the output matrices; where gradients are on, ready for some."""
    hooks = []
    for handle in handles:

        def catch(_: Any, inputs: tuple[torch.Tensor], handle: Handle = handle) -> None:
            if torch.is_grad_enabled() and not inputs[0].requires_grad:
                inputs[0].requires_grad_()
            caught[handle.site.id] = inputs[0]

        hooks.append(handle.linear(handle.output).register_forward_pre_hook(catch))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _checked(handles: Sequence[Handle], caught: Mapping[SiteId, torch.Tensor]) -> Iterator[SiteId]:
    for handle in handles:
        seen = caught.get(handle.site.id)
        if seen is None:
            raise _silent(handle)
        if not bool(torch.isfinite(seen).all()):
            raise ModelError(
                f"{handle.site.id} computes NaN or infinity on the calibration samples.",
                hint="Use dtype float32 or bfloat16, and check the checkpoint.",
            )
        yield handle.site.id


def _silent(handle: Handle) -> ModelError:
    return ModelError(
        f"{handle.site.id} is not run by the calibration samples.",
        hint="Give samples with pictures, as the search will.",
    )


def _positions(probe: Probe) -> int:
    read = probe.targets is None and probe.answers is not None and probe.answers.dim() == 2
    return probe.answers.shape[1] if read and probe.answers is not None else 1


def _choices(logits: torch.Tensor, probe: Probe) -> torch.Tensor:
    """Give the logits of what may be answered: one row a sample, or a token of an answer."""
    if probe.targets is not None:
        targets = probe.targets.to(logits.device)
        last = logits[:, -1].gather(1, targets.clamp(min=0))
        return last.masked_fill(targets < 0, float("-inf"))
    if probe.answers is None or probe.answers.dim() == 1:
        return logits[:, -1]
    return logits[(probe.answers >= 0).to(logits.device)]


def _margin(logits: torch.Tensor, probe: Probe) -> torch.Tensor:
    best = _choices(logits, probe).topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1]).sum()


def _goal(logits: torch.Tensor, probe: Probe, goal: str) -> torch.Tensor:
    if goal != "loss":
        raise ModelError(f"There is no goal {goal!r}.", hint="Use margin or loss.")
    if probe.answers is None:
        raise ModelError(
            "The loss needs the right answers.", hint="Pass Probe(inputs, targets, answers)."
        )
    right = probe.answers[probe.answers >= 0].to(logits.device)
    return torch.nn.functional.cross_entropy(_choices(logits, probe), right, reduction="sum")


def _gradients(
    goal: torch.Tensor, at: Sequence[torch.Tensor], *, again: bool = False
) -> list[torch.Tensor]:
    """Give the gradient of ``goal`` at each tensor; 0 where it does not depend on it."""
    found = torch.autograd.grad(goal, list(at), retain_graph=again, allow_unused=True)
    return [
        torch.zeros_like(x) if gradient is None else gradient
        for x, gradient in zip(at, found, strict=True)
    ]


def _masks(
    loaded: Loaded, handle: Handle, x: torch.Tensor, inputs: Inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell which tokens are no padding, and which of them are text: 1 or 0, by token."""
    if handle.site.tower != LANGUAGE:
        every = x.new_ones(x.shape[:-1], dtype=torch.float64)
        return every, every
    real = inputs["attention_mask"].to(x.device).double()
    text = real.clone()
    for name in _PLACEHOLDERS:
        token = getattr(loaded.model.config, name, None)
        if token is not None:
            text[(inputs["input_ids"] == token).to(x.device)] = 0
    return real, text


def _effect(change: torch.Tensor, inputs: Inputs, columns: int) -> torch.Tensor:
    """Add up ``change`` by sample and unit; give the sum of its squares, by unit."""
    change = change.double()
    if change.dim() > 2:
        change = change.flatten(1, -2).sum(1)
    elif "image_grid_thw" in inputs:  # pictures of several sizes, one behind the other
        sizes = inputs["image_grid_thw"].prod(-1)
        ends = (sizes.cumsum(0) * len(change) // sizes.sum()).tolist()
        starts = [0, *ends[:-1]]
        change = torch.stack([change[i:j].sum(0) for i, j in zip(starts, ends, strict=True)])
    return change.reshape(len(change), -1, columns).sum(-1).pow(2).sum(0)
