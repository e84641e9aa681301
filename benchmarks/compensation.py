"""Which importance, compensation and token weights? ``python benchmarks/compensation.py``.

Uniform policies of the embedded digits model, calibrated on 64 samples, five draws of them. Every
importance is combined with every compensation under gradient-weighted tokens at three width
ratios. Those that use moments are combined with the other token weights at half width, and two
rankings with compensation in sequence, which is fitted for each policy alone. Within a draw all
networks are scored on the same test questions, so that differences are paired.

Every measurement leaves a record in ``results/compensation.jsonl``, and a measurement that has a
record is not repeated. Its page is written from the records. ``--tiny`` measures two
combinations on a few questions, and publishes nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from _compensation_tables import (
    COMPENSATIONS,
    FIELDS,
    IN_SEQUENCE,
    QUESTIONS,
    REFERENCE,
    SEQUENTIAL,
    WEIGHTED,
    WIDTH_RATIOS,
    section,
)
from _fields import COMPENSATION, IMPORTANCE, TOKENS, WIDTH_RATIO
from _pages import put_page
from _records import add_records, read_records
from _results import RESULTS, provenance

from effllava_optuna import Policy, load
from effllava_optuna.calibration.calibration_run import calibration_batch
from effllava_optuna.objectives import encode_samples, score_policy, split_folds
from effllava_optuna.surgery import (
    FULL_FIT,
    IMPORTANCES,
    LoadedModel,
    PruningOptions,
    SequentialOptions,
    WeightState,
    compensate_in_sequence,
    rank_and_compensate,
    rank_units,
)
from effllava_optuna.tasks import Digits, Split, encode_with_answers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from _records import Key

    from effllava_optuna.objectives import EncodedBatch
    from effllava_optuna.surgery import CalibrationBatch

    Row = Mapping[str, Any]

TITLE = "Importance, compensation and token weights"
RECORDS = RESULTS / "compensation.jsonl"
DRAWS = 5


@dataclass(frozen=True, slots=True)
class Combination:
    """Importance, compensation and token weights, and the width ratios that are measured."""

    importance: str
    compensation: str
    tokens: str
    width_ratios: tuple[float, ...] = WIDTH_RATIOS


COMBINATIONS = (
    *(
        Combination(importance, compensation, "gradient")
        for importance, compensation in product(IMPORTANCES, COMPENSATIONS)
    ),
    *(Combination(*both, tokens, (0.5,)) for both, tokens in product(WEIGHTED, ("all", "text"))),
    *(Combination(importance, SEQUENTIAL, "gradient") for importance in IN_SEQUENCE),
)
TINY = (Combination("magnitude", "none", "gradient", (0.5,)), Combination(*REFERENCE, (0.5,)))


@dataclass(frozen=True)
class Draw:
    """Calibration samples and test questions of one draw.

    Attributes:
        loaded: The model.
        seed: Seed of the draw.
        folds: Calibration samples in two folds.
        test: Test questions.
        policies: Uniform policies by width ratio.
    """

    loaded: LoadedModel
    seed: int
    folds: Sequence[Sequence[CalibrationBatch]]
    test: Sequence[EncodedBatch]
    policies: Mapping[float, Policy]

    @staticmethod
    def of(loaded: LoadedModel, seed: int, questions: int) -> Draw:
        """Draw the samples of ``seed``, and encode them."""
        task = Digits(seed=seed, test=questions)
        return Draw(
            loaded=loaded,
            seed=seed,
            folds=[
                [
                    calibration_batch(batch)
                    for batch in encode_with_answers(loaded.processor, samples)
                ]
                for samples in split_folds(task.samples(Split.PROXY), 2)
            ],
            test=encode_samples(loaded, task.samples(Split.TEST), batch_size=100),
            policies={
                ratio: Policy.uniform(loaded.structure, ratio=ratio) for ratio in WIDTH_RATIOS
            },
        )

    def measure(self, combination: Combination) -> Iterator[dict[str, Any]]:
        """Score the networks of a combination at its width ratios."""
        sequential = combination.compensation == SEQUENTIAL
        options = PruningOptions(
            importance=combination.importance,
            compensation="least-squares" if sequential else combination.compensation,
            tokens=combination.tokens,
            seed=self.seed,
        )
        started = time.perf_counter()
        fitted = rank_and_compensate(self.loaded, self.folds, self._widths(), options)
        seconds = time.perf_counter() - started
        for ratio in combination.width_ratios:
            policy, table = self.policies[ratio], fitted.compensations[FULL_FIT]
            if sequential:
                batches = [batch for fold in self.folds for batch in fold]
                table = compensate_in_sequence(
                    self.loaded,
                    policy,
                    fitted.ranking,
                    batches,
                    options=SequentialOptions(damping=fitted.damping),
                )
            weight_state = WeightState("benchmark", fitted.ranking, (table,), (None,))
            scores = score_policy(self.loaded, weight_state, policy, self.test)
            yield {
                IMPORTANCE: combination.importance,
                COMPENSATION: combination.compensation,
                TOKENS: combination.tokens,
                WIDTH_RATIO: ratio,
                "draw": self.seed,
                "accuracy": float(scores.hit.mean()),
                "expected": float(scores.probability.mean()),
                "calibration_s": round(seconds, 2),
            }

    def measure_dense(self) -> dict[str, Any]:
        """Score the dense model."""
        policy, ranking = Policy.dense(self.loaded.structure), rank_units(self.loaded)
        weight_state = WeightState("dense", ranking, (None,), (None,))
        scores = score_policy(self.loaded, weight_state, policy, self.test)
        return {IMPORTANCE: "dense", "draw": self.seed, "accuracy": float(scores.hit.mean())}

    def _widths(self) -> dict[Any, list[int]]:
        """Return the widths of all policies by component, and the dense width."""
        return {
            component.id: sorted(
                {policy.widths[index] for policy in self.policies.values()} | {component.width}
            )
            for index, component in enumerate(self.loaded.structure.components)
        }


def key_of(row: Row) -> Key:
    """Return the key of a record: the draw and the combination; the draw and ``dense``."""
    return (row["draw"], *(row[field] for field in FIELDS if field in row))


def missing_of(draw: int, existing: Iterable[Key]) -> list[Combination]:
    """Return the combinations of a draw that have no record."""
    keys = set(existing)

    def unmeasured(combination: Combination) -> Combination:
        prefix = (draw, combination.importance, combination.compensation, combination.tokens)
        ratios = tuple(ratio for ratio in combination.width_ratios if (*prefix, ratio) not in keys)
        return replace(combination, width_ratios=ratios)

    return [
        combination for combination in map(unmeasured, COMBINATIONS) if combination.width_ratios
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="two combinations; publish nothing")
    parser.add_argument("--report", action="store_true", help="only write the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.tiny:
        print("About 10 s.")
        draw = Draw.of(load("digits-vlm", device="cpu"), 0, 100)
        for row in (row for combination in TINY for row in draw.measure(combination)):
            name = f"{row[IMPORTANCE]} {row[COMPENSATION]} {row[WIDTH_RATIO]}"
            print(f"{name}: {row['accuracy']:.3f}")
        return
    if not options.report:
        measure_missing()
    rows = [*read_records(RECORDS).values()]
    text = section(rows, rows[-1]["provenance"])
    put_page(TITLE, text)
    print(text)


def measure_missing() -> None:
    """Measure what has no record."""
    existing = read_records(RECORDS)
    missing = {seed: missing_of(seed, existing) for seed in range(DRAWS)}
    count = sum(
        len(combination.width_ratios)
        for combinations in missing.values()
        for combination in combinations
    )
    print(f"About {count * 3 / 60:.0f} minutes for {count} measurements.", flush=True)
    loaded, origin = load("digits-vlm", device="cpu"), provenance()

    def store(row: Row) -> None:
        add_records(RECORDS, {key_of(row): {**row, "provenance": origin}})

    for seed, combinations in missing.items():
        started, needs_dense = time.monotonic(), (seed, "dense") not in existing
        if combinations or needs_dense:
            draw = Draw.of(loaded, seed, QUESTIONS)
            for combination in combinations:
                for row in draw.measure(combination):
                    store(row)
            if needs_dense:
                store(draw.measure_dense())
        print(f"draw {seed}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
