"""How much memory does a search hold beside the dense model? ``python benchmarks/memory.py``.

A decoder of about 60 million parameters in float32 runs random policies, narrowed in place one
after the other, in a process of its own for each compensation. Peaks are those of the system
(VmHWM of Linux), minus what the process held before the model was created, with libraries loaded.
With ``--hidden 4096 --layers 32 --device cuda --dtype bfloat16`` it is the decoder of
LLaVA-1.5-7B, and peaks are those of torch's allocator.
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
from _means import markdown
from _pages import publish
from _results import origin_line, provenance
from _sentences import joined, paragraph

from effllava_optuna import LoadedModel, Policy, narrowed, rank_units
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import CalibrationBatch, PruningOptions, arranged, rank_and_compensate
from effllava_optuna.surgery.loading.loader import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, Ranking
    from effllava_optuna.surgery import CompensationTable

    Widths = Mapping[ComponentId, Sequence[int]]

WIDTH_RATIOS = (0.25, 0.5, 0.75)
_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Size of a decoder, its device, and how it is measured.

    Attributes:
        hidden: Width of the decoder.
        layers: Number of blocks.
        policies: Number of random policies.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    hidden: int
    layers: int
    policies: int
    device: str = "cpu"
    dtype: str = "float32"

    def peak(self) -> int:
        """Return the peak memory since `reset_peak`, in bytes."""
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def reset_peak(self) -> int:
        """Release free memory and restart the peak; return the memory in use, in bytes."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return self.peak()

    def decoder(self, hidden: int, layers: int) -> Any:
        """Create a decoder with random weights."""
        heads = hidden // (128 if hidden >= 4096 else 64)
        config = transformers.LlamaConfig(
            vocab_size=8192, hidden_size=hidden, num_hidden_layers=layers,
            intermediate_size=11008 if hidden == 4096 else 4 * hidden,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=128,
        )  # fmt: skip
        with torch.device(self.device):
            return transformers.LlamaForCausalLM._from_config(config, dtype=DTYPES[self.dtype])


@dataclass(frozen=True, slots=True)
class Fit:
    """A ranking and the compensation tables that a search holds.

    Attributes:
        ranking: The ranking.
        tables: The tables; the first one is fitted on all samples. None: no compensation.
        nbytes: Bytes of all tables.
        peak: Peak memory while they were fitted, in bytes; 0 if nothing was fitted.
    """

    ranking: Ranking
    tables: tuple[CompensationTable | None, ...] = (None,)
    nbytes: int = 0
    peak: int = 0


def measure(compensation: str, setting: Setting) -> dict[str, float]:
    """Narrow a model to random policies; return bytes of weights, tables and peaks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8192, (2, _TOKENS), generator=generator).to(setting.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        setting.decoder(64, 1)(**inputs)  # loads the libraries
    before = setting.reset_peak()
    loaded = LoadedModel.of(setting.decoder(setting.hidden, setting.layers), None, "mid-size")
    dense = sum(weight.nbytes for weight in loaded.model.parameters())
    widths = {
        component.id: (
            *(round(ratio * component.width) for ratio in WIDTH_RATIOS),
            component.width,
        )
        for component in loaded.structure.components
    }
    fit = _fit(loaded, inputs, widths, compensation, setting)
    setting.reset_peak()  # a search holds all tables
    _run_random_policies(loaded, inputs, widths, fit, setting.policies)
    channels = max(c.width for c in loaded.structure.components if c.kind is Kind.MLP)
    return {
        "dense": dense,
        "table": fit.nbytes,
        "peak": setting.peak() - before,
        "fitting": fit.peak - before if fit.peak else 0,
        "channels": channels,
        "parameters": loaded.model.num_parameters(),
    }


def _fit(
    loaded: LoadedModel,
    inputs: Mapping[str, torch.Tensor],
    widths: Widths,
    compensation: str,
    setting: Setting,
) -> Fit:
    if compensation == "none":
        return Fit(rank_units(loaded))
    flipped = {name: tensor.flip(1) for name, tensor in inputs.items()}
    folds = [[CalibrationBatch(dict(inputs))], [CalibrationBatch(flipped)]]
    options = PruningOptions(
        importance="magnitude",
        compensation=compensation,
        table_gb=60.0 if setting.hidden >= 4096 else 8.0,
    )
    fitted = rank_and_compensate(loaded, folds, widths, options)
    return Fit(fitted.ranking, fitted.compensations, fitted.nbytes, setting.peak())


def _run_random_policies(
    loaded: LoadedModel,
    inputs: Mapping[str, torch.Tensor],
    widths: Widths,
    fit: Fit,
    count: int,
) -> None:
    rng = np.random.default_rng(0)
    with arranged(loaded, fit.ranking) as ready, torch.inference_mode():
        for _ in range(count):
            kept = [int(rng.choice(widths[c.id])) for c in ready.structure.components]
            policy = Policy.of(ready.structure, kept)
            with narrowed(ready, policy, fit.ranking, fit.tables[0]) as network:
                network.model(**inputs)


def summary(figures: Mapping[str, Any]) -> str:
    """Return the main figures."""
    ratios = [
        f"{run['peak'] / (run['dense'] + run['table']):.2f} times them with compensation {name}"
        for name, run in figures["runs"].items()
    ]
    return paragraph(f"""
        Beside the dense weights and the compensation tables, a search holds little: its peak is
        {joined(ratios, ",")}.""")


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    lines = []
    for compensation, run in figures["runs"].items():
        dense, table, peak, fitting = (
            run[key] / 1e6 for key in ("dense", "table", "peak", "fitting")
        )
        megabytes = (f"{dense:.0f}", f"{table:.0f}", f"{peak:.0f}")
        ratio = f"{peak / (dense + table):.2f}"
        lines.append([compensation, *megabytes, ratio, f"{fitting:.0f}"])
    head = [
        "compensation", "dense weights", "table", "peak, narrowing", "over weights and table",
        "peak, fitting",
    ]  # fmt: skip
    run = next(iter(figures["runs"].values()))
    return f"""{summary(figures)}

Generated by `python benchmarks/memory.py`; do not edit. Figures:
[results](../results/{figures["file"]}.json).

A decoder of {run["parameters"]:,} parameters in {figures["dtype"]} (MLPs of {run["channels"]:,}
channels) runs {figures["policies"]} random policies, narrowed in place. The table has three fits
(one for use, two for scoring) at three widths of each component. Megabytes; peaks are those of the
system, without what the process held before. The target is 1.15. Fitting holds moments, up to
`pruning.table_gb` together with the table.

{markdown(head, lines)}

{origin_line(figures["provenance"])}"""


def _send_figures(connection: Any, compensation: str, setting: Setting) -> None:
    torch.set_num_threads(1)
    connection.send(measure(compensation, setting))


def measure_in_process(compensation: str, setting: Setting) -> dict[str, float]:
    """Call `measure` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_send_figures, args=(sender, compensation, setting))
    process.start()
    sender.close()
    figures: dict[str, float] = receiver.recv()
    process.join()
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--policies", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.hidden, options.layers, options.policies = 256, 2, 3
    print("about 20 s" if options.tiny else "about 2 minutes")
    setting = Setting(
        hidden=options.hidden,
        layers=options.layers,
        policies=options.policies,
        device=options.device,
        dtype=options.dtype,
    )
    runs = {name: measure_in_process(name, setting) for name in ("none", "least-squares")}
    figures = {
        "file": "memory" if options.device == "cpu" else f"memory-{options.hidden}",
        "provenance": provenance(options.device),
        "policies": options.policies,
        "dtype": options.dtype,
        "runs": runs,
    }
    if options.tiny:
        print(section(figures))
        return
    title = "Memory of a search" + ("" if options.device == "cpu" else f", {options.hidden} wide")
    publish(str(figures["file"]), title, figures, section(figures))


if __name__ == "__main__":
    main()
