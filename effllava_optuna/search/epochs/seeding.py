"""What an epoch measures before its sampler searches: curves, and the programme's policies.

Epoch 0 takes the sensitivity curves of the dense model from calibration, or measures them; each
later epoch measures those of its incumbent, a few levels down and up. Dynamic programming over
the curves gives policies for a range of budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.allocation import (
    allocation_front,
    curve_policies,
    losses_by_widths,
    neighbouring_policies,
    sensitivity_curves,
    uniform_by_kind,
    uniform_policies,
)
from effllava_optuna.policy import Policy
from effllava_optuna.samplers import Seed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from optuna.trial import FrozenTrial

    from effllava_optuna.allocation import Sensitivity
    from effllava_optuna.config.schema import SearchSettings
    from effllava_optuna.policy import CostModel, Costs, Space
    from effllava_optuna.search.evaluator import Evaluator

_MOST_ANCHORS = 6


@dataclass(frozen=True)
class CurveAllocation:
    """Proposes policies from the sensitivity curves that an epoch has measured.

    Attributes:
        space: The space of the epoch.
        centre: The policy that the curves are measured around.
        costs: What policies cost, and the limit.
        count: The most policies.
    """

    space: Space
    centre: Policy
    costs: CostModel
    count: int

    def __call__(self, trials: Sequence[FrozenTrial]) -> list[Seed]:
        """Solve the programme for a range of limits, the largest first.

        Returns:
            Nothing if the centre was not measured, or if no policy near it is within the budget.
        """
        losses = losses_by_widths(
            (self.space.decode(trial.params).policy, -trial.user_attrs["log_probability"])
            for trial in trials
            if "log_probability" in trial.user_attrs
        )
        if self.centre.widths not in losses:
            return []
        curves = sensitivity_curves(self.space, self.centre, losses)
        policies = _allocated(self.space, curves, self.costs, self.count)
        return list(_seeds(self.space, policies, "allocated"))


def allocation_of(
    space: Space, centre: Policy | None, costs: CostModel, search: SearchSettings
) -> CurveAllocation | None:
    """Return what proposes policies from curves around ``centre``; None without curves."""
    return None if centre is None else CurveAllocation(space, centre, costs, _half(search))


def first_seeds(evaluator: Evaluator, costs: CostModel) -> tuple[tuple[Seed, ...], Policy | None]:
    """Return what epoch 0 measures first, and the centre of its curves.

    These are uniform policies, and policies that are allocated by residuals. If curves are to be
    measured (and the search is long enough), they are the points of the curves, and uniform
    policies in the rest of their last generation.
    """
    search, space = evaluator.config.search, evaluator.first_space()
    count = 0
    if search.curves == "measured":
        count = _fitting(search, search.curve_widths, len(space.genes))
    if not count:
        anchors = _anchors(evaluator, costs)
        allocated: Sequence[Policy] = ()
        if search.curves != "none":
            curves = residual_curves(space, evaluator.calibration.residuals)
            allocated = _allocated(space, curves, costs, _half(search))
        allocated = [policy for policy in allocated if policy not in anchors]
        return _seeds(space, anchors, "anchor") + _seeds(space, allocated, "allocated"), None
    points = curve_policies(space, count)
    free = -len(points) % search.population
    anchors = [policy for policy in _anchors(evaluator, costs) if policy not in points][:free]
    seeds = _seeds(space, points, "curve") + _seeds(space, anchors, "anchor")
    return seeds, points[0]


def seeds_in_context(
    space: Space,
    elites: Sequence[Seed],
    known: Collection[tuple[int, ...]],
    search: SearchSettings,
) -> tuple[tuple[Seed, ...], Policy | None]:
    """Return what an epoch after the first measures first, and the centre of its curves.

    Args:
        space: The space of the epoch.
        elites: Elites that are measured again; the first one is the incumbent.
        known: Widths of policies whose values are known under the weight state of the epoch.
        search: The study file.
    """
    levels = max(1, search.trust_region + 1 - space.epoch)  # it shrinks from epoch to epoch
    most = min(levels, search.trust_region)
    count = _fitting(search, 2 * most, len(space.genes), len(elites)) // 2
    if not count:
        return tuple(elites), None
    centre, *others = neighbouring_policies(space, space.decode(elites[0].params).policy, count)
    new = [policy for policy in others if policy.widths not in known]
    measured = {policy.widths for policy in (space.decode(e.params).policy for e in elites)}
    new = [policy for policy in new if policy.widths not in measured]
    return (*elites, *_seeds(space, new, "curve")), centre


def residual_curves(space: Space, residuals: Costs) -> dict[str, dict[int, float]]:
    """Return the sensitivity curves that calibration has estimated, by gene.

    A gene with a component of which nothing is known stays dense.
    """
    components, curves = space.structure.components, {}
    for gene in space.genes:
        known = [residuals.get(components[index].id) for index in gene.components]
        curves[gene.name] = {
            width: sum(row[width] for row in known if row is not None)
            for width in (gene.widths if all(known) else gene.widths[-1:])
        }
    return curves


def _allocated(
    space: Space, sensitivity: Sensitivity, costs: CostModel, count: int
) -> list[Policy]:
    """Solve the programme for ``count`` limits, the largest first; none if nothing is feasible."""
    widest = space.policy([max(sensitivity[gene.name]) for gene in space.genes])
    narrowest = space.policy([min(sensitivity[gene.name]) for gene in space.genes])
    most, least = costs.cost(widest), costs.cost(narrowest)
    if costs.limit is not None:
        most = min(most, costs.limit)
    if most < least:
        return []
    limits = np.linspace(most, least, count).tolist()
    return [*dict.fromkeys(allocation_front(space, sensitivity, costs, limits))]


def _half(search: SearchSettings) -> int:
    return max(1, search.population // 2)


def _fitting(search: SearchSettings, widths: int, genes: int, others: int = 1) -> int:
    """Return how many widths of each gene fit into half of an epoch, at most ``widths``."""
    if search.curves == "none" or search.generations < 2:
        return 0
    free = search.generations * search.population // 2 - others
    return max(0, min(widths, free // max(1, genes)))


def _seeds(space: Space, policies: Sequence[Policy], kind: str) -> tuple[Seed, ...]:
    return tuple(Seed(space.encode(policy), kind) for policy in policies)


def _anchors(evaluator: Evaluator, costs: CostModel) -> Sequence[Policy]:
    """Return uniform policies."""
    structure, widths = evaluator.structure, evaluator.calibration.widths
    grid: Sequence[Policy] = uniform_policies(structure, widths)
    if costs.limit is not None:
        grid = costs.maximal(uniform_by_kind(structure, widths))
    most = min(_MOST_ANCHORS, _half(evaluator.config.search))
    return grid[:: max(1, -(-len(grid) // most))]
