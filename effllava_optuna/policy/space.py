"""Which widths an epoch of the search may use."""

from __future__ import annotations

import hashlib
import json
import operator
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy.component import ComponentId
    from effllava_optuna.policy.cost import Costs
    from effllava_optuna.policy.structure import ModelStructure


@dataclass(frozen=True, slots=True)
class Gene:
    """One parameter of the search: the width of its components.

    Attributes:
        name: Name of the Optuna parameter; the id of the first component.
        components: Positions of its components in the model structure; all are alike.
        widths: Allowed widths, ascending; the dense width is the last.
    """

    name: str
    components: tuple[int, ...]
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise PolicyError(
                f"Gene {self.name} has widths {self.widths}.",
                hint="Give distinct widths in ascending order.",
            )

    def nearest(self, width: float) -> int:
        """Return the allowed width nearest to ``width``; the smaller one of two."""
        above = bisect_left(self.widths, width)
        around = self.widths[max(above - 1, 0) : above + 1]
        return min(around, key=lambda allowed: abs(allowed - width))


@dataclass(frozen=True, slots=True)
class Decoded:
    """The policy that the parameters of a trial stand for.

    Attributes:
        policy: Always admissible.
        snapped: The genes whose parameter was not an allowed width, and was moved to the nearest.
    """

    policy: Policy
    snapped: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """The allowed widths of all genes in one epoch; immutable, identified by its content.

    Attributes:
        epoch: Number of the epoch, from 0.
        structure: The structure of the model.
        genes: In the order of the structure; components without a gene stay dense.
    """

    epoch: int
    structure: ModelStructure
    genes: tuple[Gene, ...]

    @staticmethod
    def of(
        structure: ModelStructure,
        widths: Mapping[ComponentId, Sequence[int]],
        *,
        tied: bool = False,
    ) -> Space:
        """Create the space of epoch 0.

        Args:
            structure: The structure of the model.
            widths: Allowed widths by component, ascending.
            tied: Whether all components of a tower and kind that are alike share one gene, as
                required by configurations with one width a tower. Blocks always have a gene each.

        Raises:
            PolicyError: The widths of a component are outside its range, or lack the dense width.
        """
        members: dict[object, tuple[list[int], tuple[int, ...]]] = {}
        for index, component in enumerate(structure.components):
            allowed = tuple(map(operator.index, widths.get(component.id, ())))
            if not allowed or allowed[-1] != component.width or allowed[0] < component.floor:
                raise PolicyError(
                    f"{component.id} has allowed widths {allowed}.",
                    hint=f"Give widths from {component.floor} up that end in {component.width}.",
                )
            alike = (component.tower, component.kind, component.width, allowed)
            key = alike if tied and component.width > 1 else index
            members.setdefault(key, ([], allowed))[0].append(index)
        genes = [
            Gene(structure.components[indices[0]].id, tuple(indices), allowed)
            for indices, allowed in members.values()
        ]
        return Space(0, structure, tuple(genes))

    @cached_property
    def digest(self) -> str:
        """Return a hash of the content."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    def decode(self, params: Mapping[str, float]) -> Decoded:
        """Convert parameters to a policy; a width that is not allowed moves to the nearest.

        Raises:
            PolicyError: A gene has no parameter.
        """
        widths = [component.width for component in self.structure.components]
        snapped = []
        for gene in self.genes:
            if gene.name not in params:
                raise PolicyError(
                    f"The trial has no parameter {gene.name!r}.",
                    hint="Suggest or enqueue a number for every gene of the space.",
                )
            width = gene.nearest(params[gene.name])
            if width != params[gene.name]:
                snapped.append(gene.name)
            for index in gene.components:
                widths[index] = width
        return Decoded(Policy.of(self.structure, widths), tuple(snapped))

    def encode(self, policy: Policy) -> dict[str, int]:
        """Convert a policy to parameters, moved to allowed widths.

        Raises:
            PolicyError: The policy belongs to another model structure.
        """
        policy.check(self.structure)
        return {gene.name: gene.nearest(policy.widths[gene.components[0]]) for gene in self.genes}

    @property
    def narrowest(self) -> Policy:
        """Return the policy with the narrowest allowed width of each gene."""
        return self.policy([gene.widths[0] for gene in self.genes])

    def policy(self, widths: Sequence[int]) -> Policy:
        """Return the policy with these widths, one for each gene; other components are dense."""
        kept = [component.width for component in self.structure.components]
        for gene, width in zip(self.genes, widths, strict=True):
            for index in gene.components:
                kept[index] = width
        return Policy.of(self.structure, kept)

    def with_width(self, policy: Policy, gene: Gene, width: int) -> Policy:
        """Return ``policy`` with another width of one gene."""
        kept = list(policy.widths)
        for index in gene.components:
            kept[index] = width
        return Policy.of(self.structure, kept)

    def gene_costs(self, costs: Costs) -> dict[str, dict[int, float]]:
        """Return the costs of each allowed width of a gene, all its components together."""
        components = self.structure.components
        return {
            gene.name: {
                width: sum(costs[components[index].id][width] for index in gene.components)
                for width in gene.widths
            }
            for gene in self.genes
        }

    def around(self, elites: Sequence[Policy], *, margin: int, first: Space) -> Space:
        """Create the space of the next epoch: the widths of the elites, and a margin.

        Args:
            elites: The best policies of this epoch; if there are none, the widths stay.
            margin: Number of levels of ``first`` that are added on both sides.
            first: The space of epoch 0, which contains all others. The dense width stays allowed.

        Raises:
            PolicyError: An elite or ``first`` belongs to another model structure.
        """
        for policy in (*elites, Policy.dense(first.structure)):
            policy.check(self.structure)
        genes = []
        for gene, whole in zip(self.genes, first.genes, strict=True):
            used = [
                whole.widths.index(whole.nearest(policy.widths[gene.components[0]]))
                for policy in elites
            ]
            if not used:
                genes.append(gene)
                continue
            low, high = max(min(used) - margin, 0), max(used) + margin
            widths = dict.fromkeys([*whole.widths[low : high + 1], whole.widths[-1]])
            genes.append(replace(gene, widths=tuple(widths)))
        return Space(self.epoch + 1, self.structure, tuple(genes))

    def to_json(self) -> dict[str, Any]:
        """Return the space as JSON; of the model structure, only the digest."""
        return {
            "epoch": self.epoch,
            "structure": self.structure.digest,
            "genes": [
                {
                    "name": gene.name,
                    "components": list(gene.components),
                    "widths": list(gene.widths),
                }
                for gene in self.genes
            ],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any], structure: ModelStructure) -> Space:
        """Read what `to_json` returned.

        Raises:
            PolicyError: The space belongs to another model structure.
        """
        if document["structure"] != structure.digest:
            raise PolicyError(
                f"The space belongs to model structure {document['structure']}, not to "
                f"{structure.digest}.",
                hint="Use the model that the space was made for.",
            )
        return Space(
            document["epoch"],
            structure,
            tuple(
                Gene(gene["name"], tuple(gene["components"]), tuple(gene["widths"]))
                for gene in document["genes"]
            ),
        )
