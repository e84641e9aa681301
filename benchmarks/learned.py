"""Write what was learned, from the figures: ``python benchmarks/learned.py``.

The questions are answered in words, and each default of the quickstart study is compared with
its alternatives (`_claims.py`): the interval of the difference tells whether something is decided.
Nothing is run.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import ablation
import evolution
import overfit
import projector
import risk
import transfer
from _cases import KINDS
from _chart import forest
from _claims import DEFAULTS, FOLLOWED, SAME, WHY, claims, search_cpu
from _draws import ETA, ETAS, SAMPLES, resampled
from _evidence import CAVEAT, EMBEDDED, SECOND, Form
from _means import Mean, ahead, by_pair, markdown, mean
from _pool import pool_record
from _results import HERE, RESULTS
from _risks import DRAWN, STATIC
from _studies import StudyRunner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from _claims import Claim

IMAGES = HERE.parent / "docs" / "images"
_MANY = 1000  # draws: more than any script makes


def paragraph(text: str) -> str:
    """Break lines where they are long enough."""
    return textwrap.fill(" ".join(text.split()), 99, break_on_hyphens=False)


def points(value: float) -> str:
    """Write an accuracy as points of a hundred."""
    return f"{100 * abs(value):.1f} points"


def decided(more: Mean) -> str:
    """Write a difference in words."""
    if max(abs(more.low), abs(more.high)) < SAME:
        return f"is no different ({more.text('+')})"
    if not more.decided:
        return f"cannot be told from it ({more.text('+')})"
    return f"is {points(more.value)} {'better' if more.value > 0 else 'worse'} ({more.text('+')})"


def listed(names: Iterable[str]) -> str:
    """Join names."""
    *most, last = names
    return f"{'; '.join(most)}; and {last}" if most else last


def fitting_answer(runner: StudyRunner) -> str:
    """Say whether choosing over-fits."""
    sizes = {size: record for size in SAMPLES if (record := resampled(runner, size))}
    count = pool_record(runner)["policies"]
    gaps = {size: Mean(*one["gap of the pick"]) for size, one in sizes.items()}
    short = {s: o["best on test"][0] - o["test of the pick"][0] for s, o in sizes.items()}
    at, few, many = risk.N, min(sizes), max(sizes)
    free = Mean(*sizes[at]["gap of all"])
    return paragraph(f"""
        **{"Yes" if gaps[at].low > 0 else "That is not decided"}.** Of {count} policies of one
        cost, the one that is best on {at} samples answers {points(gaps[at].value)} fewer of other
        images than of those {at} ({gaps[at].text("+")}); with {few} samples it is
        {points(gaps[few].value)}, with {many} {points(gaps[many].value)}. All policies together,
        which nobody has chosen, have a gap of {free.text("+")}. What that costs is less: the pick
        is {points(short[at])} below the best of the {count} on test with {at} samples,
        {points(short[many])} with {many}. So the accuracy of a search's winner on its own proxy
        must not be believed; `report` shows test beside it.""")


def risk_answer(runner: StudyRunner) -> str:
    """Say whether risk earns its place."""
    at = resampled(runner, risk.N)
    forms = {name: Mean(*at[f"top {name}"]) for name in (*STATIC, *DRAWN)}
    gains = {name: Mean(*at[f"eta {name}"]["chosen"][1:]) for name in forms}
    paper, nats = forms[STATIC[0]], Mean(*at["eta in nats"][f"{ETA:g}"])
    says = f"says nothing of the gap between proxy and test ({paper.text('+')})"
    if paper.decided:
        way = "a larger" if paper.value > 0 else "a smaller"
        says = f"goes with {way} gap between proxy and test ({paper.text('+')})"
    winners = [name for name, one in gains.items() if one.low > 0 and one.value > SAME]
    order = sorted(forms, key=lambda name: -forms[name].value)
    lines = [[name, forms[name].text("+"), gains[name].text("+")] for name in order]
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
        default, {ETA} a nat of the paper's form, moves the pick by {nats.text("+")}: among
        policies of one cost the norms hardly differ."""
    return f"{paragraph(text)}\n\n{markdown(head, lines)}\n"


def training_answer(runner: StudyRunner) -> str:
    """Say whether training the projector inside the loop helps."""
    rows = projector.gather(runner)
    tests = {way: by_pair(records, "chosen", "test") for way, records in rows.items()}
    more = {w: ahead(tests[w], tests["none"]) for w in ("after", "each", "again")}
    two = ahead(tests["two trained"], tests["two"])
    cost = (search_cpu(rows["each"]) or 0.0) / (search_cpu(rows["none"]) or 1.0)
    helps = any(one.low > 0 for one in more.values())
    return paragraph(f"""
        **{"It does" if helps else "That cannot be seen here"}.** Against the same search without
        any update, over {more["each"].count} pairs of model and draw: one update after the search
        {decided(more["after"])}; an update each epoch {decided(more["each"])}, for {cost:.1f}
        times the CPU seconds; an update each epoch with all units ranked and fitted anew
        {decided(more["again"])}. The best two-number policy with the same training, against itself
        without: {two.text("+")}. Both models were trained, with their projector, on the very task
        that they are pruned for, so that the projector has little to mend. What a model gains
        whose projector has not seen the task was not measured.""")


def by_verdict(claims_of_part: Sequence[Claim], words: Mapping[str, str]) -> str:
    """List the alternatives to the default by verdict, each list after its words."""
    sentences = []
    for verdict, start in words.items():
        some = [f"{c.other} ({c.more.value:+.3f})" for c in claims_of_part if c.verdict == verdict]
        if some:
            sentences.append(f"{start}: {listed(some)}.")
    return " ".join(sentences)


def search_answer(every: Sequence[Claim]) -> str:
    """Say whether evolution helps."""
    of_search = [claim for claim in every if claim.setting == "search.sampler"]
    simple = [c for c in of_search if c.other in ("random", "one number", "two numbers")]
    helps = all(claim.verdict == "for the default" for claim in simple)
    words = {
        "for the default": "Worse than our NSGA-II",
        "against the default": "Better than it",
        "the same": "The same",
        "undecided": "Not to be told from it",
        "too few": "Of too few pairs to say",
    }
    lists = by_verdict(of_search, words)
    return paragraph(f"""
        **{"Against random and uniform policies it does" if helps else "That is not decided"}.**
        {lists} (Differences in test accuracy; intervals below.) Damage curves need
        fewer policies measured (95 of 240 here), one site at a time, but give one policy for one
        budget, where a search gives a front. All pay the same share of weights; what their choices
        take when they are run is in the table of results.""")


def parts_answer(every: Sequence[Claim]) -> str:
    """Say what the parts contribute."""
    words = {
        "for the default": "**Worse than the default**",
        "against the default": "**Better than the default**",
        "the same": "The same",
        "undecided": "Not to be told from the default",
        "too few": "Of too few draws to say",
    }
    lists = by_verdict([claim for claim in every if claim.where == ablation.TITLE], words)
    return paragraph(f"""
        {lists} A search finds policies that suit what it is given. Where nothing is searched,
        orders and refits differ more: see
        [Orders, refits and token weights](RESULTS.md#orders-refits-and-token-weights).""")


def transfer_answer(runner: StudyRunner) -> str:
    """Say what a search for one kind of question loses on the others, and on its own gains."""
    rows, places = transfer.gather(runner)
    own: list[float] = []
    others: list[float] = []
    for name, records in rows.items():
        if name == transfer.ALL:
            continue
        for kind in KINDS:
            tests = by_pair(records, "chosen", "kinds", kind)
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
        {mean(own).text("+")} better than those found for all kinds, and the other kinds by
        {loss.text("+")}: put into the proxy what the pruned model will be asked. The hypervolume
        of a front that was searched at one workload and is measured at another, minus that of the
        front searched there: {crossed.text("+")}.""")


def table_of(setting: str, every: Sequence[Claim]) -> str:
    """Write the comparisons with a default, and what follows from them."""
    of_setting = [claim for claim in every if claim.setting == setting]
    against = [claim.other for claim in of_setting if claim.verdict == "against the default"]
    lines = [
        [
            claim.other,
            claim.more.text("+"),
            str(claim.more.count),
            claim.verdict,
            f"{claim.cost:.1f}" if claim.cost else "-",
            claim.where,
        ]
        for claim in of_setting
    ]
    head = [
        "instead of it", "test accuracy more", "pairs", "figures are",
        "CPU of the search, times the default's", "section of the results",
    ]  # fmt: skip
    verdict = (
        f"Decided against it: {listed(against)}." if against else "Nothing is decided against it."
    )
    sentences = [verdict]
    if setting in DEFAULTS:
        value, now = (json.dumps(known.get(setting)) for known in (DEFAULTS, FOLLOWED))
        sentences = [f"The default: `{setting} = {value}`.", verdict]
        if setting in FOLLOWED:
            sentences = [
                f"Measured with `{setting} = {value}`, which was the default.", verdict,
                f"**So the default is `{now}` now.**",
            ]  # fmt: skip
    sentences.append(WHY.get(setting, ""))
    title = f"`{setting}`" if setting in DEFAULTS else setting.capitalize()
    return f"### {title}\n\n{paragraph(' '.join(sentences))}\n\n{markdown(head, lines)}"


def pictures(runner: StudyRunner, every: Sequence[Claim]) -> dict[str, str]:
    """Draw the figures, by the name of their file."""

    def of(where: str) -> list[tuple[str, Mean]]:
        return [(claim.other, claim.more) for claim in every if claim.where == where]

    gaps = [
        (f"{size} samples", Mean(*one["gap of the pick"]))
        for size in SAMPLES
        if (one := resampled(runner, size))
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


def page(runner: StudyRunner, every: Sequence[Claim], drawn: Iterable[str]) -> str:
    """Write the page, with the pictures whose files are ``drawn``."""
    titles = {
        "fitting": ("Does choosing on 64 samples over-fit the policy?", overfit.TITLE),
        "risk": ("Does the structural-risk term earn its place?", risk.TITLE),
        "projector": ("Does training the projector inside the loop help?", projector.TITLE),
        "search": ("Does evolution help?", evolution.TITLE),
        "parts": ("What does each part contribute?", ablation.TITLE),
        "transfer": ("Does it transfer?", transfer.TITLE),
    }
    answer_of = {
        "fitting": fitting_answer(runner),
        "risk": risk_answer(runner),
        "projector": training_answer(runner),
        "search": search_answer(every),
        "parts": parts_answer(every),
        "transfer": transfer_answer(runner),
    }
    parts = []
    for number, (name, (question, section)) in enumerate(titles.items(), 1):
        file = f"evidence-{name}.svg"
        seen = f"\n\n![{question}](../docs/images/{file})" if file in drawn else ""
        link = f"Figures: [{section}](RESULTS.md#{section.lower().replace(' ', '-')})."
        parts.append(f"### {number}. {question}\n\n{answer_of[name].strip()}\n\n{link}{seen}")
    answers = "\n\n".join(parts)
    settings = dict.fromkeys(claim.setting for claim in every)
    tables = "\n\n".join(table_of(setting, every) for setting in settings)
    etas = ", ".join(f"{eta:g}" for eta in ETAS)
    return f"""# What we learned

Generated by `python benchmarks/learned.py` from `benchmarks/results`; do not edit.
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
    form = Form("full", _MANY, models, RESULTS, published=False, report=True)
    runner = StudyRunner(form)
    every = claims(runner)
    drawn = pictures(runner, every)
    text = page(runner, every, drawn)
    (HERE / "LEARNED.md").write_text(text, encoding="utf-8")
    for name, picture in drawn.items():
        (IMAGES / name).write_text(picture, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
