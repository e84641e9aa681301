"""Rank the units of every component by an importance criterion."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Ranking
from effllava_optuna.surgery.apply.arrangement import current_ranking
from effllava_optuna.surgery.importance.moments import ridge_penalty
from effllava_optuna.surgery.importance.unit_statistics import UnitStatistics, collect_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

    Score = Callable[[ComponentHandle, UnitStatistics], torch.Tensor]

# Fraction of the mean of the diagonal (Frantar and Alistarh 2023).
OBS_DAMPING = 1e-2


def _weight(handle: ComponentHandle) -> torch.Tensor:
    return handle.linear(handle.output).weight.detach().double()


def _by_unit(column_scores: torch.Tensor, handle: ComponentHandle) -> torch.Tensor:
    return column_scores.reshape(-1, handle.columns)


def magnitude(handle: ComponentHandle) -> torch.Tensor:
    """Compute the squared Frobenius norm of each unit's columns of the output matrix."""
    return _by_unit(_weight(handle).pow(2).sum(0), handle).sum(1)


def wanda(handle: ComponentHandle, statistics: UnitStatistics) -> torch.Tensor:
    """Compute the sum of |W_ij| ||X_j|| over each unit (Sun et al. 2024, by unit)."""
    norms = statistics.moments.mean_squares.clamp(min=0).sqrt()
    return _by_unit(_weight(handle).abs().sum(0) * norms, handle).sum(1)


def flap(handle: ComponentHandle, statistics: UnitStatistics) -> torch.Tensor:
    """Compute the mean of (Var(X_j) ||W_:j||^2)^2 over each unit (An et al. 2024, WIFV)."""
    moments = statistics.moments
    variances = (moments.mean_squares - moments.mean.pow(2)).clamp(min=0)
    return _by_unit(variances * _weight(handle).pow(2).sum(0), handle).pow(2).mean(1)


def obs(handle: ComponentHandle, statistics: UnitStatistics) -> torch.Tensor:
    """Compute each unit's turn in a greedy elimination by the optimal brain surgeon."""
    return elimination_order(_weight(handle), statistics.moments.matrix, handle.columns)


def elimination_order(
    weight: torch.Tensor, matrix: torch.Tensor, unit_columns: int, damping: float = OBS_DAMPING
) -> torch.Tensor:
    """Remove the unit of least cost, correct the other units, and repeat (Hassibi et al. 1993).

    With H the damped ``matrix`` and S the columns of a unit, removing the unit costs
    tr(W_S inv([H^-1]_SS) W_S^T) and changes W by -W_S inv([H^-1]_SS) [H^-1]_S; H^-1 then loses
    [H^-1]_:S inv([H^-1]_SS) [H^-1]_S:, which is exact. Time: units times columns squared.

    Args:
        weight: Shape ``(out, columns)``, float64.
        matrix: Shape ``(columns, columns)``, float64: second moments.
        unit_columns: Columns of one unit.
        damping: Fraction of the mean of the diagonal of ``matrix`` that is added to it.

    Returns:
        Shape ``(units,)``: the step at which the unit is removed, from 0.

    Raises:
        ModelError: The damped matrix has no Cholesky factor.
    """
    columns, units = len(matrix), len(matrix) // unit_columns
    damped = matrix.clone()
    damped.diagonal().add_(ridge_penalty(matrix.diagonal(), damping))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ModelError(
            f"The moments of {columns} columns cannot be inverted for the importance 'obs'.",
            hint="Use more calibration samples, or the importance 'taylor'.",
        )
    inverse, weight = torch.cholesky_inverse(lower), weight.clone()
    del damped, lower
    removed_at = torch.full((units,), -1.0, dtype=torch.float64, device=matrix.device)
    columns_of = torch.arange(columns, device=matrix.device).reshape(units, unit_columns)
    for step in range(units):
        remaining = torch.nonzero(removed_at < 0)[:, 0]
        unit = remaining[int(_removal_costs(weight, inverse, columns_of[remaining]).argmin())]
        removed = columns_of[unit]
        rows = torch.linalg.solve(inverse[removed][:, removed], inverse[removed])
        weight.addmm_(weight[:, removed], rows, alpha=-1)
        inverse.addmm_(inverse[:, removed], rows, alpha=-1)
        removed_at[unit] = step
    return removed_at


def _removal_costs(
    weight: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute tr(W_S inv([H^-1]_SS) W_S^T) for each row S of ``columns``."""
    if columns.shape[1] == 1:
        return (weight.pow(2).sum(0) / inverse.diagonal())[columns[:, 0]]
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    parts = weight[:, columns].permute(1, 2, 0)
    costs: torch.Tensor = (torch.linalg.solve(blocks, parts) * parts).sum((1, 2))
    return costs


_SCORES: Mapping[str, Score] = {
    "magnitude": lambda handle, _: magnitude(handle),
    "wanda": wanda,
    "flap": flap,
    "taylor": lambda _, statistics: statistics.effect,
    "taylor-loss": lambda _, statistics: statistics.effect,
    "obs": obs,
}
IMPORTANCES = (*_SCORES, "random")
DATA_FREE = ("magnitude", "random")


def goal_of(importance: str) -> str:
    """Return the goal whose change the effects must measure for an importance criterion."""
    return "loss" if importance == "taylor-loss" else "margin"


def check_importance(importance: str, *, has_samples: bool) -> None:
    """Check that an importance criterion exists and has the samples it needs.

    Raises:
        ModelError: It does not, or has none.
    """
    if importance not in IMPORTANCES:
        raise ModelError(
            f"{importance!r} is not an importance criterion.",
            hint=f"Use {', '.join(IMPORTANCES)}.",
        )
    if importance not in DATA_FREE and not has_samples:
        raise ModelError(
            f"The importance {importance!r} needs calibration samples.",
            hint="Use batches=[CalibrationBatch(...)].",
        )


def score_units(
    loaded: LoadedModel,
    handle: ComponentHandle,
    importance: str,
    statistics: UnitStatistics | None,
    *,
    seed: int = 0,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Score the units of a component in the order of the checkpoint; higher means more important.

    Args:
        loaded: The model.
        handle: The component.
        importance: One of `IMPORTANCES`.
        statistics: Statistics under the goal of ``importance``; None for a criterion in
            `DATA_FREE`.
        seed: Seed of the importance ``random``.
    """
    component = handle.component.id
    if importance == "random":
        rng = np.random.default_rng([seed, zlib.crc32(component.encode())])
        return rng.random(handle.component.width)
    score = magnitude(handle) if statistics is None else _SCORES[importance](handle, statistics)
    scores: np.ndarray[tuple[int], np.dtype[np.float64]] = score.cpu().numpy()
    ranking = current_ranking(loaded)
    return scores if ranking is None else scores[ranking.units[component].argsort()]


def rank_units(
    loaded: LoadedModel,
    batches: Sequence[CalibrationBatch] | None = None,
    importance: str = "magnitude",
    *,
    tokens: str = "gradient",
    seed: int = 0,
) -> Ranking:
    """Rank the units of every component, most important first.

    Args:
        loaded: The model.
        batches: Calibration samples; ``magnitude`` and ``random`` need none.
        importance: ``magnitude``: squared Frobenius norm of the unit's columns of the output
            matrix. ``wanda``: the absolute weights times the norms of their inputs. ``flap``: the
            squared weights times the variances of their inputs. ``taylor``: sum over samples of
            the squared first-order change of the answer margin if the unit is set to zero
            (Molchanov et al. 2017, with the margin in place of the loss); ``taylor-loss``: the
            same of the loss. ``obs``: greedy elimination by the optimal brain surgeon.
            ``random``: drawn from ``seed``.
        tokens: Token weights for wanda, flap and obs: see `collect_statistics`.
        seed: Seed of the importance ``random``.

    Raises:
        ModelError: ``importance`` is unknown, or needs samples and has none.

    Example:
        >>> from effllava_optuna import load
        >>> loaded = load("digits-vlm", device="cpu")
        >>> rank_units(loaded).units["language.00.attn"].shape
        (4,)
    """
    check_importance(importance, has_samples=bool(batches))
    scores = {}
    # obs needs a matrix for each component: one component at a time keeps the memory constant.
    groups = [[h] for h in loaded.handles] if importance == "obs" else [[*loaded.handles]]
    for handles in groups:
        statistics: Mapping[ComponentId, UnitStatistics] = {}
        if batches and importance not in DATA_FREE:
            statistics = collect_statistics(
                loaded,
                handles,
                batches,
                tokens=tokens,
                goal=goal_of(importance),
                full=importance == "obs",
            )
        for handle in handles:
            component = handle.component.id
            scores[component] = score_units(
                loaded, handle, importance, statistics.get(component), seed=seed
            )
    return Ranking.from_scores(loaded.structure, importance, scores)
