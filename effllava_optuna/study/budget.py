"""What a policy of a study may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.errors import SpecError
from effllava_optuna.policy import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Anatomy, Policy, SiteId
    from effllava_optuna.study.bundle import Bundle
    from effllava_optuna.study.spec import StudySpec

_SLACK = 1e-9  # rounding of a sum must not make a policy too expensive


@dataclass(frozen=True)
class Budget:
    """Costs that add up over sites, and how much a policy may spend.

    What is in a block that is left out costs nothing, but the sum cannot know: it takes it at its
    narrowest off the cost of the block. So the sum is never less than what a policy costs.

    Attributes:
        costs: By site and width; they do not fall with width.
        bound: The most that a policy may cost, in the unit of the costs; None: any.
        unit: Of the costs.
        told: The budget as the study file says it.
    """

    costs: Mapping[SiteId, Mapping[int, float]]
    bound: float | None
    unit: str = ""
    told: str = ""

    def allows(self, anatomy: Anatomy, policy: Policy) -> bool:
        """Tell whether a policy is within the budget."""
        return self.excess(anatomy, policy) <= 0

    def excess(self, anatomy: Anatomy, policy: Policy) -> float:
        """Give by how much a policy is beyond the budget; not positive where it is within."""
        if self.bound is None:
            return 0.0
        spent = sum(
            self.costs[site.id][count]
            for site, count in zip(anatomy.sites, policy.keep, strict=True)
        )
        excess = spent - self.bound
        return excess if excess > _SLACK else min(excess, 0.0)

    def complaint(self, anatomy: Anatomy, policy: Policy) -> str | None:
        """Say in words by how much a policy is beyond the budget; None where it is within."""
        if self.allows(anatomy, policy):
            return None
        return f"{self.excess(anatomy, policy):.4f} {self.unit} beyond the budget ({self.told})"

    def largest(self, anatomy: Anatomy, grid: Sequence[Policy]) -> list[Policy]:
        """Keep the affordable policies of a grid to which no affordable one adds anything."""
        inside = [policy for policy in grid if self.allows(anatomy, policy)]
        return [
            policy
            for policy in inside
            if not any(
                other is not policy
                and all(a >= b for a, b in zip(other.keep, policy.keep, strict=True))
                for other in inside
            )
        ]


def budget_of(spec: StudySpec, anatomy: Anatomy, bundle: Bundle) -> Budget:
    """Make the budget of a study: a share of the weights, milliseconds saved, or none.

    Raises:
        SpecError: No policy is within it.
    """
    search, latency = spec.search, bundle.latency
    if search.speedup is not None:
        saved = {
            site: {width: latency.saved(site, width) for width in widths}
            for site, widths in bundle.widths.items()
        }
        dense_ms = bundle.dense.latency_ms
        budget = Budget(
            _without_contents(anatomy, saved),
            dense_ms / search.speedup - dense_ms,
            "ms",
            f"search.speedup = {search.speedup}",
        )
        narrowest = bundle.narrowest(anatomy)
        if not budget.allows(anatomy, narrowest):
            reach = dense_ms / latency.predict(anatomy, narrowest)
            raise SpecError(
                f"search.speedup = {search.speedup}: the narrowest policy is {reach:.2f} times as "
                "fast as the dense model.",
                hint="Ask for less, or give smaller pruning.shares or a larger latency.batch.",
            )
        return budget
    costs = {
        site.id: {
            width: site.unit_params * width / anatomy.parameters
            for width in bundle.widths[site.id]
        }
        for site in anatomy.sites
    }
    budget = Budget(
        _without_contents(anatomy, costs),
        search.kept_share,
        "of the weights",
        f"search.kept_share = {search.kept_share}",
    )
    narrowest = bundle.narrowest(anatomy)
    if not budget.allows(anatomy, narrowest):
        raise SpecError(
            f"search.kept_share = {search.kept_share}: the narrowest policy keeps "
            f"{narrowest.kept_share(anatomy):.3f}.",
            hint="Allow more, or give smaller pruning.shares.",
        )
    return budget


def _without_contents(
    anatomy: Anatomy, costs: Mapping[SiteId, Mapping[int, float]]
) -> dict[SiteId, Mapping[int, float]]:
    """Take what a block holds at its narrowest off the cost of leaving it out."""
    found = dict(costs)
    for block in anatomy.sites:
        if block.kind is Kind.BLOCK:
            inside = [s for s in anatomy.sites if (s.tower, s.layer) == (block.tower, block.layer)]
            least = sum(min(costs[s.id].values()) for s in inside if s is not block)
            absent = min(costs[block.id][0] - least, costs[block.id][1])
            found[block.id] = {0: absent, 1: costs[block.id][1]}
    return found
