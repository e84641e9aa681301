"""The sentences of LEARNED.md that answer its questions, from the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ablation
import evolution
import projector
import risk
import transfer
from _claims import SAME, search_cpu
from _draws import ETA, SAMPLES, resampled
from _means import Mean, by_pair, difference
from _pool import pool_record
from _risks import DRAWN, STATIC
from _sentences import joined, points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _claims import Claim
    from _studies import StudyRunner


def in_words(gain: Mean, other: str = "it") -> str:
    """Format a difference to something in words."""
    if max(abs(gain.low), abs(gain.high)) < SAME:
        return f"is no different ({gain.text('+')})"
    if not gain.decided:
        return f"cannot be distinguished from {other} ({gain.text('+')})"
    return f"is {points(gain.value)} {'better' if gain.value > 0 else 'worse'} ({gain.text('+')})"


def overfitting(runner: StudyRunner) -> str:
    """Answer whether choosing overfits."""
    sizes = {size: record for size in SAMPLES if (record := resampled(runner, size))}
    count = pool_record(runner)["policies"]
    gaps = {size: Mean(*record["gap of the pick"]) for size, record in sizes.items()}
    losses = {
        size: record["best on test"][0] - record["test of the pick"][0]
        for size, record in sizes.items()
    }
    size, fewest, most = risk.N, min(sizes), max(sizes)
    return f"""
        **{"Yes" if gaps[size].low > 0 else "That is not decided"}.** Of {count} policies of one
        cost, the one that is best on {size} samples is {points(gaps[size].value)} less accurate on
        other images than on those {size} ({gaps[size].text("+")}); with {fewest} samples it is
        {points(gaps[fewest].value)}, with {most} {points(gaps[most].value)}. The pick is
        {points(losses[size])} below the best of the {count} on test with {size} samples,
        {points(losses[most])} with {most}. So do not trust the accuracy of the best policy on its
        own proxy; `report` shows test beside it. (Measured under earlier defaults: importance
        `taylor`.)"""


def structural_risk(runner: StudyRunner) -> str:
    """Answer whether the risk term helps."""
    record = resampled(runner, risk.N)
    forms = {name: Mean(*record[f"top {name}"]) for name in (*STATIC, *DRAWN)}
    gains = {name: Mean(*record[f"eta {name}"]["chosen"][1:]) for name in forms}
    paper, nats = forms[STATIC[0]], Mean(*record["eta in nats"][f"{ETA:g}"])
    finding = f"is not correlated with the gap between proxy and test ({paper.text('+')})"
    if paper.decided:
        way = "a larger" if paper.value > 0 else "a smaller"
        finding = f"goes with {way} gap between proxy and test ({paper.text('+')})"
    helpful = [name for name, gain in gains.items() if gain.low > 0 and gain.value > SAME]
    picks = (
        f"subtracted from the accuracy, these make the pick more accurate: {joined(helpful)}"
        if helpful
        else f"none of {len(forms)} forms, one of them a random number, makes the pick more "
        "accurate when it is subtracted"
    )
    return f"""
        **{f"By {joined(helpful)}" if helpful else "No form of it does, here"}.** Among the tenth
        of a pool of policies that is best on {risk.N} samples, a large norm in the paper's form
        {finding}; {picks}. The default, {ETA} per nat of the paper's form, changes
        the pick by {nats.text("+")}: among policies of one cost the norms hardly differ. (The
        pool was measured under earlier defaults: importance `taylor`.)
        {_risk_in_searches(runner)}"""


def _risk_in_searches(runner: StudyRunner) -> str:
    rows = risk.searches(runner)
    if "0" not in rows or risk.REFERENCE not in rows:
        return ""
    tests = {name: by_pair(records, "chosen", "test") for name, records in rows.items()}
    gain = difference(tests[risk.REFERENCE], tests["0"])
    return (
        f"In whole searches under today's defaults, the term {in_words(gain, 'eta 0')} in test "
        f"accuracy ({gain.count} pairs of model and draw)."
    )


def projector_training(runner: StudyRunner) -> str:
    """Answer whether training the projector inside the loop helps."""
    rows = projector.gather(runner)
    tests = {name: by_pair(records, "chosen", "test") for name, records in rows.items()}
    gains = {name: difference(tests[name], tests["none"]) for name in ("after", "each")}
    uniform = difference(tests[projector.UNIFORM_TRAINED], tests[projector.UNIFORM])
    uncompensated = difference(
        tests[projector.UNCOMPENSATED_TRAINED], tests[projector.UNCOMPENSATED]
    )
    cost = (search_cpu(rows["each"]) or 0.0) / (search_cpu(rows["none"]) or 1.0)
    helps = any(gain.low > 0 for gain in gains.values())
    return f"""
        **{"It does" if helps else "No gain is visible here"}.** Against the same search without
        any update, over {gains["each"].count} pairs of model and draw: one update after the search
        {in_words(gains["after"])}; an update each epoch {in_words(gains["each"])}, for {cost:.1f}
        times the CPU seconds. Without compensation, as the method is published, an update each
        epoch, against none: {uncompensated.text("+")}; of the best policy that is uniform by kind,
        {uniform.text("+")}. Both models were trained, with their projector, on the task that they
        are pruned for. The gain of a model whose projector has not seen the task was not
        measured."""


# The alternatives that the answer about evolution lists; its figures have all of them.
_QUOTED = (
    evolution.BY_RESIDUALS, evolution.SWITCHES, "TPE", "NSGA-II, ours, alone", "random",
    evolution.BY_KIND, evolution.FLAP, "no curves", "no screening",
)  # fmt: skip


def by_verdict(claims: Sequence[Claim], words: Mapping[str, str]) -> str:
    """List the alternatives to the default by verdict, each list after its words."""
    sentences = []
    for verdict, start in words.items():
        others = [f"{c.other} ({c.gain.value:+.3f})" for c in claims if c.verdict == verdict]
        if others:
            sentences.append(f"{start}: {joined(others)}.")
    return " ".join(sentences)


def evolutionary_search(runner: StudyRunner, claims: Sequence[Claim]) -> str:
    """Answer whether evolution helps."""
    of_search = [claim for claim in claims if claim.section == evolution.TITLE]
    rivals = evolution.rivals()
    quoted = [claim for claim in of_search if claim.other in _QUOTED]
    helps = all(c.verdict == "for the default" for c in of_search if c.other in rivals)
    words = {
        "for the default": "**worse than the default**",
        "against the default": "**Better than the default**",
        "the same": "The same",
        "undecided": "Not distinguishable from it",
        "too few": "With too few pairs",
    }
    rows = evolution.gather(runner)
    worst = min(by_pair(rows[evolution.REFERENCE], "choice", "test").values())
    return f"""
        **{"Yes: seeded by an allocation" if helps else "Not against every rival"}.** The default
        begins with policies that dynamic programming allocates by residual curves, which cost no
        evaluation, and measures candidates that a Gaussian process finds promising. The main
        ones of {len(of_search)} alternatives at 22.5 % of the weights, with their differences in
        test accuracy: {by_verdict(quoted, words)} The worst pair of model and draw of the default
        has {worst:.3f}. {_smaller_budget(runner)}"""


def _smaller_budget(runner: StudyRunner) -> str:
    """Say what is left of the differences at the smaller budget."""
    rows = evolution.gather(runner, evolution.SMALLER)
    if not rows:
        return ""
    reference = by_pair(rows[evolution.REFERENCE], "choice", "test")
    differences = {
        name: difference(by_pair(records, "choice", "test"), reference)
        for name, records in rows.items()
        if name not in (evolution.REFERENCE, "dense")
    }
    behind = [name for name, gain in differences.items() if gain.high < 0]
    allocated = differences[evolution.BY_RESIDUALS]
    return (
        f"At 15 % of the weights ({len(reference)} pairs) only {joined(behind, ',')} are worse. "
        f"There {evolution.BY_RESIDUALS}, without an evaluation, {in_words(allocated)}."
    )


def parts(claims: Sequence[Claim]) -> str:
    """Answer what the parts contribute."""
    words = {
        "for the default": "**Worse than the default**",
        "against the default": "**Better than the default**",
        "the same": "The same",
        "undecided": "Not distinguishable from the default",
        "too few": "With too few draws",
    }
    verdicts = by_verdict([claim for claim in claims if claim.section == ablation.TITLE], words)
    return f"""
        {verdicts} A search finds policies that suit its ranking and compensation. Without a
        search, importance and compensation matter more: see [Importance, compensation and token
        weights](RESULTS.md#importance-compensation-and-token-weights)."""


def transfer_between(runner: StudyRunner) -> str:
    """Answer what a search for one kind of question gains on it, and loses on the others."""
    rows, of_workloads = transfer.gather(runner)
    own, loss = transfer.kind_gains(rows)
    moved = transfer.moved_gain(of_workloads)
    return f"""
        **Between kinds of question {"no" if loss.high < 0 else "that is not decided"}; between
        latency workloads {"not quite" if moved.high < 0 else "yes, as far as can be seen"}.** The
        accuracy of a policy and projector that were searched for one kind of question differs on
        that kind by {own.text("+")} from those that were searched for all kinds, and on the other
        kinds by {loss.text("+")}: put the questions into the proxy that the pruned model will be
        asked. The hypervolume of a front that was searched at one workload and is measured at
        another, minus that of the front searched there: {moved.text("+")}. (Measured under
        earlier defaults: importance `taylor`, a search without curves and screening.)"""
