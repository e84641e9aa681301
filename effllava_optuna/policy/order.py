"""Which units go first: the ranking that turns counts into a network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy.anatomy import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from effllava_optuna.policy.anatomy import Anatomy, Site, SiteId


@dataclass(frozen=True)
class Order:
    """The ranking of the units of every site.

    Attributes:
        anatomy: Digest of the anatomy it belongs to.
        method: How it was made, such as ``taylor``.
        units: For each site, shape ``(width,)``: unit numbers, most important first.
    """

    anatomy: str
    method: str
    units: Mapping[SiteId, NDArray[np.int64]]

    def __post_init__(self) -> None:
        for site, units in self.units.items():
            if not np.array_equal(np.sort(units), np.arange(len(units))):
                raise PolicyError(
                    f"The {self.method} order of {site} does not name each unit once.",
                    hint="Rank the units again; a stored order may be damaged.",
                )

    @staticmethod
    def from_scores(
        anatomy: Anatomy, method: str, scores: Mapping[SiteId, NDArray[np.float64]]
    ) -> Order:
        """Rank units by score; higher means keep; equal scores keep the order of the model.

        Args:
            anatomy: The model's.
            method: How the scores were made.
            scores: For each site, shape ``(width,)``; finite.

        Raises:
            PolicyError: A site has no scores, too few, or one that is not a finite number.
        """
        units = {}
        for site in anatomy.sites:
            alone = [0.0] if site.kind is Kind.BLOCK else []  # nothing to rank in a block
            units[site.id] = ranked(site, method, np.asarray(scores.get(site.id, alone)))
        return Order(anatomy.digest, method, units)

    @cached_property
    def digest(self) -> str:
        """Identify the ranking."""
        content = hashlib.sha256(f"{self.anatomy} {self.method}".encode())
        for site in sorted(self.units):
            content.update(site.encode())
            content.update(self.units[site].astype("<i8").tobytes())
        return content.hexdigest()[:16]


def ranked(site: Site, method: str, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank the units of one site by ``scores``, shape ``(width,)``, as `Order.from_scores` does.

    Raises:
        PolicyError: The scores are too few, or not finite.
    """
    if scores.shape != (site.width,) or not np.isfinite(scores).all():
        raise PolicyError(
            f"{site.id} has no {site.width} finite {method} scores.",
            hint="Check that the model and the samples give finite numbers.",
        )
    return np.argsort(-scores, kind="stable").astype(np.int64)
