"""What does a search hold in memory beside the dense model? ``python benchmarks/memory.py``.

A decoder of some 60 million parameters in float32 runs random policies, narrowed in place one
after the other, in a process of its own for each refit. Peaks are what the system counted
(VmHWM of Linux), less what the process held before the model was made, libraries warmed up.
With ``--hidden 4096 --layers 32 --device cuda --dtype bfloat16`` it is the decoder of
LLaVA-1.5-7B, and peaks are what torch's allocator counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from _results import provenance, publish, told

from effllava_optuna import Loaded, Policy, narrowed, rank_units
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import Probe, Recipe, arranged, compensate
from effllava_optuna.surgery.load import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARES = (0.25, 0.5, 0.75)
_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lives.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    device: str = "cpu"
    dtype: str = "float32"

    def peak(self) -> int:
        """Give the most memory that was held since `forget`, in bytes."""
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def forget(self) -> int:
        """Give back what is free, and count peaks from here; give what is held, in bytes."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return self.peak()


def decoder(hidden: int, layers: int, place: Place) -> Any:
    """Build a decoder with random weights."""
    heads = hidden // (128 if hidden >= 4096 else 64)
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=hidden, num_hidden_layers=layers,
        intermediate_size=11008 if hidden == 4096 else 4 * hidden,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=128,
    )  # fmt: skip
    with torch.device(place.device):
        return transformers.LlamaForCausalLM._from_config(config, dtype=DTYPES[place.dtype])


def run(refit: str, hidden: int, layers: int, policies: int, place: Place) -> dict[str, float]:
    """Narrow a model to random policies; give bytes of weights, of the table, and at the peak."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8192, (2, _TOKENS), generator=generator).to(place.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        decoder(64, 1, place)(**inputs)
    before = place.forget()
    loaded = Loaded.of(decoder(hidden, layers, place), None, "mid-size")
    dense = sum(weight.nbytes for weight in loaded.model.parameters())
    widths = {
        site.id: (*(round(share * site.width) for share in SHARES), site.width)
        for site in loaded.anatomy.sites
    }
    table, order, fits, fitting = 0, rank_units(loaded), None, 0
    if refit != "none":
        folds = [[Probe(inputs)], [Probe({name: part.flip(1) for name, part in inputs.items()})]]
        recipe = Recipe("magnitude", refit, table_gb=60.0 if hidden >= 4096 else 8.0)
        tables = compensate(loaded, folds, widths, recipe)
        table, order, fits = tables.nbytes, tables.order, tables.refits[0]
        fitting = place.peak() - before
    place.forget()  # but for the tables: a search holds all of them
    rng = np.random.default_rng(0)
    with arranged(loaded, order) as ready, torch.inference_mode():
        for _ in range(policies):
            keep = [int(rng.choice(widths[site.id])) for site in ready.anatomy.sites]
            with narrowed(ready, Policy.of(ready.anatomy, keep), order, fits) as network:
                network.model(**inputs)
    channels = max(s.width for s in loaded.anatomy.sites if s.kind is Kind.MLP)
    return {
        "dense": dense, "table": table, "peak": place.peak() - before, "fitting": fitting,
        "channels": channels, "parameters": loaded.model.num_parameters(),
    }  # fmt: skip


def section(found: dict[str, Any]) -> str:
    """Write the section of RESULTS.md."""
    rows = []
    for refit, one in found["runs"].items():
        dense, table, most, fitting = (
            one[key] / 1e6 for key in ("dense", "table", "peak", "fitting")
        )
        share = most / (dense + table)
        rows.append(
            f"| {refit} | {dense:.0f} | {table:.0f} | {most:.0f} | {share:.2f} | {fitting:.0f} |"
        )
    origin, one = found["provenance"], next(iter(found["runs"].values()))
    return f"""Generated by `python benchmarks/memory.py`; do not edit. Figures:
[results](results/{found["file"]}.json).

A decoder of {one["parameters"]:,} parameters in {found["dtype"]} (MLPs of {one["channels"]:,}
channels) runs {found["policies"]} random policies, narrowed in place. The table has three fits
(one for use, two for scoring) at three widths a site. Megabytes; peaks are the system's, without
what the process held before. The target is 1.15. Fitting holds moments, up to `pruning.table_gb`
with the table.

| refit | dense weights | table | peak, narrowing | over weights and table | peak, fitting |
|---|---|---|---|---|---|
{chr(10).join(rows)}

{told(origin)}"""


def _told(connection: Any, *arguments: Any) -> None:
    torch.set_num_threads(1)
    connection.send(run(*arguments))


def alone(*arguments: Any) -> dict[str, float]:
    """Call `run` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    process = context.Process(target=_told, args=(other, *arguments))
    process.start()
    other.close()
    found: dict[str, float] = mine.recv()
    process.join()
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--policies", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    options = parser.parse_args(words)
    if options.tiny:
        options.hidden, options.layers, options.policies = 256, 2, 3
    print("about 20 s" if options.tiny else "about 2 minutes")
    place = Place(options.device, options.dtype)
    sizes = (options.hidden, options.layers, options.policies, place)
    runs = {refit: alone(refit, *sizes) for refit in ("none", "least-squares")}
    name = "memory" if options.device == "cpu" else f"memory-{options.hidden}"
    found = {
        "file": name, "provenance": provenance(options.device), "policies": options.policies,
        "dtype": options.dtype, "runs": runs,
    }  # fmt: skip
    if options.tiny:
        print(section(found))
        return
    title = "Memory of a search" + ("" if options.device == "cpu" else f", {options.hidden} wide")
    publish(name, title, found, section(found))


if __name__ == "__main__":
    main()
