"""What an epoch measures before its sampler searches: curves, and the programme's policies.

Epoch 0 takes the sensitivity curves of the dense model from calibration, or measures them; each
later epoch measures those of its incumbent, a few levels down and up. Dynamic programming over
the curves gives policies for a range of budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.allocation import (
    WeightedProgramme,
    allocation_range,
    curve_policies,
    losses_by_widths,
    neighbouring_policies,
    residual_curves,
    sensitivity_curves,
    uniform_by_kind,
    uniform_policies,
)
from effllava_optuna.errors import ConfigError
from effllava_optuna.policy import Policy
from effllava_optuna.samplers import Seed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from effllava_optuna.allocation import Sensitivity
    from effllava_optuna.calibration.calibration import Calibration
    from effllava_optuna.config.schema import SearchSettings
    from effllava_optuna.policy import CostModel, Space
    from effllava_optuna.search.epochs.epoch_registry import Epoch
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
        curves = self.curves(trials)
        if curves is None:
            return []
        policies = allocation_range(self.space, curves, self.costs, self.count)
        return [*_seeds(self.space, policies, "allocated")]

    def curves(self, trials: Sequence[FrozenTrial]) -> Sensitivity | None:
        """Return the curves around the centre; None if it was not measured."""
        losses = losses_by_widths(
            (
                # Not its parameters: those of another epoch would move to widths of this one.
                Policy.of(self.space.structure, trial.user_attrs["widths"]),
                -trial.user_attrs["log_probability"],
            )
            for trial in trials
            if "log_probability" in trial.user_attrs
        )
        if self.centre.widths not in losses:
            return None
        return sensitivity_curves(self.space, self.centre, losses)


@dataclass(frozen=True)
class CurveProgramme:
    """Computes the weighted programme of an epoch; see `effllava_optuna.samplers.ProgrammeView`.

    Attributes:
        space: The space of the epoch.
        costs: What policies cost, and the limit.
        calibration: Has residuals: what narrowing a component alone is estimated to cost.
        allocation: Has the curves that the epoch measures; None: those of the residuals are used.
    """

    space: Space
    costs: CostModel
    calibration: Calibration
    allocation: CurveAllocation | None

    def __call__(self, trials: Sequence[FrozenTrial]) -> WeightedProgramme | None:
        """Return the programme; None if the curves are not measured, or have no second width."""
        if self.allocation is None:
            curves, fewer = _estimated_curves(self.space, self.calibration)
            return WeightedProgramme.of(self.space, curves, self.costs, fewer)
        measured = self.allocation.curves(trials)
        return None if measured is None else WeightedProgramme.of(self.space, measured, self.costs)


def allocation_of(
    epoch: Epoch, costs: CostModel, search: SearchSettings
) -> CurveAllocation | None:
    """Return what proposes policies from the curves of an epoch; None without curves."""
    if epoch.centre is None:
        return None
    seeded = -(-len(epoch.seeds) // search.population)
    count = _allocated(search, search.generations - seeded)
    return CurveAllocation(epoch.space, epoch.centre, costs, count)


def _allocated(search: SearchSettings, generations: int) -> int:
    """Return the number of policies of the programme, if so many generations are left for them.

    The sampler ``allocation`` proposes nothing else.
    """
    if search.sampler == "allocation":
        return max(1, generations * search.population)
    return max(1, search.population // 2)


def first_seeds(evaluator: Evaluator, costs: CostModel) -> tuple[tuple[Seed, ...], Policy | None]:
    """Return what epoch 0 measures first, and the centre of its curves.

    These are uniform policies, and policies that are allocated by residuals. If curves are to be
    measured (and the search is long enough), they are the points of the curves, and uniform
    policies in the rest of their last generation.

    Raises:
        ConfigError: The sampler proposes policies of the programme alone, and there are none.
    """
    search, space = evaluator.config.search, evaluator.first_space()
    points = _curve_points(space, search) if search.curves == "measured" else []
    anchors = _anchors(evaluator, costs)
    if points:
        free = -len(points) % search.population
        anchors = [policy for policy in anchors if policy not in points][:free]
        return _seeds(space, points, "curve") + _seeds(space, anchors, "anchor"), points[0]
    allocated: Sequence[Policy] = ()
    if search.curves != "none":
        curves, fewer = _estimated_curves(space, evaluator.calibration)
        count = _allocated(search, search.generations)
        allocated = allocation_range(space, curves, costs, count, fewer=fewer)
    if search.sampler in ("allocation", "spdy"):
        anchors = ()
        if not allocated:
            raise ConfigError(
                f"{costs.setting}: no policy within this budget prunes only components that have "
                "a residual curve.",
                hint='Use search.curves = "measured", or a larger budget.',
            )
    allocated = [policy for policy in allocated if policy not in anchors]
    return _seeds(space, anchors, "anchor") + _seeds(space, allocated, "allocated"), None


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
    fitting = (_curve_slots(search) - len(elites)) // (2 * max(1, len(space.genes)))
    count = min(levels, search.trust_region, fitting)
    if count < 1:
        return tuple(elites), None
    centre, *others = neighbouring_policies(space, space.decode(elites[0].params).policy, count)
    new = [policy for policy in others if policy.widths not in known]
    measured = {policy.widths for policy in (space.decode(e.params).policy for e in elites)}
    new = [policy for policy in new if policy.widths not in measured]
    return (*elites, *_seeds(space, new, "curve")), centre


def _estimated_curves(
    space: Space, calibration: Calibration
) -> tuple[Sensitivity, Mapping[int, Sensitivity]]:
    """Return the residual curves, and by their number those of fewer image tokens."""
    fewer = {
        tokens: residual_curves(space, residuals)
        for tokens, residuals in calibration.reduced_residuals.items()
    }
    return residual_curves(space, calibration.residuals), fewer


def _curve_points(space: Space, search: SearchSettings) -> list[Policy]:
    """Return the points of the curves of epoch 0, at as many widths as fit; none if none fit."""
    for count in range(search.curve_widths, 0, -1):
        points = curve_policies(space, count)
        if 1 < len(points) <= _curve_slots(search):
            return points
    return []


def _curve_slots(search: SearchSettings) -> int:
    """Return how many slots of an epoch may measure curves.

    Half of an epoch is for the search; with the sampler ``allocation`` its last generation is.
    """
    if search.curves == "none" or search.generations < 2:
        return 0
    if search.sampler == "allocation":
        return (search.generations - 1) * search.population
    return search.generations * search.population // 2


def _seeds(space: Space, policies: Sequence[Policy], kind: str) -> tuple[Seed, ...]:
    return tuple(Seed(space.encode(policy), kind) for policy in policies)


def _anchors(evaluator: Evaluator, costs: CostModel) -> Sequence[Policy]:
    """Return uniform policies."""
    structure, widths = evaluator.structure, evaluator.calibration.widths
    grid: Sequence[Policy] = uniform_policies(structure, widths)
    if costs.limit is not None:
        grid = costs.maximal(uniform_by_kind(structure, widths))
    most = min(_MOST_ANCHORS, evaluator.config.search.population // 2)
    return grid[:: max(1, -(-len(grid) // most))]
