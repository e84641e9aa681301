"""Does the structural-risk term earn its place? ``python benchmarks/risk.py``.

A pool of policies of one cost is asked once (`_pool.py`), and proxy draws are taken from the
answers: do policies with more risk have a larger gap between proxy and test, among those that are
best on the proxy? Does a choice by score minus eta times risk answer better? Then order and refit
are fitted on the draw itself, as a study does; and whole searches are run with several eta.

``--tiny`` does this in seconds and writes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _cases import FIXED, Case, study_id
from _draws import ETA, ETAS, SAMPLES, halves, resampled, resampled_id, spearman, standard
from _evidence import announce, begin, publish
from _means import Mean, ahead, by_pair, markdown, mean
from _pool import AROUND, POOL, ensure_pool, pool_file, pool_record
from _records import RecordId
from _risks import DRAWN, STATIC, drawn_risks, norms_of
from _studies import StudyRunner, evaluator_of, once_loaded

from effllava_optuna.objectives import answers, ask, folds_of, risk, risk_table, units_of
from effllava_optuna.policy import Policy
from effllava_optuna.study.calibrating import probe
from effllava_optuna.surgery import WHOLE, Basis, Recipe, arranged, compensate, narrowed
from effllava_optuna.tasks import Digits, Split, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _records import Record

    from effllava_optuna.study.evolution import Epochs

TITLE = "Structural risk"
N = 64  # proxy samples of a study
FITTED = tuple(name for name in (*STATIC, *DRAWN) if name != "sharpness")


def fitted(runner: StudyRunner, draw: int) -> Record:
    """Fit order and refit on a draw; score a smaller pool on it and on other images."""
    form = runner.form
    count, questions, size = form.pick(32, 8, 6), form.pick(600, 100, 24), form.pick(64, 64, 16)
    ensure_pool(runner)
    with np.load(pool_file(runner)) as arrays:
        widths_of_policies = arrays["keep"]
    task = Digits(seed=100 + draw, proxy=size, validation=8, test=questions)
    samples = [replace(sample, split=Split.PROXY) for sample in task.samples(Split.PROXY)]
    test = task.samples(Split.TEST)
    with runner.opened("first", 0, AROUND) as epochs:
        anatomy, widths = epochs.bench.anatomy, epochs.bench.bundle.widths
    loaded = once_loaded(form.models["first"])
    torch.set_num_threads(1)
    rng = np.random.default_rng([draw, 5])
    # The better half of the pool in the order in which it was drawn: neighbours of good ones.
    number = len(widths_of_policies)
    some = rng.choice(np.arange(number // 2, number), size=count, replace=False)
    pool = [Policy.of(anatomy, [int(k) for k in widths_of_policies[index]]) for index in some]
    folds = folds_of(samples, 2)
    made = compensate(
        loaded,
        [[probe(batch) for batch in encode(loaded.processor, fold)] for fold in folds],
        widths,
        Recipe("taylor", seed=draw),
    )
    basis = Basis("draw", made.order, made.refits, (None,) * 3)
    tables = {
        form_name: risk_table(loaded, made.order, widths, form=form_name, refit=made.refits[WHOLE])
        for form_name in ("paper", "refit")
    }
    with arranged(loaded, made.order) as ready:
        crossed = [a for n, fold in enumerate(folds) for a in ask(ready, fold, fit=n + 1)]
        same = [replace(asked, fit=WHOLE) for asked in crossed]
        unseen = ask(ready, test, batch_size=200)
        on = {
            name: [answers(ready, basis, policy, asked) for policy in pool]
            for name, asked in (("crossed", crossed), ("same", same), ("test", unseen))
        }
        norms = []
        for policy in pool:
            with narrowed(ready, policy, made.order, made.refits[WHOLE]) as network:
                norms.append(norms_of(network))
    static = {
        STATIC[0]: np.array([risk(policy, loaded, tables["paper"]) for policy in pool]),
        STATIC[1]: np.array([risk(policy, loaded, tables["refit"]) for policy in pool]),
        STATIC[2]: np.array(norms),
    }
    result: dict[str, Any] = {}
    truth = np.array([scores.hit.mean() for scores in on["test"]])
    for name in ("crossed", "same"):
        hit = np.array([scores.hit for scores in on[name]])
        log = np.array([np.maximum(scores.log_probability, -20) for scores in on[name]])
        score, gap = np.exp(log).mean(1), hit.mean(1) - truth
        pick = int(score.argmax())
        top = np.argsort(-hit.mean(1), kind="stable")[: max(4, count // 3)]
        forms = {**static, **drawn_risks(hit, log, rng)}
        result[name] = {
            "gap of the pick": float(gap[pick]),
            "test of the pick": float(truth[pick]),
            "gap of all": float(gap.mean()),
            "best on test": float(truth.max()),
            "top": {key: spearman(values[top], gap[top]) for key, values in forms.items()},
            "eta": {
                key: [float(truth[(score - eta * standard(v)).argmax()]) for eta in ETAS]
                for key, v in forms.items()
            },
        }
    return result


def cross_fitted_eta(epochs: Epochs, times: int = 200) -> dict[str, Any]:
    """Choose eta by the per-sample scores that a search with eta 0 has left behind.

    Again and again the fours of the proxy are dealt in two halves; on one, each eta picks a
    policy, which the other half judges. Only policies measured under the first basis count.
    """
    evaluator = evaluator_of(epochs)
    units = np.unique(units_of(evaluator.crossed), return_inverse=True)[1]
    scores = np.array([answered.probability for _, answered in evaluator.scored])
    risks = np.array([evaluator.risk(policy) for policy, _ in evaluator.scored])
    judged = np.zeros(len(ETAS))
    for draw in range(times):
        inside, outside = halves(units, np.random.default_rng(draw))
        for index, eta in enumerate(ETAS):
            pick = (scores[:, inside].mean(1) - eta * risks).argmax()
            judged[index] += scores[pick, outside].mean() / times
    return {"eta_auto": ETAS[int(judged.argmax())], "eta_judged": judged.round(5).tolist()}


FREE = Case("eta-0", (*FIXED.changes, "quality.eta=0.0"), "risk", after=cross_fitted_eta)


def auto(runner: StudyRunner, seed: int) -> Record:
    """Search with the eta that the search with eta 0 suggests; it may be that search."""
    free = runner.study("first", seed, FREE)
    if not free or free["eta_auto"] == 0:  # nothing to report, or nothing to search again
        return free
    eta = free["eta_auto"]
    changes = (*FIXED.changes, f"quality.eta={eta}")
    case = FIXED if eta == ETA else Case(f"eta-{eta:g}", changes, "risk")
    again = runner.study("first", seed, case)
    return again | {name: free[name] + again[name] for name in ("evaluations", "search_cpu_s")}


def searches(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read whole searches; return records by how eta is set."""
    rows: dict[str, list[Record]] = {}
    for seed in range(runner.form.seeds):
        for name, record in (
            ("0", runner.study("first", seed, FREE)),
            ("0.02, the default", runner.study("first", seed, FIXED)),
            ("auto", auto(runner, seed)),
        ):
            if record:
                rows.setdefault(name, []).append(record)
    return rows


def pool_table(by_size: Sequence[Mapping[str, Any]]) -> str:
    """Write what risk tells of the gap, for every size of the proxy."""
    lines = []
    for name in (*STATIC, *DRAWN):
        at_n = next(one for one in by_size if one["samples"] == N)
        eta, *gain = at_n[f"eta {name}"]["chosen"]
        lines.append(
            [
                name,
                *(Mean(*one[f"top {name}"]).text("+") for one in by_size),
                Mean(*at_n[f"all {name}"]).text("+"),
                Mean(*at_n[f"eta {name}"]["0.02"]).text("+"),
                f"{Mean(*gain).text('+')} at {eta:g}",
                Mean(*at_n[f"instead {name}"]).text("+") if name != STATIC[0] else "-",
            ]
        )
    head = [
        "form of risk", *(f"top tenth, n = {one['samples']}" for one in by_size),
        f"all policies, n = {N}", f"pick with eta 0.02 minus without, n = {N}",
        "the same, eta chosen on other draws", "pick by it minus pick by the default term",
    ]  # fmt: skip
    return markdown(head, lines)


def nats_table(by_size: Sequence[Mapping[str, Any]]) -> str:
    """Write what eta in accuracy per nat does to the pick."""
    lines = [
        [
            str(one["samples"]),
            *(Mean(*one["eta in nats"][f"{eta:g}"]).text("+") for eta in ETAS[1:]),
        ]
        for one in by_size
    ]
    return markdown(["n", *(f"eta {eta:g}" for eta in ETAS[1:])], lines)


def fitted_table(draws: Sequence[Mapping[str, Any]]) -> str:
    """Write the same for order and refit that are fitted on the draw."""
    lines = []
    for name in FITTED:
        cells = []
        for way in ("crossed", "same"):
            cells.append(mean([draw[way]["top"][name] for draw in draws]).text("+"))
            picks = np.array([draw[way]["eta"][name] for draw in draws])
            cells.append(mean(picks[:, ETAS.index(0.02)] - picks[:, 0]).text("+"))
        lines.append([name, *cells])
    head = [
        "form of risk", "cross-fitted scores: top third", "pick with eta 0.02 minus without",
        "scores by the fit on the same samples: top third", "pick with eta 0.02 minus without",
    ]  # fmt: skip
    return markdown(head, lines)


def searches_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Write what whole searches with several eta choose."""
    free = by_pair(rows["0"], "chosen", "test")
    lines = []
    for name, mine in rows.items():
        tests = by_pair(mine, "chosen", "test")
        gaps = [row["chosen"]["proxy"] - row["chosen"]["test"] for row in mine]
        lines.append(
            [
                name,
                ", ".join(f"{row['eta']:g}" for row in mine),
                mean(list(tests.values())).text(),
                ahead(tests, free).text("+") if name != "0" else "-",
                mean(gaps).text("+"),
                f"{np.mean([row['evaluations'] for row in mine]):.0f}",
                f"{np.mean([row['search_cpu_s'] for row in mine]):.0f}",
            ]
        )
    head = [
        "eta", "by draw", "test", "minus eta 0", "proxy minus test of the choice",
        "evaluations", "CPU s of the search",
    ]  # fmt: skip
    return markdown(head, lines)


def section(
    pool: Mapping[str, Any],
    by_size: Sequence[Mapping[str, Any]],
    draws: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Write the section."""
    parts = [
        f"""Generated by `python benchmarks/risk.py`; do not edit. Figures:
`results/risk.jsonl`, `results/overfit.jsonl`, `results/studies.jsonl`.

The embedded digits model. {pool["policies"]} policies that keep at most 22.5 % of the decoder's
weights (half of them random, half neighbours of what a search found on other images) answered
{pool["questions"]:,} questions over {pool["fours"]} fours of digit images once (CPU seconds:
{pool["cpu_s"]:.0f}), order and refit from 64 samples of other images. In each of
{by_size[0]["draws"]} draws the fours are dealt in halves; n questions of one half are the proxy,
the other half is the test. Figures: Spearman's correlation of risk with proxy minus test accuracy
among the tenth that is best on the proxy, and among all; test accuracy of the pick by mean
probability minus eta times risk (risk in standard deviations of the pool), minus that without.
Last column: eta times risk spread over the pool as it is for the default (paper's form, 0.02 per
nat). Means with 95 % intervals over draws; draws share the fours, so that other images may differ
by more. For policies that were not selected (all) nothing is to be expected but 0. The margin is
no exception: it is counted on the proxy itself, whose barely right answers are luck in part.

{pool_table(by_size)}

The paper's form with eta in accuracy per nat, as a study has it; test accuracy of the pick minus
that of the pick with eta 0:

{nats_table(by_size)}"""
    ]
    if draws:
        parts.append(
            f"""Order and refit fitted on the draw of 64 ({len(draws)} draws, 32 policies, 600
test questions of other images; CPU seconds a draw: {np.mean([d["cpu_s"] for d in draws]):.0f}).
Sharpness was not measured here. Proxy minus test of the pick:
{mean([d["crossed"]["gap of the pick"] for d in draws]).text("+")} by cross-fitted scores,
{mean([d["same"]["gap of the pick"] for d in draws]).text("+")} by the fit on the same samples.

{fitted_table(draws)}"""
        )
    if rows:
        parts.append(
            f"""Whole searches (projector as loaded, {len(rows["0"])} draws). `auto` takes the eta
whose picks on one half of the proxy the other half judges best, by the per-sample scores of the
search with eta 0, and searches again, unless that is 0.

{searches_table(rows)}"""
        )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table."""
    form = begin(__doc__, arguments)
    runner = StudyRunner(form)
    draws = [RecordId("risk", ("draw", draw)) for draw in range(form.pick(20, 2, 1))]
    places = [POOL, *map(resampled_id, SAMPLES), *draws]
    places += [
        study_id("first", seed, case) for seed in range(form.seeds) for case in (FREE, FIXED)
    ]
    announce(runner.missing(places), form.pick(35, 10, 3))
    by_size = [resampled(runner, samples) for samples in SAMPLES]
    pool = pool_record(runner)
    records = [
        runner.record(place, functools.partial(fitted, runner, draw))
        for draw, place in enumerate(draws)
    ]
    existing = [record for record in records if record]
    text = section(pool, by_size, existing, searches(runner))
    origins = [one["provenance"] for one in (*by_size, *existing)]
    publish(form, TITLE, text, origins)


if __name__ == "__main__":
    main()
