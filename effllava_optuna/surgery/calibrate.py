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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery.discover import Handle
    from effllava_optuna.surgery.load import Loaded

    Inputs = Mapping[str, Any]

# Share of a token's weight that its gradient decides. Image tokens outnumber those that carry
# the answer; the rest is uniform, so that no token is without weight.
GRADIENT_SHARE = 0.9
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
            are none; only the loss asks for it.
    """

    inputs: Inputs
    targets: torch.Tensor | None = None
    answers: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over tokens, each token with a weight w.

    Attributes:
        second: Of w x x^T, shape ``(columns, columns)``, float64; or its diagonal alone, shape
            ``(columns,)``.
        first: Of w x, shape ``(columns,)``, float64.
        weight: Of w.
        squares: Of w^2.
    """

    second: torch.Tensor
    first: torch.Tensor
    weight: float
    squares: float

    @staticmethod
    def of(x: torch.Tensor, weight: torch.Tensor, *, full: bool) -> Sums:
        """Sum over the rows of ``x``, shape ``(tokens, columns)``."""
        scaled = x * weight[:, None]
        return Sums(
            scaled.T @ x if full else (scaled * x).sum(0),
            scaled.sum(0),
            float(weight.sum()),
            float(weight.pow(2).sum()),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.second + other.second,
            self.first + other.first,
            self.weight + other.weight,
            self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the inputs of one site's output matrix under token weights.

    Attributes:
        focus: Sums under what sets tokens apart: the squared norm of the margin's gradient there,
            or whether the token is one that counts.
        rest: Sums in which all tokens weigh the same, for the rest of the weight; None: there is
            no rest.
    """

    focus: Sums
    rest: Sums | None = None

    def __add__(self, other: Moments) -> Moments:
        rest = self.rest + other.rest if self.rest and other.rest else None
        return Moments(self.focus + other.focus, rest)

    @property
    def matrix(self) -> torch.Tensor:
        """Give E[w x x^T], shape ``(columns, columns)``, or its diagonal.

        With the gradient, w = 0.9 g^2 / mean(g^2) + 0.1.
        """
        return self._mean(lambda sums: sums.second)

    @property
    def mean(self) -> torch.Tensor:
        """Give E[w x], shape ``(columns,)``."""
        return self._mean(lambda sums: sums.first)

    @property
    def squares(self) -> torch.Tensor:
        """Give E[w x^2], shape ``(columns,)``."""
        found = self.matrix
        return found.diagonal() if found.dim() == 2 else found

    @property
    def effective_tokens(self) -> float:
        """Give Kish's effective number of tokens, (sum w)^2 / sum w^2."""
        share = self._share
        focused = self.focus.squares / self.focus.weight**2 if self.focus.weight > 0 else 0.0
        # w = s u / mean(u) + 1 - s has sum n and sum of squares s^2 n^2 focused + (1 - s^2) n.
        uniform = 1 / self.rest.weight if self.rest and self.rest.weight else 0.0
        inverse = share**2 * focused + (1 - share**2) * uniform
        return 1 / inverse if inverse > 0 else 0.0

    @property
    def _share(self) -> float:
        if self.rest is None:
            return 1.0
        return GRADIENT_SHARE if self.focus.weight > 0 else 0.0

    def _mean(self, of: Callable[[Sums], torch.Tensor]) -> torch.Tensor:
        found = of(self.focus) * (self._share / (self.focus.weight or 1.0))
        if self.rest is not None:
            found.add_(of(self.rest), alpha=(1 - self._share) / (self.rest.weight or 1.0))
        return found


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
    if tokens not in TOKENS:
        raise ModelError(f"There is no token weight {tokens!r}.", hint=f"Use {', '.join(TOKENS)}.")
    found: dict[SiteId, Survey] = {}
    for probe in probes:
        inputs = {name: value.to(loaded.device) for name, value in probe.inputs.items()}
        caught: dict[SiteId, torch.Tensor] = {}
        with loaded.lock, torch.enable_grad(), watching(handles, caught):
            logits = loaded.model(**inputs, logits_to_keep=1).logits[:, -1].float()
            _check(handles, caught)
            at = [caught[handle.site.id] for handle in handles]
            # Token weights always come from the margin.
            margins = _gradients(_margin(logits, probe), at, again=goal != "margin")
            changes = margins if goal == "margin" else _gradients(_goal(logits, probe, goal), at)
        for handle, x, margin, change in zip(handles, at, margins, changes, strict=True):
            real, text = _masks(loaded, handle, x, inputs)
            x = x.detach() * real[..., None].to(x.dtype)
            effect = _effect(x * change, inputs, handle.columns)
            flat, real, text = x.flatten(0, -2).double(), real.flatten(), text.flatten()
            if tokens == "gradient":
                g2 = margin.flatten(0, -2).double().pow(2).sum(-1) * real
                moments = Moments(Sums.of(flat, g2, full=full), Sums.of(flat, real, full=full))
            else:
                moments = Moments(Sums.of(flat, real if tokens == "all" else text, full=full))
            mine, old = Survey(effect, moments), found.get(handle.site.id)
            found[handle.site.id] = mine if old is None else old + mine
    return found


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


def _check(handles: Sequence[Handle], caught: Mapping[SiteId, torch.Tensor]) -> None:
    for handle in handles:
        seen = caught.get(handle.site.id)
        if seen is None:
            raise ModelError(
                f"{handle.site.id} is not run by the calibration samples.",
                hint="Give samples with pictures, as the search will.",
            )
        if not bool(torch.isfinite(seen).all()):
            raise ModelError(
                f"{handle.site.id} computes NaN or infinity on the calibration samples.",
                hint="Use dtype float32 or bfloat16, and check the checkpoint.",
            )


def _choices(logits: torch.Tensor, probe: Probe) -> torch.Tensor:
    if probe.targets is None:
        return logits
    targets = probe.targets.to(logits.device)
    return logits.gather(1, targets.clamp(min=0)).masked_fill(targets < 0, float("-inf"))


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
    right = probe.answers.to(logits.device)
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
    if handle.site.tower != "language":
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
