"""In which order units go: scores from the weights and from what the samples told."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Order
from effllava_optuna.surgery.calibrate import Survey, survey
from effllava_optuna.surgery.narrow import arrangement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery.calibrate import Probe
    from effllava_optuna.surgery.handle import Handle
    from effllava_optuna.surgery.loaded import Loaded

    Score = Callable[[Handle, Survey], torch.Tensor]

OBS_DAMPING = 1e-2  # share of the mean of the diagonal (Frantar and Alistarh 2023)


def _weight(handle: Handle) -> torch.Tensor:
    return handle.linear(handle.output).weight.detach().double()


def _by_unit(columns: torch.Tensor, handle: Handle) -> torch.Tensor:
    return columns.reshape(-1, handle.columns)


def magnitude(handle: Handle) -> torch.Tensor:
    """Give the squared Frobenius norm of each unit's columns of the output matrix."""
    return _by_unit(_weight(handle).pow(2).sum(0), handle).sum(1)


def wanda(handle: Handle, told: Survey) -> torch.Tensor:
    """Give the sum of |W_ij| ||X_j|| over each unit (Sun et al. 2024, by unit)."""
    scores = _weight(handle).abs().sum(0) * told.moments.squares.clamp(min=0).sqrt()
    return _by_unit(scores, handle).sum(1)


def flap(handle: Handle, told: Survey) -> torch.Tensor:
    """Give the mean over each unit of (Var(X_j) ||W_:j||^2)^2 (An et al. 2024, WIFV)."""
    moments = told.moments
    variance = (moments.squares - moments.mean.pow(2)).clamp(min=0)
    return _by_unit(variance * _weight(handle).pow(2).sum(0), handle).pow(2).mean(1)


def obs(handle: Handle, told: Survey) -> torch.Tensor:
    """Give each unit's turn in a greedy elimination by the optimal brain surgeon."""
    return eliminate(_weight(handle), told.moments.matrix, handle.columns)


def eliminate(
    weight: torch.Tensor, matrix: torch.Tensor, each: int, damping: float = OBS_DAMPING
) -> torch.Tensor:
    """Remove the unit that costs least, correct the others, and so on (Hassibi et al. 1993).

    With H the damped ``matrix`` and S the columns of a unit, removing it costs
    tr(W_S inv([H^-1]_SS) W_S^T) and changes W by -W_S inv([H^-1]_SS) [H^-1]_S; H^-1 then loses
    [H^-1]_:S inv([H^-1]_SS) [H^-1]_S:, which is exact. Time: units times columns squared.

    Args:
        weight: Shape ``(out, columns)``, float64.
        matrix: Shape ``(columns, columns)``, float64: second moments.
        each: Columns that one unit has.
        damping: Share of the mean of the diagonal of ``matrix`` that is added to it.

    Returns:
        Shape ``(units,)``: when the unit goes, 0 first.

    Raises:
        ModelError: The damped matrix has no Cholesky factor.
    """
    columns, units = len(matrix), len(matrix) // each
    mean = float(matrix.diagonal().mean())
    damped = matrix.clone()
    damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ModelError(
            f"The moments of {columns} columns cannot be inverted for the obs order.",
            hint="Use more calibration samples, or the order taylor.",
        )
    inverse, weight = torch.cholesky_inverse(lower), weight.clone()
    del damped, lower
    turn = torch.full((units,), -1.0, dtype=torch.float64, device=matrix.device)
    blocks = torch.arange(columns, device=matrix.device).reshape(units, each)
    for step in range(units):
        left = torch.nonzero(turn < 0)[:, 0]
        unit = left[int(_costs(weight, inverse, blocks[left]).argmin())]
        mine = blocks[unit]
        rows = torch.linalg.solve(inverse[mine][:, mine], inverse[mine])
        weight.addmm_(weight[:, mine], rows, alpha=-1)
        inverse.addmm_(inverse[:, mine], rows, alpha=-1)
        turn[unit] = step
    return turn


def _costs(weight: torch.Tensor, inverse: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Give tr(W_S inv([H^-1]_SS) W_S^T) for each row S of ``blocks``."""
    if blocks.shape[1] == 1:
        return (weight.pow(2).sum(0) / inverse.diagonal())[blocks[:, 0]]
    own = inverse[blocks[:, :, None], blocks[:, None, :]]
    parts = weight[:, blocks].permute(1, 2, 0)
    costs: torch.Tensor = (torch.linalg.solve(own, parts) * parts).sum((1, 2))
    return costs


_SCORES: Mapping[str, Score] = {
    "magnitude": lambda handle, _: magnitude(handle),
    "wanda": wanda,
    "flap": flap,
    "taylor": lambda _, told: told.effect,
    "taylor-loss": lambda _, told: told.effect,
    "obs": obs,
}
ORDERS = (*_SCORES, "random")
WITHOUT_SAMPLES = ("magnitude", "random")


def goal_of(method: str) -> str:
    """Say whose change the effects must be for ``method``."""
    return "loss" if method == "taylor-loss" else "margin"


def check_order(method: str, *, samples: bool) -> None:
    """Refuse an order that is unknown, or lacks samples.

    Raises:
        ModelError: It is.
    """
    if method not in ORDERS:
        raise ModelError(f"There is no order {method!r}.", hint=f"Use {', '.join(ORDERS)}.")
    if method not in WITHOUT_SAMPLES and not samples:
        raise ModelError(
            f"The {method} order needs calibration samples.", hint="Pass batches=[Probe(...)]."
        )


def unit_scores(
    loaded: Loaded, handle: Handle, method: str, told: Survey | None, *, seed: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Score the units of a site as the checkpoint numbers them; higher means keep.

    Args:
        loaded: The model.
        handle: The site.
        method: One of `ORDERS`.
        told: What the samples told, under the goal of ``method``; magnitude and random need none.
        seed: Of the random order.
    """
    site = handle.site.id
    if method == "random":
        rng = np.random.default_rng([seed, zlib.crc32(site.encode())])
        return rng.random(handle.site.width)
    score = magnitude(handle) if told is None else _SCORES[method](handle, told)
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = score.cpu().numpy()
    present = arrangement(loaded)
    return found if present is None else found[present.units[site].argsort()]


def rank_units(
    loaded: Loaded,
    batches: Sequence[Probe] | None = None,
    method: str = "magnitude",
    *,
    tokens: str = "gradient",
    seed: int = 0,
) -> Order:
    """Rank the units of every site, most important first.

    Args:
        loaded: The model.
        batches: Calibration samples; ``magnitude`` and ``random`` need none.
        method: ``magnitude``: squared Frobenius norm of the unit's columns of the output matrix.
            ``wanda``: the same weights, absolute, times the norms of their inputs. ``flap``:
            times the variances of their inputs, squared. ``taylor``: sum over samples of the
            squared first-order change of the answer margin if the unit fell silent (Molchanov et
            al. 2017, with the margin for the loss); ``taylor-loss``: of the loss. ``obs``:
            greedy elimination by the optimal brain surgeon. ``random``: drawn from ``seed``.
        tokens: What tokens weigh for wanda, flap and obs: see `survey`.
        seed: Of the random order.

    Raises:
        ModelError: The method is unknown, or needs samples and has none.

    Example:
        >>> from effllava_optuna import load
        >>> loaded = load("digits-vlm", device="cpu")
        >>> rank_units(loaded).units["language.00.attn"].shape
        (4,)
    """
    check_order(method, samples=bool(batches))
    scores = {}
    # The obs order asks for a matrix a site: one site after the other keeps memory flat.
    parts = [[handle] for handle in loaded.handles] if method == "obs" else [[*loaded.handles]]
    for handles in parts:
        told: Mapping[SiteId, Survey] = {}
        if batches and method not in WITHOUT_SAMPLES:
            told = survey(
                loaded,
                handles,
                batches,
                tokens=tokens,
                goal=goal_of(method),
                full=method == "obs",
            )
        for handle in handles:
            site = handle.site.id
            scores[site] = unit_scores(loaded, handle, method, told.get(site), seed=seed)
    return Order.from_scores(loaded.anatomy, method, scores)
