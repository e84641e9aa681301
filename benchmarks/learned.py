"""Write what was learned, from the figures: ``python benchmarks/learned.py``.

Each default of the quickstart study is put beside what was measured instead of it; the verdict is
read off the interval of the difference. Nothing is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ablation
import evolution
import projector
import risk
import transfer
from _evidence import (
    CAVEAT,
    EMBEDDED,
    KINDS,
    SECOND,
    Form,
    Lab,
    Mean,
    ahead,
    by_pair,
    markdown,
    mean,
)
from _pool import DRAWN, ETAS, SAMPLES, STATIC, resampled
from _results import HERE, RESULTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rows = Mapping[str, Sequence[Mapping[str, Any]]]


_FEWEST = 5  # pairs, before which nothing is called decided


@dataclass(frozen=True, slots=True)
class Claim:
    """A default, and one thing instead of it.

    Attributes:
        setting: Of the study.
        value: The default.
        other: What was tried instead.
        more: Test accuracy with it, minus that of the default.
        where: Title of the section of RESULTS.md.
    """

    setting: str
    value: str
    other: str
    more: Mean
    where: str

    @property
    def verdict(self) -> str:
        """Say for whom the figures speak."""
        if self.more.count < 2:
            return "not measured"
        if self.more.count < _FEWEST:
            return "too few"
        if not self.more.decided:
            return "undecided"
        return "against the default" if self.more.value > 0 else "for the default"


def compared(
    rows: Rows, default: str, path: Sequence[str], setting: str, value: str, where: str
) -> list[Claim]:
    """Put everything in a table of evidence beside its default."""
    if default not in rows:
        return []
    known = by_pair(rows[default], *path)
    return [
        Claim(setting, value, name, ahead(by_pair(mine, *path), known), where)
        for name, mine in rows.items()
        if name not in (default, "dense")
    ]


def claims(lab: Lab) -> list[Claim]:
    """Gather all that is known for or against a default."""
    test = ("chosen", "test")
    parts = compared(ablation.gather(lab), "the default", test, "", "", ablation.TITLE)
    settings = {
        "refit": ("pruning.refit", "least-squares"),
        "tokens": ("pruning.tokens", "gradient"),
        "order": ("pruning.order", "taylor"),
        "cross-fitting": ("pruning.folds", "2"),
        "accuracy": ("quality.accuracy", "expected"),
        "1 epoch of 12 generations": ("search.epochs", "3"),
        "damping": ("damping", "chosen by folds"),
    }
    found = compared(
        evolution.gather(lab), "NSGA-II, ours", ("one", "test"), "search.sampler", "nsga2",
        evolution.TITLE,
    )  # fmt: skip
    found += compared(
        risk.searches(lab), "0.02, the default", test, "quality.eta", "0.02", risk.TITLE
    )
    for part in parts:
        setting, value = settings[part.other.partition(":")[0]]
        found.append(Claim(setting, value, part.other, part.more, part.where))
    ways = {
        projector.WAYS[way]: mine
        for way, mine in projector.gather(lab).items()
        if "two" not in way
    }
    found += compared(
        ways, projector.WAYS["each"], test, "projector.steps", "16, each epoch", projector.TITLE
    )
    return found


def told_of_pool(lab: Lab) -> str:
    """Say what the pool tells of over-fitting and of risk."""
    sizes = [found for size in SAMPLES if (found := resampled(lab, size))]
    if not sizes:
        return "- The pool has not been asked yet."
    gaps = ", ".join(
        f"{Mean(*one['gap of the pick']).value:+.3f} at {one['samples']}" for one in sizes
    )
    hits = ", ".join(
        f"{Mean(*one['gap, picked by hits']).value:+.3f} at {one['samples']}" for one in sizes
    )
    short = ", ".join(
        f"{one['best on test'][0] - one['test of the pick'][0]:.3f} at {one['samples']}"
        for one in sizes
    )
    at = next(one for one in sizes if one["samples"] == risk.N)
    forms = {name: Mean(*at[f"top {name}"]) for name in (*STATIC, *DRAWN)}
    order = sorted(forms, key=lambda name: -forms[name].value)
    told = "; ".join(f"{name} {forms[name].told('+')}" for name in order)
    nats = {eta: Mean(*at["eta in nats"][f"{eta:g}"]) for eta in ETAS[1:]}
    moved = "; ".join(f"{eta:g}: {found.told('+')}" for eta, found in nats.items())
    gains = {name: at[f"eta {name}"]["chosen"] for name in forms}
    best = "; ".join(
        f"{name} {Mean(*gain[1:]).told('+')} at {gain[0]:g}" for name, gain in gains.items()
    )
    return f"""\
- Choosing on few samples over-fits. Proxy minus test accuracy of the policy that is picked from
  {lab.unit("risk-pool", dict).get("policies", 0)}: {gaps} samples when picked by mean probability;
  {hits} when picked by hits. What the pick falls short of the best of the pool on test: {short}.
- Among the tenth that is best on a proxy of {risk.N}, risk goes with the gap like this (Spearman):
  {told}.
- Test accuracy of the pick with eta in accuracy per nat of the paper's form, minus that of the
  pick with eta 0: {moved}.
- The same by every form in standard deviations of the pool, eta chosen on half of the draws and
  judged on the others: {best}."""


def told_of_transfer(lab: Lab) -> str:
    """Say what a search for one kind of question loses on the others, and on its own gains."""
    rows, places = transfer.gather(lab)
    if transfer.ALL not in rows:
        return "- Transfer has not been measured yet."
    own: list[float] = []
    others: list[float] = []
    for name, mine in rows.items():
        if name == transfer.ALL:
            continue
        for kind in KINDS:
            tests = by_pair(mine, "chosen", "kinds", kind)
            mixed = by_pair(rows[transfer.ALL], "chosen", "kinds", kind)
            pairs = [tests[key] - mixed[key] for key in tests if key in mixed]
            (own if kind == name else others).extend(pairs)
    crossed = [
        place["volumes"][f"{here} > {there}"] - place["volumes"][f"{there} > {there}"]
        for place in places
        for here in transfer.WORKLOADS
        for there in transfer.WORKLOADS
        if here != there
    ]
    return f"""\
- A policy and projector found for one kind of question answer that kind by
  {mean(own).told("+")} better than those found for all kinds, and the other kinds by
  {mean(others).told("+")}.
- A front searched at one latency workload and measured at another: hypervolume
  {mean(crossed).told("+")} against the front searched there."""


def page(lab: Lab) -> str:
    """Write the page."""
    found = claims(lab)
    lines = [
        [f"`{one.setting} = {one.value}`" if "." in one.setting else f"{one.setting} {one.value}",
         one.other, one.more.told("+"), str(one.more.count), one.verdict, one.where]
        for one in found
    ]  # fmt: skip
    head = ["default", "instead of it", "test accuracy more", "pairs", "figures are", "section"]
    against = [one for one in found if one.verdict == "against the default"]
    beaten = "\n".join(
        f"- `{one.setting} = {one.value}`: {one.other} answers {one.more.told('+')} more."
        for one in against
    )
    return f"""# What we learned

Generated by `python benchmarks/learned.py` from `benchmarks/results/evidence`; do not edit.
Sections are those of [RESULTS.md](RESULTS.md). Differences are in test accuracy, paired by draw
(and by model, where there are two; the second began with the weights of the first), with 95 %
intervals; many comparisons are made, so that one in twenty is decided by chance. {CAVEAT}

## Findings

{told_of_pool(lab)}
{told_of_transfer(lab)}

## What the figures say against defaults

{beaten or "None of them is decided against a default."}

## Every default, and what was tried instead

{markdown(head, lines)}
"""


def main() -> None:
    """Write the page."""
    models = {"first": EMBEDDED, "second": SECOND}
    lab = Lab(Form("full", (), 5, models, RESULTS / "evidence", published=False, report=True))
    text = page(lab)
    (HERE / "LEARNED.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
