"""How fast is a pruned decoder in each engine? ``python benchmarks/smollm/engines.py``.

SmolLM2 dense, with one width ratio, and with the widths that dynamic programming has found for
``smollm-vlm`` at a predicted speed-up of 1.8 (``searches.py`` has left them), in transformers,
vLLM and llama.cpp, in float32 (llama.cpp also with matrices in 8 bits), on one core: tokens per
second of prefill and decoding, batches of 1 and 16 prompts. All engines hold their models at the
same time; five rounds interleave them.

Needs vLLM's environment and llama.cpp's package, as the tests do; what is missing is left out.
Every round leaves a record in ``results/smollm_engines.jsonl``. ``--tiny`` runs one batch of the
dense model in transformers, and publishes nothing.
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
from _engine_rates import NEW, PROMPT, EngineProcess, commands
from _evidence import announce
from _fields import WIDTHS
from _means import markdown
from _packages import BUILT
from _pretrained_form import LANGUAGE_MODEL, pretrained_form, publish_tables
from _records import RecordId, read_records
from _results import RESULTS
from _studies import StudyRunner
from searches import PROGRAMMING, QUESTION, UNIFORM

from effllava_optuna import Policy, export, export_gguf, load, rank_units, sliced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _records import Record

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.surgery.gguf.tensors import GgufType

TITLE = "A pretrained model: tokens per second in engines"
SPEEDUP = 1.8
DENSE = "dense"
BATCHES = (1, 16)
ROUNDS = 5
_SECONDS = 100.0  # of one core, for a round
_KINDS: Mapping[str, GgufType] = {"llama.cpp": "f32", "llama.cpp, q8_0": "q8_0"}


def record_id(number: int) -> RecordId:
    """Return the id of the record of a round."""
    return RecordId("smollm_engines", ("round", number))


def networks(loaded: LoadedModel, names: Sequence[str]) -> dict[str, LoadedModel]:
    """Return the dense model and the pruned ones.

    Raises:
        SystemExit: `searches.py` has not left their widths.
    """
    records = read_records(RESULTS / f"{QUESTION}.jsonl")
    ranking = rank_units(loaded)  # which units are kept does not change the time
    found = {DENSE: loaded}
    for name in names[1:]:
        record = records.get(("network", 0, name, SPEEDUP))
        if record is None:
            raise SystemExit("Run `python benchmarks/smollm/searches.py` first.")
        found[name] = sliced(loaded, Policy.of(loaded.structure, record[WIDTHS]), ranking)
    return found


def start(network: LoadedModel, folder: Path, batches: Sequence[int]) -> dict[str, EngineProcess]:
    """Export a model and start each engine with it."""
    native = folder / "native"
    export(network, native)
    engines = {"transformers": commands(native, native)["transformers"]}
    if len(batches) > 1:
        for name, kind in _KINDS.items():
            file = folder / f"{kind}.gguf"
            export_gguf(network, file, kind=kind)
            for engine, command in commands(native, file).items():
                key = name if engine == "llama.cpp" else engine
                engines[key] = command
    return {name: EngineProcess(command) for name, command in engines.items()}


def measure(
    engines: Mapping[str, Mapping[str, EngineProcess]], batches: Sequence[int], number: int
) -> dict[str, Any]:
    """Run each engine with each model once, beginning with another one in each round."""
    pairs = [(engine, name) for name, each in engines.items() for engine in each]
    shift = number % len(pairs)
    rates: dict[str, Any] = {}
    for engine, name in pairs[shift:] + pairs[:shift]:
        for batch in batches:
            seconds = engines[name][engine].run(batch)
            rates.setdefault(engine, {}).setdefault(name, {})[str(batch)] = seconds.rates(batch)
    return {"rates": rates}


def section(records: Mapping[tuple[Any, ...], Record]) -> str:
    """Format the section of ``RESULTS.md``."""
    rounds = [record["rates"] for record in records.values()]
    lines = []
    for engine, by_model in rounds[0].items():
        for batch in by_model[DENSE]:
            for name in by_model:
                cells = [engine, batch, name]
                for phase in ("prefill", "decode"):
                    rates = [each[engine][name][batch][phase] for each in rounds]
                    dense = [each[engine][DENSE][batch][phase] for each in rounds]
                    ratios = [rate / whole for rate, whole in zip(rates, dense, strict=True)]
                    spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
                    cells += [
                        f"{statistics.median(rates):.0f}",
                        f"{statistics.median(ratios):.2f} {spread}",
                    ]
                lines.append(cells)
    head = ["engine", "batch", "widths", "prefill, tokens/s", "to dense",
            "decode, tokens/s", "to dense"]  # fmt: skip
    return f"""Generated by `python benchmarks/smollm/engines.py`; do not edit. Figures:
[results](results/smollm_engines.jsonl).

SmolLM2 alone, with the widths of two policies for `smollm-vlm` at a predicted speed-up of
{SPEEDUP}, in float32 (q8_0: matrices in 8 bits), one core, prompts of {PROMPT} tokens, {NEW}
generated; medians of {len(rounds)} interleaved rounds, and in parentheses the smallest and the
largest.

{markdown(head, lines)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rounds that have no record, and write the section."""
    form = pretrained_form(__doc__, arguments, draws=ROUNDS)
    torch.set_num_threads(1)
    runner = StudyRunner(form)
    ids = [record_id(number) for number in range(form.seeds)]
    missing = runner.missing(ids)
    announce(missing, _SECONDS)
    if missing and not form.report:
        names = (DENSE, UNIFORM, PROGRAMMING)[: form.pick(3, 2, 1)]
        batches = BATCHES[: form.pick(2, 2, 1)]
        loaded = load(BUILT / LANGUAGE_MODEL, device="cpu", dtype="float32")
        with tempfile.TemporaryDirectory() as scratch:
            engines: dict[str, dict[str, EngineProcess]] = {}
            for name, network in networks(loaded, names).items():
                folder = Path(scratch) / str(len(engines))
                folder.mkdir()
                engines[name] = start(network, folder, batches)
            del loaded
            measure(engines, batches, 0)  # warms up
            for number, each in enumerate(ids):
                runner.record(each, partial(measure, engines, batches, number))
            for by_engine in engines.values():
                for engine in by_engine.values():
                    engine.close()
    publish_tables(runner, TITLE, ids, section)


if __name__ == "__main__":
    main()
