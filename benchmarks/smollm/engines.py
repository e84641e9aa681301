"""How fast is a pruned model in each engine? ``python benchmarks/smollm/engines.py``.

SmolLM2 and `smollm-vlm` with a picture: dense, with one width ratio, and with the widths that
dynamic programming has found for `smollm-vlm` at a predicted speed-up of 1.8 (``searches.py`` has
left them), in transformers, vLLM (its Transformers backend) and llama.cpp, in float32, on one
core: tokens per second of prefill and decoding, batches of 1 and 16 prompts. All engines hold a
model with all of its widths at the same time; five rounds interleave them.

Needs vLLM's environment, as the tests do, and ``llama-server`` on the path; what is missing is
left out. Every round leaves a record in ``results/smollm_engines.jsonl``. ``--tiny`` runs one
batch of the dense decoder, and publishes nothing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import torch
from _engine_rates import EngineProcess, commands
from _engine_requests import Requests
from _evidence import announce
from _fields import WIDTHS
from _means import markdown
from _packages import BUILT
from _pretrained_form import LANGUAGE_MODEL, MODEL, pretrained_form, publish_tables
from _records import RecordId, read_records
from _results import RESULTS
from _sentences import joined, paragraph, value_range
from _speedups import decode_bytes
from _studies import StudyRunner
from searches import PROGRAMMING, QUESTION, UNIFORM
from torch.utils.flop_counter import FlopCounterMode

from effllava_optuna import Policy, export, export_gguf, load, rank_units, sliced
from effllava_optuna.processors import takes_pictures
from effllava_optuna.surgery.loading.example_inputs import build_example_inputs, format_example

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _records import Record

    from effllava_optuna.surgery import LoadedModel

TITLE = "A pretrained model: tokens per second in engines"
SPEEDUP = 1.8
DENSE = "dense"
REPEATS = {1: 5, 16: 1}
"""Rows of a batch, and how often it runs in a round; the median counts."""

ROUNDS = 5
PROMPT, NEW = 64, 16
"""Tokens of a prompt without a picture, and tokens generated after any."""

INTRODUCTIONS = {
    LANGUAGE_MODEL: "SmolLM2 alone, with prompts of {} tokens:",
    MODEL: "`smollm-vlm`, with prompts of {} tokens, 64 of them a picture's:",
}

_SECONDS = 240.0  # of one core, for a round


def record_id(model: str, number: int) -> RecordId:
    """Return the id of the record of a round of a model."""
    return RecordId("smollm_engines", ("round", model, number))


def policies(loaded: LoadedModel) -> dict[str, Policy]:
    """Return the dense policy and those of the records.

    Raises:
        SystemExit: `searches.py` has not left their widths.
    """
    records = read_records(RESULTS / f"{QUESTION}.jsonl")
    found = {DENSE: Policy.dense(loaded.structure)}
    for name in (UNIFORM, PROGRAMMING):
        record = records.get(("network", 0, name, SPEEDUP))
        if record is None:
            raise SystemExit("Run `python benchmarks/smollm/searches.py` first.")
        found[name] = Policy.of(loaded.structure, record[WIDTHS])
    return found


def requests_of(loaded: LoadedModel) -> tuple[Requests, dict[str, torch.Tensor]]:
    """Return what the engines of a model are asked, and inputs of that form."""
    if not takes_pictures(loaded.processor):
        return Requests(PROMPT, NEW, ""), {"input_ids": torch.arange(PROMPT)[None] + 10}
    inputs = build_example_inputs(loaded.processor)
    row = {name: values[:1] for name, values in inputs.items()}
    length = int(row["attention_mask"].sum())
    row = {name: v[:, -length:] if name != "pixel_values" else v for name, v in row.items()}
    return Requests(length, NEW, format_example(loaded.processor)), row


def start(network: LoadedModel, folder: Path, requests: Requests) -> dict[str, EngineProcess]:
    """Export a model and start each engine with it."""
    requests.write(folder / "requests.json")
    native, gguf = folder / "native", folder / "decoder.gguf"
    found = commands(native, gguf, folder / "requests.json")
    export(network, native)
    if "llama.cpp" in found:
        export_gguf(network, gguf, kind="f32")
    return {name: EngineProcess(command) for name, command in found.items()}


def measure(
    engines: Mapping[str, Mapping[str, EngineProcess]],
    requests: Requests,
    cost: Mapping[str, Mapping[str, int]],
    batches: Sequence[int],
    number: int,
) -> dict[str, Any]:
    """Run each engine with each model once, beginning with another one in each round."""
    pairs = [(engine, name) for name, each in engines.items() for engine in each]
    shift = number % len(pairs)
    rates: dict[str, Any] = {}
    for engine, name in pairs[shift:] + pairs[:shift]:
        for batch in batches:
            runs = [engines[name][engine].run(batch) for _ in range(REPEATS[batch])]
            each = rates.setdefault(engine, {}).setdefault(name, {})
            each[str(batch)] = {
                phase: statistics.median(run.rates(batch, requests)[phase] for run in runs)
                for phase in ("prefill", "decode")
            }
    return {"rates": rates, "costs": cost, "prompt_tokens": requests.length}


def costs(network: LoadedModel, row: Mapping[str, Any]) -> dict[str, int]:
    """Count the operations of the prefill, and the bytes that decoding a token reads."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.model(**row, logits_to_keep=1)
    length = row["input_ids"].shape[1] + NEW
    return {"prefill": counter.get_total_flops(), "decode": decode_bytes(network, length, 1)}


def speedups(
    rounds: Sequence[Record], engine: str, name: str, batch: str, phase: str
) -> list[float]:
    """Return by round how many times as many tokens per second a policy has as the dense model."""
    return [
        each["rates"][engine][name][batch][phase] / each["rates"][engine][DENSE][batch][phase]
        for each in rounds
    ]


def summary(records: Mapping[tuple[Any, ...], Record]) -> str:
    """Return the main figures: those of one request at a time to the model with pictures."""
    model = MODEL if any(key[0] == MODEL for key in records) else LANGUAGE_MODEL
    rounds = [record for (other, _), record in records.items() if other == model]
    by_engine = {
        engine: by_name for engine, by_name in rounds[0]["rates"].items() if PROGRAMMING in by_name
    }
    if not by_engine:
        return "Only the dense model was timed."

    def times(phase: str) -> str:
        figures = []
        for engine in by_engine:
            ratios = speedups(rounds, engine, PROGRAMMING, "1", phase)
            figures.append(f"{statistics.median(ratios):.2f} ({value_range(ratios)}) in {engine}")
        return joined(figures, ",")

    return paragraph(f"""
        `{model}`, pruned by {PROGRAMMING} to a predicted speed-up of {SPEEDUP}, has these
        multiples of the dense model's tokens per second, one request at a time: reading a prompt,
        {times("prefill")}; generating, {times("decode")}. Medians of {len(rounds)} rounds, with
        the smallest and the largest.""")


def section(records: Mapping[tuple[Any, ...], Record]) -> str:
    """Format the page of the benchmark."""
    head = ["engine", "batch", "widths", "prefill, tokens/s", "speed-up", "of ideal",
            "decode, tokens/s", "speed-up", "of ideal"]  # fmt: skip
    tables = []
    for model in dict.fromkeys(model for model, _ in records):
        rounds = [record for (other, _), record in records.items() if other == model]
        first = rounds[0]
        keys = [
            (engine, name, batch)
            for engine, by_name in first["rates"].items()
            for batch in by_name[DENSE]
            for name in by_name
        ]
        lines = []
        for engine, name, batch in keys:
            cells = [engine, batch, name]
            for phase, cost in first["costs"][name].items():
                rates = [each["rates"][engine][name][batch][phase] for each in rounds]
                ratios = speedups(rounds, engine, name, batch, phase)
                ratio = statistics.median(ratios)
                cells += [
                    f"{statistics.median(rates):.0f}",
                    f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    f"{ratio * cost / first['costs'][DENSE][phase]:.2f}",
                ]
            lines.append(cells)
        introduction = INTRODUCTIONS[model].format(first["prompt_tokens"])
        tables.append(f"{introduction}\n\n{markdown(head, lines)}")
    count = sum(model == LANGUAGE_MODEL for model, _ in records)
    text = "\n\n".join(tables)
    return f"""{summary(records)}

Generated by `python benchmarks/smollm/engines.py`; do not edit. Figures:
[results](../results/smollm_engines.jsonl).

The widths are those of two policies for `smollm-vlm` at a predicted speed-up of {SPEEDUP};
float32, one core, {NEW} tokens generated; vLLM with its Transformers backend, uncompiled;
llama.cpp as `llama-server`. Prefill is the time to the first token, a picture's preparation
included. Medians of {count} interleaved rounds, and in parentheses the smallest and the largest;
a batch of 1 runs {REPEATS[1]} times in a round.
Ideal: operations (prefill) or bytes read for one row (decoding) of the dense model over those of
the pruned one.

{text}
"""


def measure_model(runner: StudyRunner, model: str, ids: Sequence[RecordId]) -> None:
    """Measure the rounds of a model."""
    form = runner.form
    loaded = load(BUILT / model, device="cpu", dtype="float32")
    ranking = rank_units(loaded)  # which units are kept does not change the time
    requests, row = requests_of(loaded)
    batches = [*REPEATS][: form.pick(2, 2, 1)]
    with tempfile.TemporaryDirectory() as scratch:
        engines: dict[str, dict[str, EngineProcess]] = {}
        cost: dict[str, dict[str, int]] = {}
        for name, policy in policies(loaded).items():
            folder = Path(scratch) / str(len(engines))
            folder.mkdir()
            network = sliced(loaded, policy, ranking)
            cost[name] = costs(network, row)
            engines[name] = start(network, folder, requests)
            if form.name == "tiny":
                break
        del loaded, network
        measure(engines, requests, cost, batches, 0)  # warms up
        for number, each in enumerate(ids):
            runner.record(each, partial(measure, engines, requests, cost, batches, number))
        for by_engine in engines.values():
            for engine in by_engine.values():
                engine.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rounds that have no record, and write the section."""
    form = pretrained_form(__doc__, arguments, draws=ROUNDS, any_device=False)
    torch.set_num_threads(1)
    runner = StudyRunner(form)
    models = (LANGUAGE_MODEL, MODEL)[: form.pick(2, 2, 1)]
    ids = [record_id(model, number) for model in models for number in range(form.seeds)]
    announce(runner.missing(ids), _SECONDS)
    for model in models:
        mine = [each for each in ids if each.key[1] == model]
        if not form.report and runner.missing(mine):
            measure_model(runner, model, mine)
    publish_tables(runner, TITLE, ids, section)


if __name__ == "__main__":
    main()
