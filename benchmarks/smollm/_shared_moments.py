"""Rankings and compensation tables of several importances from one sweep over the samples.

`rank_and_compensate` sweeps for each importance, and chooses the damping of each table by
cross-validation under its own ranking. Here all importances share the moments, and the damping
that is chosen under the ranking of ``obs``, at the middle one of the widths.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from effllava_optuna.policy import Ranking
from effllava_optuna.surgery import (
    FittedOutput,
    WeightState,
    choose_damping,
    collect_statistics,
    least_squares,
    mean_biases,
)
from effllava_optuna.surgery.importance.criteria import score_units
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery import CalibrationBatch, CompensationTable, LoadedModel
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle

    Widths = Mapping[ComponentId, Sequence[int]]


class SharedMoments:
    """Fits networks on the samples of one draw.

    Args:
        loaded: The model, not arranged.
        folds: Calibration samples in folds.
        widths: By component, the widths below the dense one that get a fit, ascending.
    """

    def __init__(
        self, loaded: LoadedModel, folds: Sequence[Sequence[CalibrationBatch]], widths: Widths
    ) -> None:
        self._loaded, self._widths = loaded, widths
        self._rankings: dict[str, Ranking] = {}
        self._by_fold = [collect_statistics(loaded, loaded.handles, fold) for fold in folds]
        first, *others = self._by_fold
        self._statistics = {
            component: sum((fold[component] for fold in others), start=statistics)
            for component, statistics in first.items()
        }

    @cached_property
    def damping(self) -> dict[ComponentId, float]:
        """Choose the damping of each component under the ranking of ``obs``."""
        obs, damping = self.ranking("obs"), {}
        for handle in self._loaded.handles:
            component = handle.component.id
            weight, order, columns = self._ordered(handle, obs)
            moments = [fold[component].moments for fold in self._by_fold]
            middle = [columns[len(columns) // 2]]
            damping[component] = choose_damping(weight, moments, order, middle)
        return damping

    def ranking(self, importance: str) -> Ranking:
        """Rank the units of all components, once for each importance."""
        if importance not in self._rankings:
            self._rankings[importance] = self._ranked(importance)
        return self._rankings[importance]

    def _ranked(self, importance: str) -> Ranking:
        scores = {
            handle.component.id: score_units(
                self._loaded, handle, importance, self._statistics[handle.component.id]
            )
            for handle in self._loaded.handles
        }
        return Ranking.from_scores(self._loaded.structure, importance, scores)

    def weight_state(self, ranking: Ranking, compensation: str) -> WeightState:
        """Fit the output matrices of all components under a ranking.

        Args:
            ranking: The ranking.
            compensation: ``none``, ``bias`` or ``least-squares``.
        """
        table: CompensationTable | None = None
        if compensation != "none":
            table = {
                (handle.component.id, count // handle.columns): fit
                for handle in self._loaded.handles
                for count, fit in self._fits(handle, ranking, compensation).items()
            }
        return WeightState("benchmark", ranking, (table,), (None,))

    def _fits(
        self, handle: ComponentHandle, ranking: Ranking, compensation: str
    ) -> dict[int, FittedOutput]:
        component, output = handle.component.id, handle.linear(handle.output)
        moments = self._statistics[component].moments
        weight, order, columns = self._ordered(handle, ranking)
        if compensation == "bias":
            biases = mean_biases(weight, output.bias, moments.mean[order], columns)
            return {count: FittedOutput(bias=bias) for count, bias in biases.items()}
        matrix = moments.matrix[order][:, order]
        fit = least_squares(weight, matrix, columns, self.damping[component])
        return {count: FittedOutput(fitted.contiguous()) for count, fitted in fit.weights.items()}

    def _ordered(
        self, handle: ComponentHandle, ranking: Ranking
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Return the output matrix in the order of a ranking, that order, and column counts."""
        units = torch.from_numpy(ranking.units[handle.component.id])
        order = element_indices(units, handle.columns)
        weight = handle.linear(handle.output).weight.detach()[:, order]
        widths = [w for w in self._widths[handle.component.id] if w < handle.component.width]
        return weight, order, [width * handle.columns for width in widths]
