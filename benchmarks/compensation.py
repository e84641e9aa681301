"""Which order, which refit, which token weights? ``python benchmarks/compensation.py``.

Uniform policies of the embedded digits model, calibrated on 64 samples, five draws of them. Every
order is met with every refit under gradient-weighted tokens at three widths; the orders and
refits that use moments are met with the other token weights at half width. Within a draw everybody
answers the same test questions, so that differences are paired.

Every draw leaves a file in ``benchmarks/results``; a draw that has one is not run again.
``benchmarks/RESULTS.md`` is written from the files. ``--tiny`` runs a few combinations on a few
questions, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _results import RESULTS, provenance, put_section

from effllava_optuna import Policy, load
from effllava_optuna.objectives import answers, ask, folds_of
from effllava_optuna.study.calibrating import probe
from effllava_optuna.surgery import ORDERS, WHOLE, Basis, Loaded, Recipe, compensate
from effllava_optuna.tasks import Digits, Split, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

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
DEFAULT = ("taylor", "least-squares", "gradient")


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
)
TINY = (Meeting("magnitude", "none", "gradient", (0.5,)), Meeting(*DEFAULT, (0.5,)))


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
        recipe = Recipe(meeting.order, meeting.refit, meeting.tokens, seed=draw)
        began = time.perf_counter()
        found = compensate(loaded, folds, widths, recipe)
        seconds = time.perf_counter() - began
        basis = Basis("benchmark", found.order, (found.refits[WHOLE],), (None,))
        for keep in meeting.keeps:
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
    dense = answers(loaded, basis, Policy.dense(loaded.anatomy), test)
    return [*rows, {"order": "dense", "draw": draw, "accuracy": float(dense.hit.mean())}]


def gather(rows: Sequence[Row], key: Sequence[object]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Give the accuracies of one combination ``(order, refit, tokens, keep)``, by draw."""
    fields = ("order", "refit", "tokens", "keep")
    mine = [row for row in rows if [row.get(field) for field in fields] == [*key]]
    return np.array([row["accuracy"] for row in sorted(mine, key=lambda row: row["draw"])])


def told(values: np.ndarray[Any, np.dtype[np.float64]], sign: str = "") -> str:
    """Write mean and standard deviation."""
    spread = f" ({values.std(ddof=1):.3f})" if len(values) > 1 else ""
    return f"{values.mean():{sign}.3f}{spread}"


def report(rows: Sequence[Row], where: Row) -> str:
    """Write the tables."""
    head = " | ".join(f"keep {keep}" for keep in KEEPS)
    every = ["| order | refit | " + head + " | default ahead at 0.5 |", "|---" * 6 + "|"]
    for order, refit in product(ORDERS, REFITS):
        cells = [told(gather(rows, (order, refit, "gradient", keep))) for keep in KEEPS]
        ahead = gather(rows, (*DEFAULT, 0.5)) - gather(rows, (order, refit, "gradient", 0.5))
        cells.append(told(ahead, "+") if (order, refit) != DEFAULT[:2] else "default")
        every.append(f"| {order} | {refit} | " + " | ".join(cells) + " |")
    weighted = [
        "| order | refit | gradient | all | text | gradient ahead of all |",
        "|---" * 6 + "|",
    ]
    for order, refit in WEIGHTED:
        mine = {t: gather(rows, (order, refit, t, 0.5)) for t in ("gradient", "all", "text")}
        cells = [*map(told, mine.values()), told(mine["gradient"] - mine["all"], "+")]
        weighted.append(f"| {order} | {refit} | " + " | ".join(cells) + " |")
    dense = np.array([row["accuracy"] for row in rows if row["order"] == "dense"])
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

{where["cpu"]}, threads: 1; torch {where["torch"]}, transformers {where["transformers"]};
{where["date"]}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the draws that are missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few combinations; writes nothing")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.tiny:
        print("About 10 s.")
        rows = measure(load("digits-vlm", device="cpu"), 0, TINY, 100)
        for row in rows[:-1]:
            print(f"{row['order']} {row['refit']} {row['keep']}: {row['accuracy']:.3f}")
        return
    files = {draw: RESULTS / f"compensation-{draw}.json" for draw in range(DRAWS)}
    missing = [draw for draw, file in files.items() if not file.exists()]
    print(f"About {3.5 * len(missing):.0f} minutes: {len(missing)} of {DRAWS} draws.", flush=True)
    loaded = load("digits-vlm", device="cpu")
    for draw in missing:
        began, origin = time.monotonic(), provenance()
        rows = measure(loaded, draw, EVERY, QUESTIONS)
        document = {"rows": rows, "provenance": origin}
        files[draw].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"draw {draw}: {time.monotonic() - began:.0f} s", flush=True)
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files.values()]
    text = report([row for d in documents for row in d["rows"]], documents[-1]["provenance"])
    put_section("Orders, refits and token weights", text)
    print(text)


if __name__ == "__main__":
    main()
