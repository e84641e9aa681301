"""How fast are exports of a pretrained model? ``python benchmarks/smollm/exported_speed.py``.

Policies of dynamic programming that `searches.py` has measured, exported, read back by plain
transformers, and timed in turn with the dense checkpoint on one core: prefill of one prompt, and
decoding of a token, in float32 and bfloat16. Beside them the ideal speed-up (operations for the
prefill, bytes read for decoding), and for the prefill in float32 what the latency table predicted.

Every measurement leaves a record in ``results/smollm_speed.jsonl``, and is not repeated if it has
one. ``--tiny`` times one policy, and publishes nothing.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import torch
from _cases import Case
from _evidence import announce
from _fields import KEEP_RATIO, WIDTHS
from _means import markdown
from _pretrained_form import MODEL, pretrained_form, publish_tables
from _records import RecordId, read_records
from _results import RESULTS
from _sentences import paragraph, value_range
from _speedups import ideal_speedups, measured_speedups, reloaded
from _studies import StudyRunner
from searches import PROGRAMMING, QUESTION, SPEEDUPS

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.config.task_factory import make_task
from effllava_optuna.objectives import Stopwatch, Workload
from effllava_optuna.surgery import LoadedModel, load
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _records import Record

TITLE = "A pretrained model: speed-up of exports"
DTYPES = ("float32", "bfloat16")
_SECONDS = 120.0  # of one core, for a record
_WORKLOAD = Workload(batch=1, new_tokens=8, warmup=1, repeats=9, precision=0.01, seconds=20.0)
_SHORT = Workload(batch=1, new_tokens=8, warmup=0, repeats=1, precision=0.01, seconds=0.0)


def record_id(draw: int, speedup: float, dtype: str) -> RecordId:
    """Return the id of a record."""
    return RecordId("smollm_speed", ("export", draw, speedup, dtype))


def searched_policies(draw: int) -> dict[float, Record]:
    """Return by predicted speed-up the record of a policy that `searches.py` has left."""
    records = read_records(RESULTS / f"{QUESTION}.jsonl")
    keys = {speedup: ("network", draw, PROGRAMMING, speedup) for speedup in SPEEDUPS}
    return {speedup: records[key] for speedup, key in keys.items() if key in records}


def measure(runner: StudyRunner, searched: Record, dtype: str) -> dict[str, Any]:
    """Export a policy, and time the export in turn with the dense checkpoint."""
    config = runner.config(MODEL, 0, Case("export", (), QUESTION))
    loaded = load(config.model.path, device="cpu", dtype=dtype)
    workload = _SHORT if runner.form.name == "tiny" else _WORKLOAD
    stopwatch = Stopwatch(loaded, make_task(config).samples(Split.PROXY), workload)
    ranking = rank_units(loaded)  # which units are kept does not change the time
    policy = Policy.of(loaded.structure, searched[WIDTHS])
    (ideal,) = ideal_speedups(loaded, {0.0: policy}, ranking, stopwatch).values()
    with tempfile.TemporaryDirectory() as scratch:

        def network() -> LoadedModel:
            return reloaded(sliced(loaded, policy, ranking), Path(scratch) / "export")

        (measured,) = measured_speedups(stopwatch, loaded, [(0.0, network)]).values()
    return {
        "predicted": searched["predicted"],
        KEEP_RATIO: policy.keep_ratio,
        "measured": measured,
        "ideal": ideal,
        "prompt_tokens": stopwatch.prompt_tokens,
    }


def summary(records: Mapping[tuple[Any, ...], Record]) -> str:
    """Return the main figures: the ranges over all exports."""
    rows = [*records.values()]

    def of(phase: str) -> str:
        shares = [100 * row["measured"][phase] / row["ideal"][phase] for row in rows]
        measured = value_range(row["measured"][phase] for row in rows)
        return f"{measured} times as fast ({value_range(shares, '.0f')} % of the ideal speed-up)"

    errors = [
        abs(row["predicted"] / row["measured"]["prefill"] - 1)
        for (_, _, dtype), row in records.items()
        if dtype == "float32"
    ]
    kept = value_range((100 * row[KEEP_RATIO] for row in rows), ".0f")
    return paragraph(f"""
        Exports that keep {kept} % of the weights run the prefill {of("prefill")}, and decoding
        {of("decode")}. The latency table predicted the prefill in float32 with an error of
        {value_range((100 * error for error in errors), ".1f")} %.""")


def section(records: Mapping[tuple[Any, ...], Record]) -> str:
    """Format the page of the benchmark."""
    lines = []
    for (draw, speedup, dtype), record in records.items():
        measured, ideal = record["measured"], record["ideal"]
        predicted = record["predicted"] if dtype == "float32" else None
        lines.append(
            [
                f"{speedup:g}", str(draw), f"{record[KEEP_RATIO]:.3f}", dtype,
                "-" if predicted is None else f"{predicted:.2f}",
                *(
                    text
                    for phase in ("prefill", "decode")
                    for text in (
                        f"**{measured[phase]:.2f}**", f"{ideal[phase]:.2f}",
                        f"{measured[phase] / ideal[phase]:.2f}",
                    )
                ),
                "-" if predicted is None else f"{predicted / measured['prefill'] - 1:+.1%}",
            ]
        )  # fmt: skip
    head = [
        "limit", "draw", "weights kept", "type", "predicted prefill", "prefill", "ideal",
        "of ideal", "decode", "ideal", "of ideal", "error of the prediction",
    ]  # fmt: skip
    tokens = next(iter(records.values()))["prompt_tokens"]
    return f"""{summary(records)}

Generated by `python benchmarks/smollm/exported_speed.py`; do not edit. Figures:
[results](../results/smollm_speed.jsonl).

Policies of dynamic programming for `smollm-vlm` from `searches.py`, exported, read back by plain
transformers, and timed in turn with the dense checkpoint; one prompt of {tokens} tokens, one core.
Ideal: operations (prefill) or bytes read (decoding) of the dense model over those of the pruned
one.

{markdown(head, lines)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = pretrained_form(__doc__, arguments, any_device=False)
    torch.set_num_threads(1)
    runner = StudyRunner(form)
    searched = {
        record_id(draw, speedup, dtype): record
        for draw in range(form.seeds)
        for speedup, record in [*searched_policies(draw).items()][: form.pick(3, 1, 1)]
        for dtype in DTYPES[: form.pick(2, 2, 1)]
    }
    announce(runner.missing(searched), _SECONDS)
    if not searched:
        raise SystemExit("Run `python benchmarks/smollm/searches.py` first.")
    for each, record in searched.items():
        runner.record(each, partial(measure, runner, record, str(each.key[-1])))
    publish_tables(runner, TITLE, searched, section)


if __name__ == "__main__":
    main()
