"""What the proxy samples tell about the units: scores for the order, moments for the refit.

Both look at the inputs of the output matrices (``o_proj``, ``down_proj``): there a unit is some
columns. The answer margin, the logit of the likeliest answer minus that of the next, says what
matters; the plain loss would not, since its gradient vanishes where a model is sure.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Order
from effllava_optuna.surgery.narrow import arrangement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery.handle import Handle
    from effllava_optuna.surgery.loaded import Loaded

    Inputs = Mapping[str, Any]
    Seen = Callable[[Handle, torch.Tensor, torch.Tensor], None]

# Share of a token's weight that its gradient decides. Image tokens outnumber those that carry
# the answer; the rest is uniform, so that no token is without weight.
GRADIENT_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Probe:
    """Some calibration samples.

    Attributes:
        inputs: Keyword arguments of the model, padded on the left.
        targets: Shape ``(samples, targets)``: tokens that the answer may begin with, -1 where
            a sample has fewer. None: any token.
    """

    inputs: Inputs
    targets: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of the inputs of one site's output matrix, as sums.

    Attributes:
        weighted: Shape ``(columns, columns)``, float64: sum over tokens of g^2 x x^T, where g is
            the norm of the margin's gradient at the token.
        plain: The same without g.
        weight: Sum of g^2.
        tokens: Number of tokens.
        squares: Sum of g^4, for the effective sample size.
    """

    weighted: torch.Tensor
    plain: torch.Tensor
    weight: float
    tokens: int
    squares: float

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.weighted + other.weighted,
            self.plain + other.plain,
            self.weight + other.weight,
            self.tokens + other.tokens,
            self.squares + other.squares,
        )

    @property
    def matrix(self) -> torch.Tensor:
        """Give E[w x x^T], w = 0.9 g^2 / mean(g^2) + 0.1: shape ``(columns, columns)``."""
        plain = self.plain / max(self.tokens, 1)
        if self.weight <= 0:
            return plain
        return GRADIENT_SHARE * self.weighted / self.weight + (1 - GRADIENT_SHARE) * plain

    @property
    def effective_tokens(self) -> float:
        """Give Kish's effective number of tokens under the gradient weights."""
        return self.weight**2 / self.squares if self.squares > 0 else float(self.tokens)


@contextmanager
def _watching(handles: Sequence[Handle], caught: dict[SiteId, torch.Tensor]) -> Iterator[None]:
    """Catch the inputs of the output matrices, ready to receive gradients."""
    hooks = []
    for handle in handles:

        def catch(_: Any, inputs: tuple[torch.Tensor], handle: Handle = handle) -> None:
            if not inputs[0].requires_grad:
                inputs[0].requires_grad_()
            inputs[0].retain_grad()
            caught[handle.site.id] = inputs[0]

        hooks.append(handle.linear(handle.output).register_forward_pre_hook(catch))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sweep(loaded: Loaded, handles: Sequence[Handle], probes: Sequence[Probe], see: Seen) -> None:
    """Run each probe forward and backward; show ``see`` each site's inputs and gradients."""
    for probe in probes:
        inputs = {name: value.to(loaded.device) for name, value in probe.inputs.items()}
        caught: dict[SiteId, torch.Tensor] = {}
        with loaded.lock, torch.enable_grad(), _watching(handles, caught):
            logits = loaded.model(**inputs, logits_to_keep=1).logits[:, -1].float()
            if probe.targets is not None:
                targets = probe.targets.to(loaded.device)
                logits = logits.gather(1, targets.clamp(min=0))
                logits = logits.masked_fill(targets < 0, float("-inf"))
            best = logits.topk(2, dim=-1).values
            (best[:, 0] - best[:, 1]).sum().backward()
        real = inputs["attention_mask"].bool()
        for handle in handles:
            seen = caught[handle.site.id]
            if seen.grad is None or not bool(torch.isfinite(seen).all()):
                raise ModelError(
                    f"{handle.site.id} computes NaN or infinity on the calibration samples.",
                    hint="Use dtype float32 or bfloat16, and check the checkpoint.",
                )
            keep = real.to(seen.device)[..., None]
            see(handle, seen.detach() * keep, seen.grad * keep)


def rank_units(
    loaded: Loaded, batches: Sequence[Probe] | None = None, method: str = "magnitude"
) -> Order:
    """Rank the units of every site, most important first.

    Args:
        loaded: The model.
        batches: Calibration samples; ``magnitude`` needs none.
        method: ``magnitude``: squared Frobenius norm of the unit's columns of the output matrix.
            ``taylor``: sum over samples of the squared first-order change of the answer margin
            if the unit fell silent (Molchanov et al. 2017, with the margin for the loss).

    Raises:
        ModelError: The method is unknown, or needs samples and has none.

    Example:
        >>> from effllava_optuna import load
        >>> loaded = load("digits-vlm", device="cpu")
        >>> rank_units(loaded).units["language.00.attn"].shape
        (4,)
    """
    scores: dict[SiteId, torch.Tensor] = {}
    if method == "magnitude":
        for handle in loaded.handles:
            energy = handle.linear(handle.output).weight.detach().double().pow(2).sum(0)
            scores[handle.site.id] = energy.reshape(-1, handle.columns).sum(1)
    elif method == "taylor":
        if not batches:
            raise ModelError(
                "The taylor order needs calibration samples.", hint="Pass batches=[Probe(...)]."
            )

        def see(handle: Handle, x: torch.Tensor, gradient: torch.Tensor) -> None:
            change = (x * gradient).double().sum(1)
            change = change.reshape(len(change), -1, handle.columns).sum(-1).pow(2).sum(0)
            scores[handle.site.id] = scores.get(handle.site.id, torch.zeros_like(change)) + change

        _sweep(loaded, loaded.handles, batches, see)
    else:
        raise ModelError(f"There is no order {method!r}.", hint="Use magnitude or taylor.")
    found = {site: score.cpu().numpy() for site, score in scores.items()}
    present = arrangement(loaded)
    if present is not None:  # an order always speaks of the units as the checkpoint numbers them
        found = {site: score[present.units[site].argsort()] for site, score in found.items()}
    return Order.from_scores(loaded.anatomy, method, found)


def moments(
    loaded: Loaded, handles: Sequence[Handle], probes: Sequence[Probe]
) -> dict[SiteId, Moments]:
    """Sum the second moments of some sites' inputs over ``probes``, columns as they are now.

    Memory: two matrices of ``columns`` squared in float64 for each of ``handles``; call it with
    few sites at a time where that is much.
    """
    sums: dict[SiteId, Moments] = {}

    def see(handle: Handle, x: torch.Tensor, gradient: torch.Tensor) -> None:
        x = x.flatten(0, 1).double()
        g2 = gradient.flatten(0, 1).double().pow(2).sum(-1)
        used = x.abs().sum(-1) > 0
        mine = Moments(
            (x * g2[:, None]).T @ x,
            x.T @ x,
            float(g2.sum()),
            int(used.sum()),
            float(g2.pow(2).sum()),
        )
        old = sums.get(handle.site.id)
        sums[handle.site.id] = mine if old is None else old + mine

    _sweep(loaded, handles, probes, see)
    return sums
