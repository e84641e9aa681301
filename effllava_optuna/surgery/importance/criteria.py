"""Rank the units of every component by an importance criterion."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Ranking
from effllava_optuna.surgery.apply.arrangement import current_ranking
from effllava_optuna.surgery.importance.elimination import elimination_order
from effllava_optuna.surgery.importance.memory_groups import group_by_memory
from effllava_optuna.surgery.importance.unit_statistics import UnitStatistics, collect_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

    Score = Callable[[ComponentHandle, UnitStatistics], torch.Tensor]


# Matrices as large as the moments of a component that its ranking takes beside them.
_WORKING_MATRICES = 5


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
    memory_gb: float = 8.0,
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
        memory_gb: Gigabytes for the moments of ``obs``, a matrix for each component. The samples
            run forward and backward once for each group of components that fits; one component
            at a time if none does.

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
    groups = [[*loaded.handles]]
    if importance == "obs":
        matrices = 2 if tokens == "gradient" else 1
        sizes = [
            8.0 * matrices * (handle.columns * handle.component.width) ** 2
            for handle in loaded.handles
        ]
        working = _WORKING_MATRICES * max(sizes, default=0.0) / matrices
        groups = group_by_memory(loaded.handles, sizes, memory_gb * 1e9 - working)
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
