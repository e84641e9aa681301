"""Write what was learned, from the figures: ``python benchmarks/learned.py``.

The questions are answered in words, and each default of the quickstart study is put beside what
was measured instead of it; whether something is decided is read off the interval of the
difference. Nothing is run.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ablation
import evolution
import numpy as np
import overfit
import projector
import risk
import transfer
from _chart import forest
from _evidence import CAVEAT, EMBEDDED, KINDS, SECOND, Form, Lab
from _means import Mean, ahead, by_pair, markdown, mean
from _pool import DRAWN, ETA, ETAS, SAMPLES, STATIC, resampled
from _results import HERE, RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Rows = Mapping[str, Sequence[Mapping[str, Any]]]

IMAGES = HERE.parent / "docs" / "images"
_FEWEST = 5  # pairs, before which nothing is called decided
_MATTERS = 0.005  # of accuracy: what lies between this and its negative is called the same
_MANY = 1000  # draws: more than any script makes

# What the figures were measured with, and which defaults have followed them; tests hold the code's
# defaults to both.
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
    """A default, and one thing instead of it.

    Attributes:
        setting: Of the study.
        other: What was tried instead.
        more: Test accuracy with it, minus that of the default.
        cost: CPU seconds of its search, as a multiple of the default's; None: it has none.
        where: Title of the section of RESULTS.md.
    """

    setting: str
    other: str
    more: Mean
    cost: float | None
    where: str

    @property
    def verdict(self) -> str:
        """Say for whom the figures speak."""
        if self.more.count < _FEWEST:
            return "too few"
        if max(abs(self.more.low), abs(self.more.high)) < _MATTERS:
            return "the same"
        if not self.more.decided:
            return "undecided"
        return "against the default" if self.more.value > 0 else "for the default"


def compared(
    rows: Rows, default: str, path: Sequence[str], setting: str, where: str
) -> list[Claim]:
    """Put everything in a table of evidence beside its default."""
    if default not in rows:
        return []
    known = by_pair(rows[default], *path)
    spent = _cpu(rows[default])
    found = []
    for name, mine in rows.items():
        if name not in (default, "dense"):
            cost = _cpu(mine)
            ratio = cost / spent if cost and spent else None
            found.append(Claim(setting, name, ahead(by_pair(mine, *path), known), ratio, where))
    return found


def _cpu(rows: Sequence[Mapping[str, Any]]) -> float | None:
    seconds = [row["search_cpu_s"] for row in rows if row.get("search_cpu_s")]
    return float(np.mean(seconds)) if seconds else None


def claims(lab: Lab) -> list[Claim]:
    """Gather all that is known for or against a default."""
    test = ("chosen", "test")
    settings = {
        "refit": "pruning.refit",
        "tokens": "pruning.tokens",
        "order": "pruning.order",
        "cross-fitting": "pruning.folds",
        "accuracy": "quality.accuracy",
        "1 epoch of 12 generations": "search.epochs",
        "damping": "damping by folds",
    }
    one = ("one", "test")
    found = compared(
        evolution.gather(lab), "NSGA-II, ours", one, "search.sampler", evolution.TITLE
    )
    found += compared(risk.searches(lab), "0.02, the default", test, "quality.eta", risk.TITLE)
    at = resampled(lab, risk.N)
    if at:
        found.append(
            Claim("quality.eta", "0, in the pool", Mean(*at["instead none"]), None, risk.TITLE)
        )
        found += [
            Claim("quality.risk", name, Mean(*at[f"instead {name}"]), None, risk.TITLE)
            for name in (*STATIC, *DRAWN)
            if name != STATIC[0]
        ]
    for part in compared(ablation.gather(lab), "the default", test, "", ablation.TITLE):
        setting = settings[part.other.partition(":")[0]]
        found.append(Claim(setting, part.other, part.more, part.cost, part.where))
    ways = {
        projector.WAYS[way]: mine
        for way, mine in projector.gather(lab).items()
        if "two" not in way
    }
    found += compared(ways, projector.WAYS["each"], test, "projector.steps", projector.TITLE)
    order = [*DEFAULTS, "damping by folds"]
    return sorted(found, key=lambda claim: order.index(claim.setting))


def paragraph(text: str) -> str:
    """Break lines where they are long enough."""
    return textwrap.fill(" ".join(text.split()), 99, break_on_hyphens=False)


def points(value: float) -> str:
    """Write an accuracy as points of a hundred."""
    return f"{100 * abs(value):.1f} points"


def decided(more: Mean) -> str:
    """Write a difference in words."""
    if max(abs(more.low), abs(more.high)) < _MATTERS:
        return f"is no different ({more.told('+')})"
    if not more.decided:
        return f"cannot be told from it ({more.told('+')})"
    return f"is {points(more.value)} {'better' if more.value > 0 else 'worse'} ({more.told('+')})"


def listed(names: Iterable[str]) -> str:
    """Join names."""
    *most, last = names
    return f"{'; '.join(most)}; and {last}" if most else last


def told_of_fitting(lab: Lab) -> str:
    """Say whether choosing over-fits."""
    sizes = {size: found for size in SAMPLES if (found := resampled(lab, size))}
    count = lab.unit("risk-pool", dict)["policies"]
    gaps = {size: Mean(*one["gap of the pick"]) for size, one in sizes.items()}
    short = {s: o["best on test"][0] - o["test of the pick"][0] for s, o in sizes.items()}
    at, few, many = risk.N, min(sizes), max(sizes)
    free = Mean(*sizes[at]["gap of all"])
    return paragraph(f"""
        **{"Yes" if gaps[at].low > 0 else "That is not decided"}.** Of {count} policies of one
        cost, the one that is best on {at} samples answers {points(gaps[at].value)} fewer of other
        images than of those {at} ({gaps[at].told("+")}); with {few} samples it is
        {points(gaps[few].value)}, with {many} {points(gaps[many].value)}. All policies together,
        which nobody has chosen, have a gap of {free.told("+")}. What that costs is less: the pick
        is {points(short[at])} below the best of the {count} on test with {at} samples,
        {points(short[many])} with {many}. So the accuracy of a search's winner on its own proxy
        must not be believed; `report` shows test beside it.""")


def told_of_risk(lab: Lab) -> str:
    """Say whether risk earns its place."""
    at = resampled(lab, risk.N)
    forms = {name: Mean(*at[f"top {name}"]) for name in (*STATIC, *DRAWN)}
    gains = {name: Mean(*at[f"eta {name}"]["chosen"][1:]) for name in forms}
    paper, nats = forms[STATIC[0]], Mean(*at["eta in nats"][f"{ETA:g}"])
    says = f"says nothing of the gap between proxy and test ({paper.told('+')})"
    if paper.decided:
        way = "a larger" if paper.value > 0 else "a smaller"
        says = f"goes with {way} gap between proxy and test ({paper.told('+')})"
    winners = [name for name, one in gains.items() if one.low > 0 and one.value > _MATTERS]
    order = sorted(forms, key=lambda name: -forms[name].value)
    lines = [[name, forms[name].told("+"), gains[name].told("+")] for name in order]
    head = [
        "form of risk", "Spearman with the gap, among the best tenth",
        "test accuracy of the pick, more by the form",
    ]  # fmt: skip
    text = f"""
        **{f"By {listed(winners)}" if winners else "No form of it does, here"}.** Among the tenth
        of the pool that is best on {risk.N} samples, a large norm as the paper has it {says}. To
        subtract a form pays only if the pick then answers better; below, eta was chosen on half of
        the draws and judged on the others. (The margin is counted on the proxy itself, whose
        barely right answers are luck in part, so that it goes with the gap and mends nothing.) The
        default, {ETA} a nat of the paper's form, moves the pick by {nats.told("+")}: among
        policies of one cost the norms hardly differ."""
    return f"{paragraph(text)}\n\n{markdown(head, lines)}\n"


def told_of_training(lab: Lab) -> str:
    """Say whether training the projector inside the loop helps."""
    rows = projector.gather(lab)
    tests = {way: by_pair(mine, "chosen", "test") for way, mine in rows.items()}
    more = {w: ahead(tests[w], tests["none"]) for w in ("after", "each", "again")}
    two = ahead(tests["two trained"], tests["two"])
    cost = (_cpu(rows["each"]) or 0.0) / (_cpu(rows["none"]) or 1.0)
    helps = any(one.low > 0 for one in more.values())
    return paragraph(f"""
        **{"It does" if helps else "That cannot be seen here"}.** Against the same search without
        any update, over {more["each"].count} pairs of model and draw: one update after the search
        {decided(more["after"])}; an update each epoch {decided(more["each"])}, for {cost:.1f}
        times the CPU seconds; an update each epoch with all units ranked and fitted anew
        {decided(more["again"])}. The best two-number policy with the same training, against itself
        without: {two.told("+")}. Both models were trained, with their projector, on the very task
        that they are pruned for, so that the projector has little to mend. What a model gains
        whose projector has not seen the task was not measured.""")


def told_of(found: Iterable[Claim], words: Mapping[str, str]) -> str:
    """Say by verdict what is better, worse, or neither."""
    mine = [*found]
    told = []
    for verdict, begins in words.items():
        some = [f"{c.other} ({c.more.value:+.3f})" for c in mine if c.verdict == verdict]
        if some:
            told.append(f"{begins}: {listed(some)}.")
    return " ".join(told)


def told_of_search(found: Sequence[Claim]) -> str:
    """Say whether evolution helps."""
    mine = [claim for claim in found if claim.setting == "search.sampler"]
    simple = [c for c in mine if c.other in ("random", "one number", "two numbers")]
    helps = all(claim.verdict == "for the default" for claim in simple)
    words = {
        "for the default": "Worse than our NSGA-II",
        "against the default": "Better than it",
        "the same": "The same",
        "undecided": "Not to be told from it",
        "too few": "Of too few pairs to say",
    }
    return paragraph(f"""
        **{"Against random and uniform policies it does" if helps else "That is not decided"}.**
        {told_of(mine, words)} (Differences in test accuracy; intervals below.) Damage curves need
        fewer policies measured (95 of 240 here), one site at a time, but give one policy for one
        budget, where a search gives a front. All pay the same share of weights; what their choices
        take when they are run is in the table of results.""")


def told_of_parts(found: Sequence[Claim]) -> str:
    """Say what the parts contribute."""
    words = {
        "for the default": "**Worse than the default**",
        "against the default": "**Better than the default**",
        "the same": "The same",
        "undecided": "Not to be told from the default",
        "too few": "Of too few draws to say",
    }
    told = told_of((c for c in found if c.where == ablation.TITLE), words)
    return paragraph(f"""
        {told} A search finds policies that suit what it is given. Where nothing is searched,
        orders and refits differ more: see
        [Orders, refits and token weights](RESULTS.md#orders-refits-and-token-weights).""")


def told_of_transfer(lab: Lab) -> str:
    """Say what a search for one kind of question loses on the others, and on its own gains."""
    rows, places = transfer.gather(lab)
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
    crossed = mean(
        [
            place["volumes"][f"{here} > {there}"] - place["volumes"][f"{there} > {there}"]
            for place in places
            for here in transfer.WORKLOADS
            for there in transfer.WORKLOADS
            if here != there
        ]
    )
    loss = mean(others)
    return paragraph(f"""
        **Between kinds of question {"no" if loss.high < 0 else "that is not decided"}; between
        latency workloads {"not quite" if crossed.high < 0 else "yes, as far as can be seen"}.** A
        policy and projector found for one kind of question answer that kind by
        {mean(own).told("+")} better than those found for all kinds, and the other kinds by
        {loss.told("+")}: put into the proxy what the pruned model will be asked. The hypervolume
        of a front that was searched at one workload and is measured at another, minus that of the
        front searched there: {crossed.told("+")}.""")


def table_of(setting: str, found: Sequence[Claim]) -> str:
    """Write what was tried instead of a default, and what follows."""
    mine = [claim for claim in found if claim.setting == setting]
    against = [claim.other for claim in mine if claim.verdict == "against the default"]
    lines = [
        [
            claim.other,
            claim.more.told("+"),
            str(claim.more.count),
            claim.verdict,
            f"{claim.cost:.1f}" if claim.cost else "-",
            claim.where,
        ]
        for claim in mine
    ]
    head = [
        "instead of it", "test accuracy more", "pairs", "figures are",
        "CPU of the search, times the default's", "section of the results",
    ]  # fmt: skip
    verdict = (
        f"Decided against it: {listed(against)}." if against else "Nothing is decided against it."
    )
    told = [verdict]
    if setting in DEFAULTS:
        value, now = (json.dumps(known.get(setting)) for known in (DEFAULTS, FOLLOWED))
        told = [f"The default: `{setting} = {value}`.", verdict]
        if setting in FOLLOWED:
            told = [
                f"Measured with `{setting} = {value}`, which was the default.", verdict,
                f"**So the default is `{now}` now.**",
            ]  # fmt: skip
    told.append(WHY.get(setting, ""))
    title = f"`{setting}`" if setting in DEFAULTS else setting.capitalize()
    return f"### {title}\n\n{paragraph(' '.join(told))}\n\n{markdown(head, lines)}"


def pictures(lab: Lab, found: Sequence[Claim]) -> dict[str, str]:
    """Draw the figures, by the name of their file."""

    def of(where: str) -> list[tuple[str, Mean]]:
        return [(claim.other, claim.more) for claim in found if claim.where == where]

    gaps = [
        (f"{size} samples", Mean(*one["gap of the pick"]))
        for size in SAMPLES
        if (one := resampled(lab, size))
    ]
    axis = "test accuracy minus that of the default, 95 % intervals"
    return {
        "evidence-fitting.svg": forest(
            "Proxy minus test accuracy of the best of 500 policies",
            "accuracy, 95 % intervals", gaps,
        ),
        "evidence-search.svg": forest(
            "Instead of our NSGA-II, at one budget", axis, of(evolution.TITLE)
        ),
        "evidence-projector.svg": forest(
            "Instead of training the projector each epoch", axis, of(projector.TITLE)
        ),
        "evidence-parts.svg": forest(
            "Instead of each part of the default", axis, of(ablation.TITLE)
        ),
    }  # fmt: skip


def page(lab: Lab, found: Sequence[Claim], drawn: Iterable[str]) -> str:
    """Write the page, with the pictures whose files are ``drawn``."""
    titles = {
        "fitting": ("Does choosing on 64 samples over-fit the policy?", overfit.TITLE),
        "risk": ("Does the structural-risk term earn its place?", risk.TITLE),
        "projector": ("Does training the projector inside the loop help?", projector.TITLE),
        "search": ("Does evolution help?", evolution.TITLE),
        "parts": ("What does each part contribute?", ablation.TITLE),
        "transfer": ("Does it transfer?", transfer.TITLE),
    }
    told = {
        "fitting": told_of_fitting(lab),
        "risk": told_of_risk(lab),
        "projector": told_of_training(lab),
        "search": told_of_search(found),
        "parts": told_of_parts(found),
        "transfer": told_of_transfer(lab),
    }
    parts = []
    for number, (name, (question, section)) in enumerate(titles.items(), 1):
        file = f"evidence-{name}.svg"
        seen = f"\n\n![{question}](../docs/images/{file})" if file in drawn else ""
        link = f"Figures: [{section}](RESULTS.md#{section.lower().replace(' ', '-')})."
        parts.append(f"### {number}. {question}\n\n{told[name].strip()}\n\n{link}{seen}")
    answers = "\n\n".join(parts)
    settings = dict.fromkeys(claim.setting for claim in found)
    tables = "\n\n".join(table_of(setting, found) for setting in settings)
    etas = ", ".join(f"{eta:g}" for eta in ETAS)
    return f"""# What we learned

Generated by `python benchmarks/learned.py` from `benchmarks/results/evidence`; do not edit.
{CAVEAT}

Differences are in test accuracy, paired by draw of the proxy and seed of the search (and by model,
where there are two: the embedded one, and one trained from other random weights on other batches),
with 95 % intervals; those of the pool are over draws of the proxy from one set of images. What is
called decided has an interval that leaves 0 out; "the same" has one within half a point of 0. Many
comparisons are made: of those that are decided, some are so by chance. A default is changed only
for something that is decided against it; "the default" below is that of the time of measuring.

## Six questions

{answers}

## What each default rests on

Of eta, {etas} were tried.

{tables}
"""


def main() -> None:
    """Write the page and its figures."""
    models = {"first": EMBEDDED, "second": SECOND}
    form = Form("full", (), _MANY, models, RESULTS / "evidence", published=False, report=True)
    lab = Lab(form)
    found = claims(lab)
    drawn = pictures(lab, found)
    text = page(lab, found, drawn)
    (HERE / "LEARNED.md").write_text(text, encoding="utf-8")
    for name, picture in drawn.items():
        (IMAGES / name).write_text(picture, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
