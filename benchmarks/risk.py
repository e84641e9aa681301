"""Does the structural-risk term help? ``python benchmarks/risk.py``.

A pool of policies of one cost is scored once (`_pool.py`), and proxy sets are drawn from the
scores: among the policies that are best on the proxy, do those with more risk have a larger gap
between proxy and test? Is a choice by score minus eta times risk more accurate? Then ranking and
compensation are fitted on the draw itself, as in a study (`_fitted_risk.py`); and whole searches
are run with several eta.

``--tiny`` does this in seconds and publishes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from _cases import FIXED, Case, study_id
from _counting import evaluator_of
from _draws import ETA, ETAS, SAMPLES, halves, resampled, resampled_id
from _evidence import announce, pairs_of, parse_form, publish
from _fitted_risk import fitted_on_draw
from _means import Mean, by_pair, difference, markdown, mean
from _pool import POOL, pool_record
from _records import RecordId
from _risks import DRAWN, STATIC
from _sentences import paragraph, plural
from _studies import StudyRunner

from effllava_optuna.objectives import groups_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form
    from _means import Rows
    from _records import Record

    from effllava_optuna.search.session import SearchSession

TITLE = "Structural risk"
N = 64  # proxy samples of a study
_SEARCH_DRAWS = 5  # of each model
REFERENCE = "0.02, the default"
FITTED = tuple(name for name in (*STATIC, *DRAWN) if name != "sharpness")


def cross_fitted_eta(session: SearchSession, times: int = 200) -> dict[str, Any]:
    """Choose eta by the scores by sample that a search with eta 0 has measured.

    The groups of the proxy are split into halves repeatedly; on one half, each eta picks a
    policy, which is evaluated on the other half. All policies have the first weight state.
    """
    evaluator = evaluator_of(session)
    groups = np.unique(np.array(groups_of(evaluator.proxy.scored)), return_inverse=True)[1]
    scores = np.array([scores.probability for _, scores in evaluator.scored])
    risks = np.array([evaluator.risk(policy) for policy, _ in evaluator.scored])
    accuracies = np.zeros(len(ETAS))
    for draw in range(times):
        inside, outside = halves(groups, np.random.default_rng(draw))
        for index, eta in enumerate(ETAS):
            pick = (scores[:, inside].mean(1) - eta * risks).argmax()
            accuracies[index] += scores[pick, outside].mean() / times
    return {
        "eta_auto": ETAS[int(accuracies.argmax())],
        "eta_judged": accuracies.round(5).tolist(),
    }


WITHOUT = Case(
    "eta-0", (*FIXED.changes, "quality.eta=0.0"), "risk", extra_figures=cross_fitted_eta
)


def search_with_auto_eta(runner: StudyRunner, model: str, seed: int) -> Record:
    """Search with the eta that the search with eta 0 suggests; it may be that search."""
    without = runner.study(model, seed, WITHOUT)
    if not without or without["eta_auto"] == 0:  # nothing to report, or nothing to search again
        return without
    eta = without["eta_auto"]
    changes = (*FIXED.changes, f"quality.eta={eta}")
    case = FIXED if eta == ETA else Case(f"eta-{eta:g}", changes, "risk")
    again = runner.study(model, seed, case)
    both = {name: without[name] + again[name] for name in ("evaluations", "search_cpu_s")}
    return again | both


def _searched_pairs(form: Form) -> list[tuple[str, int]]:
    return [(model, seed) for model, seed in pairs_of(form) if seed < _SEARCH_DRAWS]


def searches(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read whole searches; return records by how eta is set."""
    rows: dict[str, list[Record]] = {}
    for model, seed in _searched_pairs(runner.form):
        for name, record in (
            ("0", runner.study(model, seed, WITHOUT)),
            (REFERENCE, runner.study(model, seed, FIXED)),
            ("auto", search_with_auto_eta(runner, model, seed)),
        ):
            if record:
                rows.setdefault(name, []).append(record)
    return rows


def pool_table(by_size: Rows) -> str:
    """Format how risk goes with the gap, for every size of the proxy."""
    lines = []
    for name in (*STATIC, *DRAWN):
        at_n = next(record for record in by_size if record["samples"] == N)
        eta, *gain = at_n[f"eta {name}"]["chosen"]
        lines.append(
            [
                name,
                *(Mean(*record[f"top {name}"]).text("+") for record in by_size),
                Mean(*at_n[f"all {name}"]).text("+"),
                Mean(*at_n[f"eta {name}"]["0.02"]).text("+"),
                f"{Mean(*gain).text('+')} at {eta:g}",
                Mean(*at_n[f"instead {name}"]).text("+") if name != STATIC[0] else "-",
            ]
        )
    head = [
        "form of risk", *(f"top tenth, n = {record['samples']}" for record in by_size),
        f"all policies, n = {N}", f"pick with eta 0.02 minus without, n = {N}",
        "the same, eta chosen on other draws", "pick by it minus pick by the default term",
    ]  # fmt: skip
    return markdown(head, lines)


def nats_table(by_size: Rows) -> str:
    """Format what eta in accuracy per nat does to the pick."""
    lines = [
        [
            str(record["samples"]),
            *(Mean(*record["eta in nats"][f"{eta:g}"]).text("+") for eta in ETAS[1:]),
        ]
        for record in by_size
    ]
    return markdown(["n", *(f"eta {eta:g}" for eta in ETAS[1:])], lines)


def fitted_table(draws: Rows) -> str:
    """Format the same for ranking and compensation that are fitted on the draw."""
    lines = []
    for name in FITTED:
        cells = []
        for scored in ("cross_fitted", "same"):
            cells.append(mean([draw[scored]["top"][name] for draw in draws]).text("+"))
            picks = np.array([draw[scored]["eta"][name] for draw in draws])
            cells.append(mean(picks[:, ETAS.index(0.02)] - picks[:, 0]).text("+"))
        lines.append([name, *cells])
    head = [
        "form of risk", "cross-fitted scores: top third", "pick with eta 0.02 minus without",
        "scores by the fit on the same samples: top third", "pick with eta 0.02 minus without",
    ]  # fmt: skip
    return markdown(head, lines)


def searches_table(rows: Mapping[str, Rows]) -> str:
    """Format what whole searches with several eta choose."""
    without = by_pair(rows["0"], "chosen", "test")
    lines = []
    for name, records in rows.items():
        tests = by_pair(records, "chosen", "test")
        gaps = [row["chosen"]["proxy"] - row["chosen"]["test"] for row in records]
        lines.append(
            [
                name,
                ", ".join(f"{row['eta']:g}" for row in records),
                mean(list(tests.values())).text(),
                difference(tests, without).text("+") if name != "0" else "-",
                mean(gaps).text("+"),
                f"{np.mean([row['evaluations'] for row in records]):.0f}",
                f"{np.mean([row['search_cpu_s'] for row in records]):.0f}",
            ]
        )
    head = [
        "eta", "by pair", "test", "minus eta 0", "proxy minus test of the choice",
        "evaluations", "CPU s of the search",
    ]  # fmt: skip
    return markdown(head, lines)


def summary(by_size: Rows, rows: Mapping[str, Rows]) -> str:
    """Return the main figures."""
    (record,) = (each for each in by_size if each["samples"] == N)
    correlation = Mean(*record[f"top {STATIC[0]}"])
    chosen = Mean(*record[f"eta {STATIC[0]}"]["chosen"][1:])
    sentences = [
        "Among the best policies of a pool, the paper's term has a rank correlation of "
        f"{correlation.text('+')} with the gap between proxy and test; subtracting it "
        f"changes the test accuracy of the pick by {chosen.text('+')} (measured under earlier "
        "defaults: importance `taylor`, a search without curves and screening)."
    ]
    if REFERENCE in rows and "0" in rows:
        tests = {name: by_pair(records, "chosen", "test") for name, records in rows.items()}
        gain = difference(tests[REFERENCE], tests["0"])
        sentences.append(
            f"In whole searches under today's defaults the term changes it by {gain.text('+')} "
            f"({plural(gain.count, 'pair')} of model and draw)."
        )
    return paragraph(" ".join(sentences))


def section(pool: Mapping[str, Any], by_size: Rows, draws: Rows, rows: Mapping[str, Rows]) -> str:
    """Format the page of the benchmark."""
    parts = [
        f"""{summary(by_size, rows)}

Generated by `python benchmarks/risk.py`; do not edit. Figures:
[risk](../results/risk.jsonl), [overfit](../results/overfit.jsonl) and
[studies](../results/studies.jsonl).

The pool: the embedded digits model under the earlier defaults (importance `taylor`, a search
without curves and screening). {pool["policies"]} policies that keep at most 22.5 % of the
decoder's weights (half of them random, half neighbours of the best policies of a search on other
images) were scored once on {pool["questions"]:,} questions about {pool["groups"]} groups of four
digit images (CPU seconds: {pool["cpu_s"]:.0f}), ranking and compensation from 64 samples of other
images. In each of {by_size[0]["draws"]} draws the groups are split into halves; n questions of one
half are the proxy, the other half is the test. Figures: Spearman's correlation of risk with proxy
minus test accuracy among the tenth that is best on the proxy, and among all; test accuracy of the
pick by mean probability minus eta times risk (risk in standard deviations of the pool), minus that
without. Last column: eta times risk has the same spread over the pool as for the default (paper's
form, 0.02 per nat). Means with 95 % intervals over draws; draws share the groups, so that other
images may differ by more. For policies that were not selected (all), the expected correlation is
0. The margin does not contradict this: it is counted on the proxy itself, whose barely right
answers are luck in part.

{pool_table(by_size)}

The paper's form with eta in accuracy per nat, as in a study; test accuracy of the pick minus that
of the pick with eta 0:

{nats_table(by_size)}"""
    ]
    if draws:
        parts.append(
            f"""Ranking and compensation fitted on the draw of 64 ({len(draws)} draws, 32 policies,
600 test questions about other images; CPU seconds of a draw:
{np.mean([draw["cpu_s"] for draw in draws]):.0f}). Sharpness was not measured here. Proxy minus
test of the pick: {mean([draw["cross_fitted"]["gap of the pick"] for draw in draws]).text("+")} by
cross-fitted scores, {mean([draw["same"]["gap of the pick"] for draw in draws]).text("+")} by the
fit on the same samples.

{fitted_table(draws)}"""
        )
    if rows:
        parts.append(
            f"""Whole searches under today's defaults (both models, projector as loaded,
{len(rows["0"])} pairs of model and draw).
`auto` uses the eta whose picks on one half of the proxy are most accurate on the other half, by
the scores by sample of the search with eta 0, and searches again, unless that is 0.

{searches_table(rows)}"""
        )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the missing records, and write the tables."""
    form = parse_form(__doc__, arguments, two_models=True)
    runner = StudyRunner(form)
    draw_ids = [RecordId("risk", ("draw", draw)) for draw in range(form.pick(20, 2, 1))]
    ids = [POOL, *map(resampled_id, SAMPLES), *draw_ids]
    ids += [
        study_id(model, seed, case)
        for model, seed in _searched_pairs(form)
        for case in (WITHOUT, FIXED)
    ]
    announce(runner.missing(ids), form.pick(35, 10, 3))
    by_size = [resampled(runner, samples) for samples in SAMPLES]
    pool = pool_record(runner)
    records = [
        runner.record(record_id, functools.partial(fitted_on_draw, runner, draw))
        for draw, record_id in enumerate(draw_ids)
    ]
    draws = [record for record in records if record]
    rows = searches(runner)
    measured = [*by_size, *draws, *itertools.chain.from_iterable(rows.values())]
    text = section(pool, by_size, draws, rows)
    publish(form, TITLE, text, [record["provenance"] for record in measured])


if __name__ == "__main__":
    main()
