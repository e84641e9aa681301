"""Which order, which refit, which token weights? ``python benchmarks/compensation.py``.

Uniform policies of the embedded digits model, calibrated on 64 samples, five draws of them. Every
order is met with every refit under gradient-weighted tokens at three widths; the orders and
refits that use moments are met with the other token weights at half width, and two orders with
a fit in sequence, made for each policy alone. Within a draw everybody
answers the same test questions, so that differences are paired.

Every draw has a file in ``benchmarks/results``; what it holds is not measured again.
``benchmarks/RESULTS.md`` is written from the files. ``--tiny`` runs a few combinations on a few
questions, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
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
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    Row = Mapping[str, Any]

KEEPS = (0.75, 0.5, 0.35)
REFITS = ("none", "bias", "least-squares")
FIELDS = ("order", "refit", "tokens", "keep")
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
class Meeting:
    """One combination, and the widths it is measured at."""

    order: str
    refit: str
    tokens: str
    keeps: tuple[float, ...] = KEEPS


EVERY = (
    *(Meeting(order, refit, "gradient") for order, refit in product(ORDERS, REFITS)),
    *(Meeting(*both, tokens, (0.5,)) for both, tokens in product(WEIGHTED, ("all", "text"))),
    *(Meeting(order, SEQUENTIAL, "gradient") for order in IN_SEQUENCE),
)
TINY = (Meeting("magnitude", "none", "gradient", (0.5,)), Meeting(*REFERENCE, (0.5,)))


def measure(
    loaded: Loaded, draw: int, meetings: Iterable[Meeting], questions: int
) -> list[dict[str, Any]]:
    """Let the networks of one calibration draw answer the test questions of the same draw."""
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
    rows = []
    for meeting in meetings:
        refit = "least-squares" if meeting.refit == SEQUENTIAL else meeting.refit
        recipe = Recipe(meeting.order, refit, meeting.tokens, seed=draw)
        began = time.perf_counter()
        found = compensate(loaded, folds, widths, recipe)
        seconds = time.perf_counter() - began
        for keep in meeting.keeps:
            fits = found.refits[WHOLE]
            if meeting.refit == SEQUENTIAL:
                every = [one for fold in folds for one in fold]
                fits = refit_in_sequence(
                    loaded, policies[keep], found.order, every, damping=found.damping
                )
            basis = Basis("benchmark", found.order, (fits,), (None,))
            scores = answers(loaded, basis, policies[keep], test)
            rows.append(
                {key: value for key, value in asdict(meeting).items() if key != "keeps"}
                | {
                    "keep": keep,
                    "draw": draw,
                    "accuracy": float(scores.hit.mean()),
                    "expected": float(scores.probability.mean()),
                    "calibration_s": round(seconds, 2),
                }
            )
    return rows


def measure_dense(loaded: Loaded, draw: int, questions: int) -> dict[str, Any]:
    """Let the dense model answer the test questions of a draw."""
    test = ask(loaded, Digits(seed=draw, test=questions).samples(Split.TEST), batch_size=100)
    policy, order = Policy.dense(loaded.anatomy), rank_units(loaded)
    scores = answers(loaded, Basis("dense", order, (None,), (None,)), policy, test)
    return {"order": "dense", "draw": draw, "accuracy": float(scores.hit.mean())}


def missing_of(rows: Sequence[Row]) -> list[Meeting]:
    """Give what ``rows`` do not tell."""
    known = {tuple(row.get(field) for field in FIELDS) for row in rows}
    left = [
        replace(m, keeps=tuple(k for k in m.keeps if (m.order, m.refit, m.tokens, k) not in known))
        for m in EVERY
    ]
    return [meeting for meeting in left if meeting.keeps]


def rows_in(file: Path) -> list[dict[str, Any]]:
    """Read what was measured already."""
    if not file.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return rows


def gather(rows: Sequence[Row], *key: object) -> dict[int, float]:
    """Give the accuracies of one combination ``(order, refit, tokens, keep)``, by draw."""
    return {
        row["draw"]: row["accuracy"]
        for row in rows
        if [row.get(field) for field in FIELDS] == [*key]
    }


def ahead(mine: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """Give the differences of the draws that both have."""
    return {draw: mine[draw] - other[draw] for draw in mine if draw in other}


def told(values: Mapping[int, float], sign: str = "") -> str:
    """Write mean and standard deviation over draws."""
    found = [*values.values()]
    spread = f" ({np.std(found, ddof=1):.3f})" if len(found) > 1 else ""
    return f"{np.mean(found):{sign}.3f}{spread}" if found else "-"


def report(rows: Sequence[Row], where: Row) -> str:
    """Write the tables."""
    head = " | ".join(f"keep {keep}" for keep in KEEPS)
    rival = f"ahead of {REFERENCE[0]}, {REFERENCE[1]} at 0.5"
    every = [f"| order | refit | {head} | {rival} |", "|---" * 6 + "|"]
    for order, refit in product(ORDERS, REFITS):
        cells = [told(gather(rows, order, refit, "gradient", keep)) for keep in KEEPS]
        default, mine = gather(rows, *REFERENCE, 0.5), gather(rows, order, refit, "gradient", 0.5)
        cells.append(told(ahead(mine, default), "+") if (order, refit) != REFERENCE[:2] else "-")
        every.append(f"| {order} | {refit} | " + " | ".join(cells) + " |")
    weighted = [
        "| order | refit | gradient | all | text | gradient ahead of all |",
        "|---" * 6 + "|",
    ]
    for order, refit in WEIGHTED:
        each = {t: gather(rows, order, refit, t, 0.5) for t in ("gradient", "all", "text")}
        cells = [*map(told, each.values()), told(ahead(each["gradient"], each["all"]), "+")]
        weighted.append(f"| {order} | {refit} | " + " | ".join(cells) + " |")
    sequence = ["| order | " + head + " |", "|---" * 4 + "|"]
    for order in IN_SEQUENCE:
        cells = []
        for keep in KEEPS:
            ever, anew = (
                gather(rows, order, refit, "gradient", keep)
                for refit in ("least-squares", SEQUENTIAL)
            )
            cells.append(f"{told(anew)}, ahead {told(ahead(anew, ever), '+')}")
        sequence.append(f"| {order} | " + " | ".join(cells) + " |")
    dense = {row["draw"]: row["accuracy"] for row in rows if row["order"] == "dense"}
    return f"""Generated by `python benchmarks/compensation.py`; do not edit.

Test accuracy of uniform policies of the embedded digits model on {QUESTIONS:,} questions over
digit images that neither training nor calibration has seen. Mean (standard deviation) over
{len(dense)} draws of 64 calibration samples and of the questions; differences are paired by draw.
Dense: {told(dense)}. Attention has four groups, of which keep 0.35 leaves one. One small model:
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
    """Measure the draws that are missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few combinations; writes nothing")
    parser.add_argument("--report", action="store_true", help="only write the tables")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.tiny:
        print("About 10 s.")
        for row in measure(load("digits-vlm", device="cpu"), 0, TINY, 100):
            print(f"{row['order']} {row['refit']} {row['keep']}: {row['accuracy']:.3f}")
        return
    files = {draw: RESULTS / f"compensation-{draw}.json" for draw in range(DRAWS)}
    known = {draw: rows_in(file) for draw, file in files.items() if not chosen.report}
    asked = sum(len(m.keeps) for rows in known.values() for m in missing_of(rows))
    print(f"About {asked * 3 / 60:.0f} minutes for {asked} measurements.", flush=True)
    loaded, origin = load("digits-vlm", device="cpu"), provenance()
    for draw, rows in known.items():
        began, left = time.monotonic(), missing_of(rows)
        if left:
            dense = [] if rows else [measure_dense(loaded, draw, QUESTIONS)]
            rows += [*measure(loaded, draw, left, QUESTIONS), *dense]
            text = json.dumps({"rows": rows, "provenance": origin}, indent=1)
            files[draw].write_text(text + "\n", encoding="utf-8")
            print(f"draw {draw}: {time.monotonic() - began:.0f} s", flush=True)
    documents = [json.loads(f.read_text(encoding="utf-8")) for f in files.values() if f.is_file()]
    text = report([row for d in documents for row in d["rows"]], documents[-1]["provenance"])
    put_section("Orders, refits and token weights", text)
    print(text)


if __name__ == "__main__":
    main()
