"""What calibration publishes once, before trial 0, for everybody and for every resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import Kind, Order, Policy, SiteId
from effllava_optuna.study.tables import by_width, facts_of, restored_table
from effllava_optuna.surgery import Fitted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import Anatomy
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.surgery import Refit

_PARTS = ("weight", "bias")
FORMAT = 3  # 1 had no biases, 2 no errors of the latency table one by one


@dataclass(frozen=True)
class Dense:
    """The model as it was loaded.

    Attributes:
        accuracy: Share of right answers on the proxy.
        expected: Mean probability of the right answer there.
        latency_ms: Of the workload, by the table.
        parameters: Of the whole model.
        gflops: Of projector and decoder, for the whole workload's prefill.
        memory_mb: Of the refit tables.
    """

    accuracy: float
    expected: float
    latency_ms: float
    parameters: int
    gflops: float
    memory_mb: float


@dataclass(frozen=True)
class Bundle:
    """Order, refit tables, latency and risk tables, dense values.

    Attributes:
        order: The ranking of the units.
        refits: By site and count: fitted on the whole proxy, then without each fold. None where
            the spec asks for no refit.
        widths: Allowed widths of epoch 0, by site.
        risk: Each site's share of Omega, by width.
        latency: Milliseconds by width.
        damping: Chosen for each site.
        effective_tokens: Of each site, under its token weights.
        dense: The dense model's values.
        reference: Corner of the hypervolume: accuracy of guessing, 1.05 x dense latency.
    """

    order: Order
    refits: tuple[Refit | None, ...]
    widths: Mapping[SiteId, tuple[int, ...]]
    risk: Mapping[SiteId, Mapping[int, float]]
    latency: LatencyTable
    damping: Mapping[SiteId, float]
    effective_tokens: Mapping[SiteId, float]
    dense: Dense
    reference: tuple[float, float]

    def narrowest(self, anatomy: Anatomy) -> Policy:
        """Give the smallest policy that there is."""
        return Policy.of(anatomy, [self.widths[site.id][0] for site in anatomy.sites])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Give the part that is stored as tensors."""
        stored = {
            f"order/{site}": torch.from_numpy(units) for site, units in self.order.units.items()
        }
        for fit, refit in enumerate(self.refits):
            for (site, count), fitted in (refit or {}).items():
                for part in _PARTS:
                    tensor = getattr(fitted, part)
                    if tensor is not None:
                        stored[f"refit/{fit}/{site}/{count}/{part}"] = tensor
        return stored

    def facts(self) -> dict[str, Any]:
        """Give the part that is stored as JSON."""
        return {
            "format": FORMAT,
            "method": self.order.method,
            "fits": [refit is not None for refit in self.refits],
            "widths": {site: list(widths) for site, widths in self.widths.items()},
            "risk": self.risk,
            "latency": facts_of(self.latency),
            "damping": self.damping,
            "effective_tokens": self.effective_tokens,
            "dense": asdict(self.dense),
            "reference": list(self.reference),
        }

    @staticmethod
    def restored(
        anatomy: Anatomy, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> Bundle:
        """Read what `facts` and `tensors` gave.

        Raises:
            StudyError: Another version gave them.
        """
        if facts.get("format") != FORMAT:
            raise StudyError(
                f"The calibration of this study has format {facts.get('format', 1)}, this version "
                f"reads {FORMAT}.",
                hint="Go on with the version that began the study, or begin a new one.",
            )
        units = {
            site.id: tensors[f"order/{site.id}"].numpy().astype(np.int64) for site in anatomy.sites
        }
        refits: list[dict[tuple[SiteId, int], Fitted] | None] = [
            {} if fitted else None for fitted in facts["fits"]
        ]
        for name, tensor in tensors.items():
            kind, *rest = name.split("/")
            if kind == "refit":
                fit, site, count, part = rest
                mine = refits[int(fit)]
                if mine is not None:
                    key = SiteId(site), int(count)
                    mine[key] = replace(mine.get(key, Fitted()), **{part: tensor})
        return Bundle(
            Order(anatomy.digest, facts["method"], units),
            tuple(refits),
            {SiteId(site): tuple(widths) for site, widths in facts["widths"].items()},
            by_width(facts["risk"]),
            restored_table(facts["latency"]),
            facts["damping"],
            facts["effective_tokens"],
            Dense(**facts["dense"]),
            (facts["reference"][0], facts["reference"][1]),
        )


def widths_of(anatomy: Anatomy, spec: StudySpec) -> dict[SiteId, tuple[int, ...]]:
    """Give each site the widths that the spec's shares stand for; the dense width among them."""
    return {
        site.id: (0, 1)
        if site.kind is Kind.BLOCK
        else _widths(site.width, site.floor, _step(site.kind, spec), spec.pruning.shares)
        for site in anatomy.sites
    }


def _step(kind: Kind, spec: StudySpec) -> int:
    return spec.pruning.multiple_of if kind is Kind.MLP else 1


def _widths(width: int, floor: int, step: int, shares: Sequence[float]) -> tuple[int, ...]:
    counts = {max(floor, min(step, width), round(share * width / step) * step) for share in shares}
    return tuple(sorted({count for count in counts if count < width} | {width}))
