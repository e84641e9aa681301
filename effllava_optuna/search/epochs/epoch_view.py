"""The search space of an epoch in the form that the samplers expect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna.distributions import IntDistribution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from effllava_optuna.policy import CostModel, Policy, Space
    from effllava_optuna.samplers import (
        Allocation,
        ConditionalCostsView,
        Programme,
        ProgrammeView,
        Seed,
        SpaceView,
    )


@dataclass(frozen=True)
class EpochView:
    """An epoch as a sampler sees it.

    Implements `effllava_optuna.samplers.SpaceView` and `effllava_optuna.samplers.ProgrammeView`.

    Attributes:
        space: The allowed widths.
        cost_model: What policies cost, and the limit.
        seeds: What it measures first.
        allocation: Proposes policies from what the seeds have measured; None: nothing.
        programme: Returns dynamic programming over the curves of the epoch, from the same trials.
        weight_state: Digest of the weight state that the values of this epoch belong to.
        predict_latency: Returns the latency of a policy from the latency table, in ms.
        describe_policy: Returns the user attributes of a policy that are known before it is
            measured.
    """

    space: Space
    cost_model: CostModel
    seeds: Sequence[Seed]
    allocation: Allocation | None
    programme: Callable[[Sequence[FrozenTrial]], Programme | None]
    weight_state: str
    predict_latency: Callable[[Policy], float]
    describe_policy: Callable[[Policy], Mapping[str, Any]]

    @property
    def epoch(self) -> int:
        """Return the number of the epoch, from 0."""
        return self.space.epoch

    @cached_property
    def distributions(self) -> dict[str, IntDistribution]:
        """Return the distribution of each gene, the same for the life of the study."""
        return distributions_of(self.space)

    @cached_property
    def levels(self) -> dict[str, tuple[int, ...]]:
        """Return the allowed widths of each gene."""
        return {gene.name: gene.widths for gene in self.space.genes}

    @cached_property
    def costs(self) -> dict[str, tuple[float, ...]]:
        """Return the cost of each width of a gene, all its components together."""
        costs = self.space.gene_costs(self.cost_model.costs)
        return {name: tuple(by_width.values()) for name, by_width in costs.items()}

    @cached_property
    def conditional_costs(self) -> tuple[str, list[dict[str, tuple[float, ...]]]] | None:
        """Return the gene of the image tokens, and the costs at each of its levels.

        None: costs do not depend on the image tokens that are kept.
        """
        model, index = self.cost_model, self.space.structure.tokens
        if not model.by_tokens or index is None:
            return None
        gene = next(gene for gene in self.space.genes if index in gene.components)
        tables = [self.space.gene_costs(model.by_tokens[width]) for width in gene.widths]
        return gene.name, [
            {name: tuple(by_width.values()) for name, by_width in costs.items()}
            for costs in tables
        ]

    @property
    def budget(self) -> float | None:
        """Return the largest feasible cost, rounding errors tolerated; None: no limit."""
        return self.cost_model.tolerated

    @cached_property
    def stamp(self) -> dict[str, Any]:
        """Return the user attributes of every trial of the epoch."""
        return {"space": self.space.digest, "weight_state": self.weight_state}

    def known_values(self, params: Mapping[str, int]) -> tuple[None, float]:
        """Return the latency of a genome; its quality has to be measured."""
        return None, self.predict_latency(self.space.decode(params).policy)

    def is_comparable(self, trial: FrozenTrial) -> bool:
        """Return whether a trial of another epoch was measured under the same weight state."""
        return bool(trial.user_attrs.get("weight_state") == self.weight_state)

    def describe(self, params: Mapping[str, int]) -> Mapping[str, Any]:
        """Return the user attributes of a genome that are known before it is measured."""
        return self.describe_policy(self.space.decode(params).policy)


def distributions_of(space: Space) -> dict[str, IntDistribution]:
    """Return the distribution of each gene: from the floor to the width of its components.

    The step is 1: a larger one would exclude a dense width that is not a multiple of it, and
    Optuna says so only in a warning.
    """
    distributions = {}
    for gene in space.genes:
        component = space.structure.components[gene.components[0]]
        distributions[gene.name] = IntDistribution(component.floor, component.width)
    return distributions


if TYPE_CHECKING:

    def _conforms(view: EpochView) -> tuple[SpaceView, ProgrammeView, ConditionalCostsView]:
        return view, view, view
