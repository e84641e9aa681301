"""How many units each site keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy.anatomy import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy.anatomy import Anatomy, Site, SiteId


@dataclass(frozen=True, slots=True)
class Policy:
    """How many units each site keeps; made by `of`, `uniform` or `dense`, which check it.

    Attributes:
        anatomy: Digest of the anatomy it belongs to.
        keep: Units kept, one number for each site of the anatomy, in its order.

    Example:
        >>> from effllava_optuna.policy import Anatomy, Kind, Site
        >>> anatomy = Anatomy(
        ...     (
        ...         Site("language", 0, Kind.ATTN, 4, 100),
        ...         Site("language", 0, Kind.MLP, 384, 10),
        ...     )
        ... )
        >>> Policy.uniform(anatomy, keep=0.5).keep
        (2, 192)
        >>> Policy.uniform(anatomy, keep={"attn": 1.0, "mlp": 0.5}).kept_share(anatomy)
        0.5471698113207547
    """

    anatomy: str
    keep: tuple[int, ...]

    @staticmethod
    def of(anatomy: Anatomy, keep: Sequence[int] | Mapping[str, int]) -> Policy:
        """Keep ``keep`` units: one number a site, or by site id (others stay dense).

        Raises:
            PolicyError: A number is missing, out of range, or for a site that does not exist.
        """
        if isinstance(keep, Mapping):
            unknown = set(keep) - {site.id for site in anatomy.sites}
            if unknown:
                raise PolicyError(
                    f"There is no site {sorted(unknown)[0]!r}.",
                    hint=f"The first site of this model is {anatomy.sites[0].id!r}.",
                )
            keep = [keep.get(site.id, site.width) for site in anatomy.sites]
        if len(keep) != len(anatomy.sites):
            raise PolicyError(
                f"The policy has {len(keep)} numbers for {len(anatomy.sites)} sites.",
                hint="Give one number for each site, in the order of the anatomy.",
            )
        return Policy(
            anatomy.digest,
            tuple(_admitted(site, count) for site, count in zip(anatomy.sites, keep, strict=True)),
        )

    @staticmethod
    def uniform(anatomy: Anatomy, *, keep: float | Mapping[str, float]) -> Policy:
        """Keep the same share everywhere, or one share for each kind of site; and every block.

        Args:
            anatomy: The model's.
            keep: A share in (0, 1], or such shares by kind (``attn``, ``mlp``). Counts are
                rounded to the nearest unit, and never fall below a site's floor.

        Raises:
            PolicyError: A share is outside (0, 1], or a kind is missing.
        """
        shares = keep if isinstance(keep, Mapping) else dict.fromkeys(Kind, keep)
        counts = []
        for site in anatomy.sites:
            share = 1.0 if site.kind is Kind.BLOCK else shares.get(site.kind)
            if share is None or not 0 < share <= 1:
                raise PolicyError(
                    f"{site.kind} sites cannot keep a share of {share}.",
                    hint="Use a number above 0, up to 1.",
                )
            counts.append(max(site.floor, round(share * site.width)))
        return Policy.of(anatomy, counts)

    @staticmethod
    def dense(anatomy: Anatomy) -> Policy:
        """Keep everything."""
        return Policy(anatomy.digest, tuple(site.width for site in anatomy.sites))

    @property
    def digest(self) -> str:
        """Identify the policy."""
        return hashlib.sha256(f"{self.anatomy} {self.keep}".encode()).hexdigest()[:16]

    def kept_share(self, anatomy: Anatomy) -> float:
        """Give the share of the prunable parameters that stay, in (0, 1]."""
        return self.parameters(anatomy) / anatomy.parameters

    def parameters(self, anatomy: Anatomy) -> int:
        """Count the prunable parameters that stay."""
        kept = self.working(anatomy)
        return sum(kept[site.id] * site.unit_params for site in anatomy.sites)

    def working(self, anatomy: Anatomy) -> dict[SiteId, int]:
        """Give the units that compute, by site: none in a block that is left out."""
        self.check(anatomy)
        pairs = list(zip(anatomy.sites, self.keep, strict=True))
        gone = {
            (site.tower, site.layer)
            for site, count in pairs
            if site.kind is Kind.BLOCK and not count
        }
        return {s.id: 0 if (s.tower, s.layer) in gone else count for s, count in pairs}

    def check(self, anatomy: Anatomy) -> None:
        """Refuse another model's anatomy.

        Raises:
            PolicyError: The policy was made for another anatomy.
        """
        if self.anatomy != anatomy.digest:
            raise PolicyError(
                f"The policy belongs to anatomy {self.anatomy}, the model has {anatomy.digest}.",
                hint="Use the model that the policy was made for.",
            )


def _admitted(site: Site, count: object) -> int:
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise PolicyError(
            f"{site.id} cannot keep {count!r} units.", hint="Use a whole number of units."
        )
    number = int(count.__index__())
    if not site.floor <= number <= site.width:
        raise PolicyError(
            f"{site.id} cannot keep {number} of {site.width} units.",
            hint=f"Use a number from {site.floor} to {site.width}.",
        )
    return number
