"""The defaults of the quickstart study, and what was measured instead of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ablation
import evolution
import numpy as np
import projector
import risk
from _draws import ETA, resampled
from _means import Mean, ahead, by_pair
from _risks import DRAWN, STATIC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _records import Record
    from _studies import StudyRunner

    Rows = Mapping[str, Sequence[Record]]

FEWEST = 5  # pairs, below which no difference is called decided
SAME = 0.005  # of accuracy: differences between this and its negative are called the same

# The defaults when the figures were measured, those that were changed afterwards, and the reasons
# that the page gives; tests compare the code's defaults with them.
DEFAULTS: dict[str, Any] = {
    "search.sampler": "nsga2",
    "quality.eta": ETA,
    "quality.risk": "paper",
    "pruning.order": "taylor",
    "pruning.refit": "least-squares",
    "pruning.tokens": "gradient",
    "pruning.folds": 2,
    "quality.accuracy": "expected",
    "search.epochs": 3,
    "projector.steps": 16,
}
FOLLOWED = {"pruning.order": "obs"}
WHY = {
    "pruning.order": "Of the two that are better, `obs` is ahead in hypervolume, too, keeps most "
    "where nothing is searched, and is nearest to the method, which goes by the optimal brain "
    "surgeon; `magnitude` looks at no sample. `obs` takes time with the cube of a site's width: "
    "the studies of large models here stay with `taylor`.",
    "quality.eta": "It is the method's, hardly moves the choice among policies of one cost, and "
    "does no harm; `quality.eta = 0` is as good here.",
    "quality.risk": "It is the form that is inferred of the paper.",
    "projector.steps": "It is the method's, and a model whose projector has more to mend may gain "
    "by it; `projector.steps = 0` is as good here, and much cheaper.",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A default, compared with one alternative.

    Attributes:
        setting: Of the study file.
        other: The alternative.
        more: Test accuracy with it, minus that of the default.
        cost: CPU seconds of its search, as a multiple of the default's; None without a search.
        where: Title of the section of RESULTS.md.
    """

    setting: str
    other: str
    more: Mean
    cost: float | None
    where: str

    @property
    def verdict(self) -> str:
        """Say what the figures decide."""
        if self.more.count < FEWEST:
            return "too few"
        if max(abs(self.more.low), abs(self.more.high)) < SAME:
            return "the same"
        if not self.more.decided:
            return "undecided"
        return "against the default" if self.more.value > 0 else "for the default"


def compared(
    rows: Rows, default: str, path: Sequence[str], setting: str, where: str
) -> list[Claim]:
    """Compare every row of a table of evidence with the row of its default.

    Args:
        rows: Records by the name of their row.
        default: Name of the row of the default.
        path: Field of the test accuracy in a record.
        setting: Of the study file, for which the default stands.
        where: Title of the section of RESULTS.md.
    """
    if default not in rows:
        return []
    tests, cost = by_pair(rows[default], *path), search_cpu(rows[default])
    others = {name: records for name, records in rows.items() if name not in (default, "dense")}
    return [
        Claim(
            setting, name, ahead(by_pair(records, *path), tests),
            spent / cost if (spent := search_cpu(records)) and cost else None, where,
        )
        for name, records in others.items()
    ]  # fmt: skip


def search_cpu(records: Sequence[Record]) -> float | None:
    """Average the CPU seconds of searches; None if nothing was searched."""
    seconds = [record["search_cpu_s"] for record in records if record.get("search_cpu_s")]
    return float(np.mean(seconds)) if seconds else None


# Setting of the study file that a row of the ablation is about, by how its name begins.
_ABLATED = {
    "refit": "pruning.refit",
    "tokens": "pruning.tokens",
    "order": "pruning.order",
    "cross-fitting": "pruning.folds",
    "accuracy": "quality.accuracy",
    "1 epoch of 12 generations": "search.epochs",
    "damping": "damping by folds",
}


def claims(runner: StudyRunner) -> list[Claim]:
    """Return all comparisons with a default, in the order of `DEFAULTS`."""
    test = ("chosen", "test")
    every = compared(
        evolution.gather(runner), "NSGA-II, ours", ("one", "test"), "search.sampler",
        evolution.TITLE,
    )  # fmt: skip
    searches = risk.searches(runner)
    every += compared(searches, "0.02, the default", test, "quality.eta", risk.TITLE)
    every += _pool_claims(resampled(runner, risk.N))
    for claim in compared(ablation.gather(runner), "the default", test, "", ablation.TITLE):
        every.append(replace(claim, setting=_ABLATED[claim.other.partition(":")[0]]))
    ways = {
        projector.WAYS[way]: records
        for way, records in projector.gather(runner).items()
        if "two" not in way
    }
    every += compared(ways, projector.WAYS["each"], test, "projector.steps", projector.TITLE)
    order = [*DEFAULTS, _ABLATED["damping"]]
    return sorted(every, key=lambda claim: order.index(claim.setting))


def _pool_claims(at: Record) -> list[Claim]:
    """Return what choosing from the pool says of risk; ``at`` is the record of one proxy size."""
    if not at:
        return []
    differences = [("quality.eta", "0, in the pool", at["instead none"])]
    differences += [
        ("quality.risk", name, at[f"instead {name}"])
        for name in (*STATIC, *DRAWN)
        if name != STATIC[0]
    ]
    return [
        Claim(setting, name, Mean(*parts), None, risk.TITLE)
        for setting, name, parts in differences
    ]
