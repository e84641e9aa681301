"""The space of an epoch, as the samplers want to see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna.distributions import IntDistribution

from effllava_optuna.samplers import Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import Anatomy, Policy, Space
    from effllava_optuna.samplers import SpaceView
    from effllava_optuna.study.budget import Budget


@dataclass(frozen=True)
class EpochView:
    """One epoch: its space, its budget, what it measures first, and whose values they are.

    Attributes:
        space: The allowed widths.
        anatomy: The model's.
        budget_of_study: What a policy may cost.
        seeds: What generation 0 measures first.
        basis: Digest of the basis that the values of this epoch belong to.
        known: Gives the attributes of a policy that are known before it is measured.
    """

    space: Space
    anatomy: Anatomy
    budget_of_study: Budget
    seeds: Sequence[Seed]
    basis: str
    known: Callable[[Policy], Mapping[str, Any]]

    @property
    def epoch(self) -> int:
        """Count epochs from 0."""
        return self.space.epoch

    @cached_property
    def distributions(self) -> dict[str, IntDistribution]:
        """Give each gene its distribution, the same for the life of the study."""
        return distributions(self.space, self.anatomy)

    @cached_property
    def levels(self) -> dict[str, tuple[int, ...]]:
        """Give each gene its allowed widths."""
        return {gene.name: gene.widths for gene in self.space.genes}

    @cached_property
    def costs(self) -> dict[str, tuple[float, ...]]:
        """Give each width what it costs, at all sites of its gene together."""
        costs, sites = self.budget_of_study.costs, self.anatomy.sites
        return {
            gene.name: tuple(
                sum(costs[sites[site].id][width] for site in gene.sites) for width in gene.widths
            )
            for gene in self.space.genes
        }

    @property
    def budget(self) -> float | None:
        """Give the most that a policy may cost; None: any."""
        return self.budget_of_study.bound

    @cached_property
    def stamp(self) -> dict[str, Any]:
        """Give the user attributes that every trial of the epoch carries."""
        return {"space": self.space.digest, "basis": self.basis}

    def describe(self, params: Mapping[str, int]) -> Mapping[str, Any]:
        """Give the user attributes that are known of a genome before it is measured."""
        return self.known(self.space.decode(params, self.anatomy).policy)


def distributions(space: Space, anatomy: Anatomy) -> dict[str, IntDistribution]:
    """Give each gene its distribution: from its sites' floor to their width, in steps of one.

    A step would cut off a dense width that is no multiple of it; Optuna says so only in a warning.
    """
    found = {}
    for gene in space.genes:
        site = anatomy.sites[gene.sites[0]]
        found[gene.name] = IntDistribution(site.floor, site.width)
    return found


if TYPE_CHECKING:

    def _conforms(view: EpochView) -> SpaceView:
        return view
