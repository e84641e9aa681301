"""How much does training after pruning bring back? ``python benchmarks/smollm/recovered.py``.

Policies of dynamic programming that `searches.py` has measured at a predicted speed-up of 2.2,
with the compensation that a study calibrates. The answers of the dense model to 2,000 training
questions are distilled into the projector, into adapters of the decoder, and into both: one pass
over the questions, with every fifth picture held out, which chooses the number of steps.

Every measurement leaves a record in ``results/smollm_recovery.jsonl``, and is not repeated if it
has one. ``--tiny`` recovers from a few questions, and publishes nothing.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import torch
from _cases import Case
from _evidence import announce, publish
from _fields import WIDTHS
from _means import markdown
from _network_rows import accuracy_cell, gain_cell, gain_of, mean_cell
from _pretrained_form import MODEL, pretrained_form
from _pretrained_search import PretrainedDraw
from _records import RecordId, read_records
from _results import RESULTS
from _sentences import gains, joined, paragraph, plural
from _studies import StudyRunner, inputs_of
from searches import PROGRAMMING, QUESTION, case_of

from effllava_optuna import Policy, sliced
from effllava_optuna.evaluation.checkpoint_recovery import ADAPTATIONS
from effllava_optuna.surgery import FULL_FIT
from effllava_optuna.tasks import Split
from effllava_optuna.training import DistillationOptions, distil, distillation_set

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample
    from effllava_optuna.training import DistillationSet

TITLE = "A pretrained model: recovery"
SPEEDUP = 2.2
SAMPLES = 2000
PRUNED, DENSE = "pruned", "dense"
_BATCH = 16
_SECONDS = 1800.0  # of one core, for a record


def record_id(draw: int, part: str) -> RecordId:
    """Return the id of a record."""
    return RecordId("smollm_recovery", ("recovered", draw, part))


def searched(draw: int) -> Mapping[str, Record]:
    """Return the records of `searches.py`: the dense model, and the policy that is recovered.

    Raises:
        SystemExit: There are none.
    """
    records = read_records(RESULTS / f"{QUESTION}.jsonl")
    keys = {
        DENSE: ("network", draw, DENSE, 1.0),
        PRUNED: ("network", draw, PROGRAMMING, SPEEDUP),
    }
    if not records.keys() >= set(keys.values()):
        raise SystemExit("Run `python benchmarks/smollm/searches.py` first.")
    return {name: records[key] for name, key in keys.items()}


class Recoveries:
    """Prunes and recovers the model of one draw.

    Args:
        runner: Calibrates studies.
        seed: Seed of the draw.
    """

    def __init__(self, runner: StudyRunner, seed: int) -> None:
        self.runner, self.seed = runner, seed
        self.draw = PretrainedDraw(runner, seed)

    @cached_property
    def _questions(self) -> DistillationSet:
        """Answer the training questions with the dense model, once for all parts."""
        pruned, dense, samples = self._pruned()
        return distillation_set(pruned, dense, samples, _BATCH, self.seed)

    def recovered(self, part: str) -> dict[str, Any]:
        """Prune, recover and measure.

        Args:
            part: A key of `ADAPTATIONS`: what is trained.
        """
        answered = self._questions
        options = DistillationOptions(
            steps=len(answered.train), every=max(1, len(answered.train) // 4), batch_size=_BATCH,
            seed=self.seed,
        )  # fmt: skip
        pruned, _, _ = self._pruned()
        result = distil(pruned, answered, ADAPTATIONS[part], options)
        return self.draw.measures.figures(pruned) | {"recovery": asdict(result)}

    def _pruned(self) -> tuple[LoadedModel, LoadedModel, Sequence[Sample]]:
        """Return the pruned model, the dense one, and training questions."""
        samples = self.runner.form.pick(SAMPLES, 64, 32)
        with self.runner.open(MODEL, self.seed, case_of(SPEEDUP)) as session:
            calibration, structure = session.evaluator.calibration, session.evaluator.structure
        case = Case("recovery", (f"task.proxy={samples}",), QUESTION)
        config = self.runner.config(MODEL, self.seed, case)
        with inputs_of(config, case) as inputs:
            policy = Policy.of(structure, searched(self.seed)[PRUNED][WIDTHS])
            table = calibration.compensations[FULL_FIT]
            pruned = sliced(inputs.loaded, policy, calibration.ranking, table)
            return pruned, inputs.loaded, inputs.task.samples(Split.PROXY)


def summary(of: Callable[[str], Mapping[int, Record]]) -> str:
    """Return the main figures, from the records of a model by draw."""
    compared = [
        (name, gain)
        for name in (*ADAPTATIONS, DENSE)
        if (gain := gain_of(of(name), of(PRUNED))).count
    ]
    return paragraph(f"""
        Pruned to a predicted speed-up of {SPEEDUP}, the model has an accuracy of
        {accuracy_cell(of(PRUNED))} and an agreement of {_agreement(of(PRUNED))}
        ({plural(len(of(PRUNED)), "draw")}).
        Differences in accuracy after training, and of the dense model: {gains(compared)}.
        {_besides(of)}""")


def _besides(of: Callable[[str], Mapping[int, Record]]) -> str:
    """Say what training brings back besides the task."""
    agreements = [f"{_agreement(of(part))} ({part})" for part in ADAPTATIONS if of(part)]
    return f"Agreement after training: {joined(agreements, ',')}." if agreements else ""


def _agreement(rows: Mapping[int, Record]) -> str:
    """Format the mean agreement over draws."""
    return f"{statistics.mean(row['agreement'] for row in rows.values()):.3f}"


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the page of the benchmark."""

    def of(part: str) -> dict[int, Record]:
        return {seed: records[seed, part] for seed in range(form.seeds) if (seed, part) in records}

    lines = []
    for part in (DENSE, PRUNED, *ADAPTATIONS):
        rows = of(part)
        if rows:
            steps = [str(row["recovery"]["steps"]) for row in rows.values() if "recovery" in row]
            lines.append(
                [
                    part,
                    str(len(rows)),
                    accuracy_cell(rows),
                    "" if part == PRUNED else gain_cell(rows, of(PRUNED)),
                    ", ".join(steps) or "-",
                    *(mean_cell(rows, field) for field in ("perplexity", "agreement")),
                ]
            )
    head = ["model", "draws", "accuracy", "minus pruned", "steps kept", "perplexity", "agreement"]
    return f"""{summary(of)}

Generated by `python benchmarks/smollm/recovered.py`; do not edit. Figures:
[results](../results/smollm_recovery.jsonl).

`smollm-vlm`, pruned by dynamic programming to a predicted speed-up of {SPEEDUP} with the
compensation of a study; then the answers of the dense model to {SAMPLES:,} training questions are
distilled into it, in one pass of batches of {_BATCH}. Intervals are 95 % (bootstrap over
pictures), differences are paired by picture.

{markdown(head, lines)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = pretrained_form(__doc__, arguments)
    torch.set_num_threads(1)
    runner = StudyRunner(form)
    parts = [*ADAPTATIONS][: form.pick(len(ADAPTATIONS), 1, 1)]
    ids = [record_id(seed, part) for seed in range(form.seeds) for part in parts]
    announce(runner.missing(ids), _SECONDS)
    records: dict[tuple[Any, ...], Record] = {}
    for seed in range(form.seeds):
        if not form.report:
            searched(seed)  # before anything is computed
        recoveries = Recoveries(runner, seed)
        recovered: dict[tuple[Any, ...], Record] = {}
        for part in parts:
            figures = runner.record(record_id(seed, part), partial(recoveries.recovered, part))
            recovered |= {(seed, part): figures} if figures else {}
        if recovered:
            records |= {(seed, name): record for name, record in searched(seed).items()}
            records |= recovered
    if not records:
        raise SystemExit("There are no records yet; run this without --report.")
    origins = [record["provenance"] for record in records.values()]
    publish(form, TITLE, section(records, form), origins)


if __name__ == "__main__":
    main()
