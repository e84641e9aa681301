"""Rank and re-fit all sites in one go, within a limit of memory.

Sites are taken in parts whose moments fit into memory together; each part is one sweep over the
samples, which tells the order and the refits of its sites. A model whose moments all fit is swept
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Order
from effllava_optuna.policy.order import ranked
from effllava_optuna.surgery.calibrate import survey
from effllava_optuna.surgery.handle import elements
from effllava_optuna.surgery.narrow import arrangement
from effllava_optuna.surgery.rank import WITHOUT_SAMPLES, check_order, goal_of, unit_scores
from effllava_optuna.surgery.refit import (
    REFITS,
    Fitted,
    choose_damping,
    least_squares,
    mean_biases,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery.calibrate import Probe, Survey
    from effllava_optuna.surgery.handle import Handle
    from effllava_optuna.surgery.loaded import Loaded
    from effllava_optuna.surgery.moments import Moments
    from effllava_optuna.surgery.refit import Refit

    Widths = Mapping[SiteId, Sequence[int]]

# Matrices of the size of a site's moments that ranking and fitting one site takes, beside the
# moments of its folds: their sum (two), what is factored, the factor, and what sums need.
_WORKING = 7


@dataclass(frozen=True, slots=True)
class Recipe:
    """How units are ranked and the others re-fitted.

    Attributes:
        order: One of `ORDERS`.
        refit: ``none``; ``bias``: the output bias says what the removed units said on average;
            ``least-squares``: the output matrix is fitted to the units that stay.
        tokens: What tokens weigh: see `survey`.
        seed: Of the random order.
        table_gb: Gigabytes that the fits, and what it takes to make them, may hold together.
    """

    order: str = "obs"
    refit: str = "least-squares"
    tokens: str = "gradient"
    seed: int = 0
    table_gb: float = 8.0

    def __post_init__(self) -> None:
        if self.refit not in REFITS:
            raise ModelError(
                f"There is no refit {self.refit!r}.", hint=f"Use {', '.join(REFITS)}."
            )

    @property
    def full(self) -> bool:
        """Tell whether whole matrices of moments are needed."""
        return self.refit == "least-squares" or self.order == "obs"

    @property
    def surveys(self) -> bool:
        """Tell whether the samples are needed."""
        return self.refit != "none" or self.order not in WITHOUT_SAMPLES


@dataclass(frozen=True)
class Compensation:
    """An order and its refits.

    Attributes:
        order: Which units stay.
        refits: Fitted on all folds, then without each fold in turn. None: no refit.
        damping: Chosen for each site.
        effective_tokens: Of each site, under its token weights (Kish).
    """

    order: Order
    refits: tuple[Refit | None, ...]
    damping: Mapping[SiteId, float]
    effective_tokens: Mapping[SiteId, float]

    @property
    def nbytes(self) -> int:
        """Count the bytes of the refits."""
        return sum(fitted.nbytes for refit in self.refits for fitted in (refit or {}).values())


@dataclass(frozen=True, slots=True)
class SiteFit:
    """The refits of one site.

    Attributes:
        fits: By count: on all folds, then without each fold in turn.
        damping: The damping chosen; None where nothing was factored.
    """

    fits: tuple[Mapping[int, Fitted], ...]
    damping: float | None = None


def compensate(
    loaded: Loaded,
    folds: Sequence[Sequence[Probe]],
    widths: Widths,
    recipe: Recipe,
    progress: Callable[[float], None] | None = None,
) -> Compensation:
    """Rank the units of every site, and fit its output matrix for every width.

    Args:
        loaded: The model, not arranged.
        folds: Calibration samples, in at least two folds.
        widths: Numbers of units by site that there shall be fits for.
        recipe: How.
        progress: Is told the share that is done.

    Raises:
        ModelError: The order or the token weight is unknown, the fits do not go into
            ``recipe.table_gb``, or moments cannot be factored.
    """
    check_order(recipe.order, samples=any(folds))
    if arrangement(loaded) is not None:
        raise ModelError(
            f"{loaded.source} is arranged at present.",
            hint="Leave `with arranged(...)` before ranking and fitting.",
        )
    refits: list[dict[tuple[SiteId, int], Fitted]] = [{} for _ in range(len(folds) + 1)]
    damping: dict[SiteId, float] = {}
    effective: dict[SiteId, float] = {}
    scores = {}
    for handles in _parts(loaded.handles, len(folds), widths, recipe):
        told = [_told(loaded, handles, probes, recipe) for probes in folds]
        for handle in handles:
            site = handle.site
            mine = [fold.pop(site.id) for fold in told if fold]
            whole = sum(mine[1:], start=mine[0]) if mine else None
            scores[site.id] = unit_scores(loaded, handle, recipe.order, whole, seed=recipe.seed)
            if whole is not None:
                effective[site.id] = round(whole.moments.effective_tokens, 1)
            del whole
            units = torch.from_numpy(ranked(site, recipe.order, scores[site.id]))
            if recipe.refit != "none":
                found = fit_site(handle, [s.moments for s in mine], units, widths[site.id], recipe)
                for refit, fitted in zip(refits, found.fits, strict=True):
                    refit.update({(site.id, count): entry for count, entry in fitted.items()})
                if found.damping is not None:
                    damping[site.id] = found.damping
            if progress is not None:
                progress(len(scores) / len(loaded.handles))
    return Compensation(
        Order.from_scores(loaded.anatomy, recipe.order, scores),
        tuple(None if recipe.refit == "none" else refit for refit in refits),
        damping,
        effective,
    )


def fit_site(
    handle: Handle,
    folds: Sequence[Moments],
    units: torch.Tensor,
    widths: Sequence[int],
    recipe: Recipe,
) -> SiteFit:
    """Fit one site for every width: on all folds, and without each.

    Args:
        handle: The site.
        folds: The moments of each fold, columns as they are now.
        units: Shape ``(width,)``: most important first.
        widths: How many units stay; the dense width needs no fit.
        recipe: How; its refit is not ``none``.
    """
    each, output = handle.columns, handle.linear(handle.output)
    narrow = [width * each for width in widths if width < handle.site.width]
    if not narrow:
        return SiteFit(tuple({} for _ in range(len(folds) + 1)))
    order = elements(units, each).to(output.weight.device)
    weight = output.weight.detach()[:, order]
    fits: list[dict[int, Fitted]] = []
    if recipe.refit == "bias":
        for index in (None, *range(len(folds))):
            mean = without(folds, index).mean[order]
            biases = mean_biases(weight, output.bias, mean, narrow)
            fits.append({count // each: Fitted(bias=bias) for count, bias in biases.items()})
        return SiteFit(tuple(fits))
    some = narrow[:: max(1, len(narrow) // 3)]
    damping = choose_damping(weight, folds, order, some)
    for index in (None, *range(len(folds))):
        matrix = without(folds, index).matrix[order[:, None], order]
        fit = least_squares(weight, matrix, narrow, damping)
        fits.append(
            {count // each: Fitted(found.contiguous()) for count, found in fit.weights.items()}
        )
    return SiteFit(tuple(fits), damping)


def _told(
    loaded: Loaded, handles: Sequence[Handle], probes: Sequence[Probe], recipe: Recipe
) -> dict[SiteId, Survey]:
    if not recipe.surveys:
        return {}
    return survey(
        loaded,
        handles,
        probes,
        tokens=recipe.tokens,
        goal=goal_of(recipe.order),
        full=recipe.full,
    )


def table_bytes(handle: Handle, folds: int, widths: Sequence[int], refit: str) -> int:
    """Count the bytes of the fits of one site, on all folds and without each."""
    output = handle.linear(handle.output)
    narrow = [width * handle.columns for width in widths if width < handle.site.width]
    each = {"none": 0, "bias": len(narrow), "least-squares": sum(narrow)}[refit]
    return (folds + 1) * output.out_features * each * output.weight.element_size()


def _parts(
    handles: Sequence[Handle], folds: int, widths: Widths, recipe: Recipe
) -> list[list[Handle]]:
    """Split ``handles`` so that moments, factors and all fits together stay within the limit."""
    table = sum(table_bytes(h, folds, widths[h.site.id], recipe.refit) for h in handles)
    need = {h.site.id: 8 * _entries(h, recipe) for h in handles}
    own = 2 * folds if recipe.tokens == "gradient" else folds
    room = recipe.table_gb * 1e9 - table - _WORKING * max(need.values())
    least = table + (_WORKING + own) * max(need.values())
    if own * max(need.values()) > room:
        raise ModelError(
            f"The refit tables take {table / 1e9:.3g} GB, and making them {least / 1e9:.3g} GB "
            f"together; pruning.table_gb allows {recipe.table_gb:g}.",
            hint="Allow more, or give fewer pruning.shares or pruning.folds.",
        )
    parts: list[list[Handle]] = []
    left = 0.0
    for handle in handles:
        cost = own * need[handle.site.id]
        if not parts or cost > left:
            parts.append([])
            left = room
        parts[-1].append(handle)
        left -= cost
    return parts


def _entries(handle: Handle, recipe: Recipe) -> int:
    """Count the numbers of one site's moments, or of what a fit holds, if that is more."""
    columns = handle.columns * handle.site.width
    if not recipe.full:
        return columns
    return columns * max(columns, handle.linear(handle.output).out_features)
