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

    from effllava_optuna.policy.anatomy import Anatomy, SiteId


@dataclass(frozen=True, slots=True)
class Gene:
    """One number of the search: the units that its sites keep.

    Attributes:
        name: Name of the Optuna parameter; the id of its first site.
        sites: Positions in the anatomy of the sites it narrows, all alike.
        widths: Allowed numbers of units, ascending; the dense width is the last.
    """

    name: str
    sites: tuple[int, ...]
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise PolicyError(
                f"Gene {self.name} has widths {self.widths}.",
                hint="Give different widths in ascending order.",
            )

    def nearest(self, count: float) -> int:
        """Give the allowed width that is nearest to ``count``; the smaller one of two."""
        above = bisect_left(self.widths, count)
        around = self.widths[max(above - 1, 0) : above + 1]
        return min(around, key=lambda width: abs(width - count))


@dataclass(frozen=True, slots=True)
class Decoded:
    """What parameters of a trial stand for.

    Attributes:
        policy: Always admissible.
        snapped: The genes whose parameter was no allowed width, and was moved to one.
    """

    policy: Policy
    snapped: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """The allowed widths of all genes in one epoch. Immutable, identified by its content.

    Attributes:
        epoch: Counted from 0.
        anatomy: Digest of the anatomy it belongs to.
        genes: In the order of the anatomy; sites without a gene stay dense.
    """

    epoch: int
    anatomy: str
    genes: tuple[Gene, ...]

    @staticmethod
    def of(
        anatomy: Anatomy, widths: Mapping[SiteId, Sequence[int]], *, tied: bool = False
    ) -> Space:
        """Make the space of epoch 0 from the allowed widths by site id.

        Args:
            anatomy: The model's.
            widths: Ascending, by site id.
            tied: One gene for all sites of a tower and kind that are alike, as configurations
                with one width a tower demand, instead of one a site. Blocks stay single.

        Raises:
            PolicyError: A site's widths are not inside its floor and width, or leave out the
                dense width.
        """
        groups: dict[object, tuple[list[int], tuple[int, ...]]] = {}
        for index, site in enumerate(anatomy.sites):
            allowed = tuple(map(operator.index, widths.get(site.id, ())))
            if not allowed or allowed[-1] != site.width or allowed[0] < site.floor:
                raise PolicyError(
                    f"{site.id} has allowed widths {allowed}.",
                    hint=f"Give widths from {site.floor} up, {site.width} among them.",
                )
            like = (site.tower, site.kind, site.width, allowed)
            key = like if tied and site.width > 1 else index
            groups.setdefault(key, ([], allowed))[0].append(index)
        genes = [
            Gene(anatomy.sites[members[0]].id, tuple(members), allowed)
            for members, allowed in groups.values()
        ]
        return Space(0, anatomy.digest, tuple(genes))

    @cached_property
    def digest(self) -> str:
        """Identify the space."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    def decode(self, params: Mapping[str, float], anatomy: Anatomy) -> Decoded:
        """Read parameters as a policy; what is no allowed width goes to the nearest.

        Raises:
            PolicyError: A gene has no parameter, or the anatomy is another one.
        """
        self._check(anatomy.digest)
        keep = [site.width for site in anatomy.sites]
        snapped = []
        for gene in self.genes:
            if gene.name not in params:
                raise PolicyError(
                    f"The trial has no parameter {gene.name!r}.",
                    hint="Suggest or enqueue a number for every gene of the space.",
                )
            count = gene.nearest(params[gene.name])
            if count != params[gene.name]:
                snapped.append(gene.name)
            for site in gene.sites:
                keep[site] = count
        return Decoded(Policy.of(anatomy, keep), tuple(snapped))

    def encode(self, policy: Policy) -> dict[str, int]:
        """Give the parameters of ``policy``, moved to allowed widths.

        Raises:
            PolicyError: The policy belongs to another anatomy.
        """
        self._check(policy.anatomy)
        return {gene.name: gene.nearest(policy.keep[gene.sites[0]]) for gene in self.genes}

    def around(self, elites: Sequence[Policy], *, margin: int, wide: Space) -> Space:
        """Make the space of the next epoch: what the elites use, and ``margin`` levels beyond.

        Args:
            elites: The best policies of this epoch; none leaves the space as it is.
            margin: How many levels of ``wide`` are added on both sides.
            wide: The space of epoch 0; no gene ever leaves it. The dense width stays allowed.

        Raises:
            PolicyError: An elite or ``wide`` belongs to another anatomy.
        """
        for anatomy in (wide.anatomy, *(elite.anatomy for elite in elites)):
            self._check(anatomy)
        genes = []
        for gene, whole in zip(self.genes, wide.genes, strict=True):
            used = [whole.widths.index(whole.nearest(p.keep[gene.sites[0]])) for p in elites]
            if not used:
                genes.append(gene)
                continue
            low, high = max(min(used) - margin, 0), max(used) + margin
            widths = dict.fromkeys([*whole.widths[low : high + 1], whole.widths[-1]])
            genes.append(replace(gene, widths=tuple(widths)))
        return Space(self.epoch + 1, self.anatomy, tuple(genes))

    def _check(self, anatomy: str) -> None:
        if self.anatomy != anatomy:
            raise PolicyError(
                f"The space belongs to anatomy {self.anatomy}, not to {anatomy}.",
                hint="Use the model that the space was made for.",
            )

    def to_json(self) -> dict[str, Any]:
        """Give the space as JSON."""
        return {
            "epoch": self.epoch,
            "anatomy": self.anatomy,
            "genes": [
                {"name": gene.name, "sites": list(gene.sites), "widths": list(gene.widths)}
                for gene in self.genes
            ],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Space:
        """Read what `to_json` gave."""
        return Space(
            document["epoch"],
            document["anatomy"],
            tuple(
                Gene(gene["name"], tuple(gene["sites"]), tuple(gene["widths"]))
                for gene in document["genes"]
            ),
        )
