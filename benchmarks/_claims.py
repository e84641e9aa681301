"""The defaults of the quickstart study, and what was measured instead of each one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ablation
import evolution
import numpy as np
import projector
import risk
from _draws import ETA, resampled
from _means import Mean, by_pair, difference
from _risks import DRAWN, STATIC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _means import Rows
    from _records import Record
    from _studies import StudyRunner

FEWEST = 5  # pairs, below which no difference is called decided
SAME = 0.005  # accuracy: differences within this distance from 0 are called the same

# The defaults that the figures are compared with; tests compare the code's with them.
DEFAULTS: dict[str, Any] = {
    "search.sampler": "nsga2",
    "search.curves": "residual",
    "search.screening": True,
    "search.trust_region": 0,
    "quality.eta": ETA,
    "quality.risk": "paper",
    "pruning.importance": "obs",
    "pruning.compensation": "least-squares",
    "pruning.in_context": False,
    "pruning.tokens": "gradient",
    "pruning.folds": 2,
    "quality.accuracy": "expected",
    "search.epochs": 3,
    "projector.steps": 16,
}
REASONS = {
    "quality.eta": "It is the method's, hardly changes the choice among policies of one cost, and "
    "does no harm; `quality.eta = 0` is as good here.",
    "quality.risk": "It is the form that is inferred from the paper.",
    "projector.steps": "It is the method's, and a model whose projector has more to learn may "
    "gain by it; `projector.steps = 0` is as good here, and much cheaper.",
}
_EVALUATIONS = "evaluations"  # the number of policies that a search measures


@dataclass(frozen=True, slots=True)
class Claim:
    """The comparison of a default with one alternative.

    Attributes:
        setting: The setting of the study file.
        other: The alternative.
        gain: Test accuracy with it, minus that of the default.
        cost: CPU seconds of its search, as a multiple of the default's; None without a search.
        section: Title of the page of the benchmark.
    """

    setting: str
    other: str
    gain: Mean
    cost: float | None
    section: str

    @property
    def verdict(self) -> str:
        """Return what the figures decide."""
        if self.gain.count < FEWEST:
            return "too few"
        if max(abs(self.gain.low), abs(self.gain.high)) < SAME:
            return "the same"
        if not self.gain.decided:
            return "undecided"
        return "against the default" if self.gain.value > 0 else "for the default"


def compare(
    rows: Mapping[str, Rows], default: str, path: Sequence[str], setting: str, section: str
) -> list[Claim]:
    """Compare every row of a table with the row of the default.

    Args:
        rows: Records by the name of their row.
        default: Name of the row of the default.
        path: Field of the test accuracy in a record.
        setting: The setting of the study file that the rows differ in.
        section: Title of the page of the benchmark.
    """
    if default not in rows:
        return []
    default_tests, default_cpu = by_pair(rows[default], *path), search_cpu(rows[default])
    claims = []
    for name, records in rows.items():
        if name in (default, "dense"):
            continue
        cpu = search_cpu(records)
        cost = cpu / default_cpu if cpu and default_cpu else None
        gain = difference(by_pair(records, *path), default_tests)
        claims.append(Claim(setting=setting, other=name, gain=gain, cost=cost, section=section))
    return claims


def search_cpu(records: Rows) -> float | None:
    """Return the mean CPU seconds of searches; None if nothing was searched."""
    seconds = [record["search_cpu_s"] for record in records if record.get("search_cpu_s")]
    return float(np.mean(seconds)) if seconds else None


# Setting of the study file that a row of the ablation changes, by the first part of its name.
_ABLATED = {
    "compensation": "pruning.compensation",
    "tokens": "pruning.tokens",
    "importance": "pruning.importance",
    "cross-fitting": "pruning.folds",
    "accuracy": "quality.accuracy",
    "1 epoch of 12 generations": "search.epochs",
}


def all_claims(runner: StudyRunner) -> list[Claim]:
    """Return all comparisons with a default, in the order of `DEFAULTS`."""
    test = ("chosen", "test")
    claims = _evolution_claims(runner)
    claims += compare(risk.searches(runner), risk.REFERENCE, test, "quality.eta", risk.TITLE)
    claims += _pool_claims(resampled(runner, risk.N))
    ablated = ablation.gather(runner)
    for claim in compare(ablated, ablation.REFERENCE, test, "", ablation.TITLE):
        claims.append(replace(claim, setting=_ABLATED[claim.other.partition(":")[0]]))
    variants = {
        projector.VARIANTS[name]: records
        for name, records in projector.gather(runner).items()
        if not name.startswith((projector.UNIFORM, projector.UNCOMPENSATED))
    }
    default = projector.VARIANTS["each"]
    claims += compare(variants, default, test, "projector.steps", projector.TITLE)
    settings = [*DEFAULTS, _EVALUATIONS]
    return sorted(claims, key=lambda claim: settings.index(claim.setting))


def _evolution_claims(runner: StudyRunner) -> list[Claim]:
    """Return the claims about searches and baselines; a baseline is compared with the sampler."""
    settings = {search.name: search.setting for search in evolution.SEARCHES.values()}
    return [
        replace(claim, setting=settings.get(claim.other, claim.setting))
        for claim in compare(
            evolution.gather(runner),
            evolution.REFERENCE,
            ("choice", "test"),
            "search.sampler",
            evolution.TITLE,
        )
    ]


def _pool_claims(record: Record) -> list[Claim]:
    """Return the claims about risk from choices in the pool, by one size of the proxy."""
    if not record:
        return []
    differences = [("quality.eta", "0, in the pool", record["instead none"])]
    differences += [
        ("quality.risk", name, record[f"instead {name}"])
        for name in (*STATIC, *DRAWN)
        if name != STATIC[0]
    ]
    return [
        Claim(setting=setting, other=name, gain=Mean(*parts), cost=None, section=risk.TITLE)
        for setting, name, parts in differences
    ]
