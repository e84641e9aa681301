"""Which order, which refit, which token weights? ``python benchmarks/compensation.py``.

Uniform policies of the embedded digits model, calibrated on 64 samples, five draws of them. Every
order is combined with every refit under gradient-weighted tokens at three widths; the orders and
refits that use moments are combined with the other token weights at half width, and two orders
with a fit in sequence, made for each policy alone. Within a draw all networks answer the same test
questions, so that differences are paired.

Every measurement leaves a record in ``results/compensation.jsonl``, and one that has a record is
not repeated. ``RESULTS.md`` is written from the records. ``--tiny`` runs a few combinations on a
few questions, and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _fields import COMPENSATION, IMPORTANCE, TOKENS, WIDTH_RATIO
from _records import add_records, read_records
from _results import RESULTS, provenance, put_section

from effllava_optuna import Policy, load
from effllava_optuna.objectives import answers, ask, folds_of
from effllava_optuna.study.calibrating import probe
from effllava_optuna.surgery import (
    ORDERS,
    WHOLE,
    Basis,
    Loaded,
    Recipe,
    compensate,
    rank_units,
    refit_in_sequence,
)
from effllava_optuna.tasks import Digits, Split, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from _records import Key

    Row = Mapping[str, Any]

RECORDS = RESULTS / "compensation.jsonl"
FIELDS = (IMPORTANCE, COMPENSATION, TOKENS, WIDTH_RATIO)
KEEPS = (0.75, 0.5, 0.35)
REFITS = ("none", "bias", "least-squares")
DRAWS = 5
QUESTIONS = 1000
# Orders and refits that token weights act on; the others would only repeat themselves.
WEIGHTED = (
    ("wanda", "none"),
    ("flap", "bias"),
    ("taylor", "bias"),
    ("taylor", "least-squares"),
    ("obs", "none"),
    ("obs", "least-squares"),
)
SEQUENTIAL = "sequential"
IN_SEQUENCE = ("taylor", "obs")
# What the defaults were before this was measured.
REFERENCE = ("taylor", "least-squares", "gradient")


@dataclass(frozen=True, slots=True)
class Combination:
    """An order, a refit and token weights, with the width ratios they are measured at."""

    order: str
    refit: str
    tokens: str
    keeps: tuple[float, ...] = KEEPS


COMBINATIONS = (
    *(Combination(order, refit, "gradient") for order, refit in product(ORDERS, REFITS)),
    *(Combination(*both, tokens, (0.5,)) for both, tokens in product(WEIGHTED, ("all", "text"))),
    *(Combination(order, SEQUENTIAL, "gradient") for order in IN_SEQUENCE),
)
TINY = (Combination("magnitude", "none", "gradient", (0.5,)), Combination(*REFERENCE, (0.5,)))


def measure(
    loaded: Loaded, draw: int, combinations: Iterable[Combination], questions: int
) -> Iterator[dict[str, Any]]:
    """Score the networks of one calibration draw on the test questions of the same draw."""
    task = Digits(seed=draw, test=questions)
    folds = [
        [probe(batch) for batch in encode(loaded.processor, samples)]
        for samples in folds_of(task.samples(Split.PROXY), 2)
    ]
    test = ask(loaded, task.samples(Split.TEST), batch_size=100)
    policies = {keep: Policy.uniform(loaded.anatomy, keep=keep) for keep in KEEPS}
    widths = {
        site.id: sorted({policy.keep[index] for policy in policies.values()} | {site.width})
        for index, site in enumerate(loaded.anatomy.sites)
    }
    for combination in combinations:
        sequential = combination.refit == SEQUENTIAL
        refit = "least-squares" if sequential else combination.refit
        recipe = Recipe(combination.order, refit, combination.tokens, seed=draw)
        started = time.perf_counter()
        fitted = compensate(loaded, folds, widths, recipe)
        seconds = time.perf_counter() - started
        for keep in combination.keeps:
            fits = fitted.refits[WHOLE]
            if sequential:
                every = [one for fold in folds for one in fold]
                fits = refit_in_sequence(
                    loaded, policies[keep], fitted.order, every, damping=fitted.damping
                )
            basis = Basis("benchmark", fitted.order, (fits,), (None,))
            scores = answers(loaded, basis, policies[keep], test)
            yield {
                IMPORTANCE: combination.order,
                COMPENSATION: combination.refit,
                TOKENS: combination.tokens,
                WIDTH_RATIO: keep,
                "draw": draw,
                "accuracy": float(scores.hit.mean()),
                "expected": float(scores.probability.mean()),
                "calibration_s": round(seconds, 2),
            }


def measure_dense(loaded: Loaded, draw: int, questions: int) -> dict[str, Any]:
    """Score the dense model on the test questions of a draw."""
    test = ask(loaded, Digits(seed=draw, test=questions).samples(Split.TEST), batch_size=100)
    policy, order = Policy.dense(loaded.anatomy), rank_units(loaded)
    scores = answers(loaded, Basis("dense", order, (None,), (None,)), policy, test)
    return {IMPORTANCE: "dense", "draw": draw, "accuracy": float(scores.hit.mean())}


def key_of(row: Row) -> Key:
    """Return the key of a record: draw, order, refit, tokens, keep; of the dense model, two."""
    return (row["draw"], *(row[field] for field in FIELDS if field in row))


def missing_of(draw: int, existing: Iterable[Key]) -> list[Combination]:
    """Return the combinations of a draw that have no record."""
    keys = set(existing)

    def left(one: Combination) -> Combination:
        prefix = (draw, one.order, one.refit, one.tokens)
        return replace(one, keeps=tuple(keep for keep in one.keeps if (*prefix, keep) not in keys))

    return [combination for combination in map(left, COMBINATIONS) if combination.keeps]


def gather(rows: Sequence[Row], *key: object) -> dict[int, float]:
    """Return the accuracies of one combination ``(order, refit, tokens, keep)``, by draw."""
    return {
        row["draw"]: row["accuracy"]
        for row in rows
        if [row.get(field) for field in FIELDS] == [*key]
    }


def ahead(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """Return the differences ``one - other`` of the draws that both have."""
    return {draw: one[draw] - other[draw] for draw in one if draw in other}


def cell(values: Mapping[int, float], sign: str = "") -> str:
    """Write mean and standard deviation over draws."""
    sample = [*values.values()]
    spread = f" ({np.std(sample, ddof=1):.3f})" if len(sample) > 1 else ""
    return f"{np.mean(sample):{sign}.3f}{spread}" if sample else "-"


def report(rows: Sequence[Row], where: Row) -> str:
    """Write the tables."""
    head = " | ".join(f"keep {keep}" for keep in KEEPS)
    rival = f"ahead of {REFERENCE[0]}, {REFERENCE[1]} at 0.5"
    every = [f"| order | refit | {head} | {rival} |", "|---" * 6 + "|"]
    for order, refit in product(ORDERS, REFITS):
        cells = [cell(gather(rows, order, refit, "gradient", keep)) for keep in KEEPS]
        default, other = gather(rows, *REFERENCE, 0.5), gather(rows, order, refit, "gradient", 0.5)
        cells.append(cell(ahead(other, default), "+") if (order, refit) != REFERENCE[:2] else "-")
        every.append(f"| {order} | {refit} | " + " | ".join(cells) + " |")
    weighted = [
        "| order | refit | gradient | all | text | gradient ahead of all |",
        "|---" * 6 + "|",
    ]
    for order, refit in WEIGHTED:
        each = {t: gather(rows, order, refit, t, 0.5) for t in ("gradient", "all", "text")}
        cells = [*map(cell, each.values()), cell(ahead(each["gradient"], each["all"]), "+")]
        weighted.append(f"| {order} | {refit} | " + " | ".join(cells) + " |")
    sequence = ["| order | " + head + " |", "|---" * 4 + "|"]
    for order in IN_SEQUENCE:
        cells = []
        for keep in KEEPS:
            tables, in_sequence = (
                gather(rows, order, refit, "gradient", keep)
                for refit in ("least-squares", SEQUENTIAL)
            )
            cells.append(f"{cell(in_sequence)}, ahead {cell(ahead(in_sequence, tables), '+')}")
        sequence.append(f"| {order} | " + " | ".join(cells) + " |")
    dense = {row["draw"]: row["accuracy"] for row in rows if row[IMPORTANCE] == "dense"}
    return f"""Generated by `python benchmarks/compensation.py`; do not edit. Figures:
[results](results/compensation.jsonl).

Test accuracy of uniform policies of the embedded digits model on {QUESTIONS:,} questions over
digit images that neither training nor calibration has seen. Mean (standard deviation) over
{len(dense)} draws of 64 calibration samples and of the questions; differences are paired by draw.
Dense: {cell(dense)}. Attention has four groups, of which keep 0.35 leaves one. One small model:
this says nothing about larger ones.

Every order with every refit; tokens weighted by gradient in the refits and in wanda, flap and obs:

{chr(10).join(every)}

Token weights at keep 0.5:

{chr(10).join(weighted)}

Least squares in sequence, against the tables that serve every policy:

{chr(10).join(sequence)}

{where["cpu"]}, threads: 1; torch {where["torch"]}, transformers {where["transformers"]};
{where["date"]}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few combinations; writes nothing")
    parser.add_argument("--report", action="store_true", help="only write the tables")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.tiny:
        print("About 10 s.")
        for row in measure(load("digits-vlm", device="cpu"), 0, TINY, 100):
            name = f"{row[IMPORTANCE]} {row[COMPENSATION]} {row[WIDTH_RATIO]}"
            print(f"{name}: {row['accuracy']:.3f}")
        return
    if not chosen.report:
        measure_missing()
    rows = [*read_records(RECORDS).values()]
    text = report(rows, rows[-1]["provenance"])
    put_section("Orders, refits and token weights", text)
    print(text)


def measure_missing() -> None:
    """Measure what has no record."""
    existing = read_records(RECORDS)
    left = {draw: missing_of(draw, existing) for draw in range(DRAWS)}
    count = sum(len(one.keeps) for combinations in left.values() for one in combinations)
    print(f"About {count * 3 / 60:.0f} minutes for {count} measurements.", flush=True)
    loaded, origin = load("digits-vlm", device="cpu"), provenance()

    def keep(row: Row) -> None:
        add_records(RECORDS, {key_of(row): {**row, "provenance": origin}})

    for draw, combinations in left.items():
        started = time.monotonic()
        if combinations:
            for row in measure(loaded, draw, combinations, QUESTIONS):
                keep(row)
        if (draw, "dense") not in existing:
            keep(measure_dense(loaded, draw, QUESTIONS))
        print(f"draw {draw}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
