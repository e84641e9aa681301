"""How much faster is a pruned model, and how much could it be? ``python benchmarks/speedup.py``.

Uniform policies, predicted by the latency table and measured whole, beside what arithmetic allows:
of the prefill, the floating-point operations of the dense model over those that are left; of
decoding, the bytes of weights and cache that a token reads. On a CPU: the embedded model and a
larger decoder with random weights, each exported, read back by plain transformers from its
directory, and raced against the dense checkpoint. With ``--shape 7b --device cuda``: LLaVA-1.5-7B
with random weights, sliced, decoding captured as a CUDA graph; and the largest share of the
decoder at which 1.8 times is measured.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _results import provenance, publish, told
from _shapes import questions, shaped
from latency_model import widths_of

from effllava_optuna import Loaded, Policy, load, narrowed, rank_units, sliced
from effllava_optuna.objectives import Stopwatch, Workload, flops, measure_table, parameters
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import arranged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import Anatomy, Order
    from effllava_optuna.tasks import Sample

KEEPS = (0.8, 0.7, 0.54, 0.5, 0.4)
GOAL = 1.8  # the paper's headline
_SEARCHED = tuple(round(0.40 + 0.02 * step, 2) for step in range(13))


def policy_of(anatomy: Anatomy, keep: float, step: int) -> Policy:
    """Keep a share of every site; MLP channels in multiples of ``step``."""
    counts = []
    for site in anatomy.sites:
        each = step if site.kind is Kind.MLP else 1
        counts.append(
            min(site.width, max(site.floor, each, round(keep * site.width / each) * each))
        )
    return Policy.of(anatomy, counts)


def decode_bytes(network: Loaded, tokens: int, batch: int) -> int:
    """Count the bytes that decoding one token must read: weights of the decoder, and its cache."""
    decoder = network.model.get_decoder()
    read = sum(weight.nbytes for weight in decoder.layers.parameters())
    read += network.model.get_output_embeddings().weight.nbytes
    heads = sum(
        linear.weight.shape[0] for name, linear in decoder.named_modules()
        if name.endswith(("k_proj", "v_proj"))
    )  # fmt: skip
    return int(read + heads * tokens * batch * network.model.dtype.itemsize)


def ideal_of(
    loaded: Loaded, policies: Mapping[float, Policy], order: Order, stopwatch: Stopwatch
) -> dict[float, dict[str, float]]:
    """Give by keep what arithmetic allows, by phase."""
    tokens = stopwatch.prompt_tokens + stopwatch.workload.new_tokens

    def costs(policy: Policy) -> dict[str, float]:
        with narrowed(loaded, policy, order) as network:
            return {
                "prefill": float(flops(network, stopwatch.seen)),
                "decode": float(decode_bytes(network, tokens, stopwatch.workload.batch)),
            }

    dense = costs(Policy.dense(loaded.anatomy))
    return {
        keep: {phase: dense[phase] / cost for phase, cost in costs(policy).items()}
        for keep, policy in policies.items()
    }


def race(
    stopwatch: Stopwatch, dense: Loaded, made: Iterable[tuple[float, Callable[[], Loaded]]]
) -> dict[float, dict[str, float]]:
    """Measure pruned models against the dense one, one at a time; give speed-ups by phase."""
    found: dict[float, dict[str, float]] = {}
    for keep, make in made:
        small = make()
        timings = stopwatch.race(
            {
                "dense": partial(stopwatch.decoder, dense),
                "small": partial(stopwatch.decoder, small),
            },
            "dense",
        )
        found[keep] = {phase: 1 / timing.ratio for phase, timing in timings["small"].items()}
        del small
        if stopwatch.cuda:
            torch.cuda.empty_cache()
    return found


def reloaded(small: Loaded, where: Path) -> Loaded:
    """Export a pruned model, and read it back as plain transformers does."""
    from transformers import AutoModelForImageTextToText

    from effllava_optuna import export

    export(small, where)
    model = AutoModelForImageTextToText.from_pretrained(where, trust_remote_code=True)
    return replace(Loaded.of(model, small.processor, str(where)), cut=small.cut)


def measure(
    loaded: Loaded,
    samples: Sequence[Sample],
    workload: Workload,
    *,
    step: int,
    keeps: Sequence[float] = KEEPS,
    checks: int = 20,
    exporting: bool,
) -> dict[str, Any]:
    """Predict, measure and bound the speed-ups of uniform policies.

    Args:
        loaded: The dense model.
        samples: Questions about pictures.
        workload: What is timed; decoding as well.
        step: MLP channels are multiples of it.
        keeps: Shares of every site.
        checks: Random policies that the latency table is checked on.
        exporting: Measure exports that plain transformers has read, instead of sliced models.
    """
    order, stopwatch = rank_units(loaded), Stopwatch(loaded, samples, workload)
    policies = {keep: policy_of(loaded.anatomy, keep, step) for keep in keeps}
    with arranged(loaded, order) as ready:
        stopwatch.loaded = ready
        table = measure_table(stopwatch, order, widths_of(loaded.anatomy, step), checks=checks)
    stopwatch.loaded = loaded
    ideal = ideal_of(loaded, policies, order, stopwatch)
    with tempfile.TemporaryDirectory() as scratch:

        def make(keep: float) -> Callable[[], Loaded]:
            def made() -> Loaded:
                small = sliced(loaded, policies[keep], order)
                return reloaded(small, Path(scratch) / f"{keep}") if exporting else small

            return made

        measured = race(stopwatch, loaded, ((keep, make(keep)) for keep in keeps))
    dense = table.phases(loaded.anatomy, Policy.dense(loaded.anatomy))
    rows = []
    for keep, policy in policies.items():
        phases = _nearest(table, loaded.anatomy, policy)
        with narrowed(loaded, policy, order) as network:
            left = parameters(network)
        rows.append(
            {
                "keep": keep,
                "kept_share": policy.kept_share(loaded.anatomy),
                "parameters": left,
                "predicted": {phase: dense[phase] / ms for phase, ms in phases.items()},
                "measured": measured[keep],
                "ideal": ideal[keep],
            }
        )
    found = {
        "rows": rows,
        "origin": stopwatch.origin,
        "error": table.error,
        "launched": sorted(stopwatch.launched),
        "exported": exporting,
    }
    return found | {"goal": _goal(loaded, order, stopwatch, step)} if not exporting else found


def _nearest(table: LatencyTable, anatomy: Anatomy, policy: Policy) -> dict[str, float]:
    """Predict a policy whose widths are not in the table, by lines between those that are."""
    found = {}
    for phase, dense in table.dense_ms.items():
        saved = 0.0
        for site, count in zip(anatomy.sites, policy.keep, strict=True):
            known = table.saved_ms[phase][site.id]
            widths = sorted(known)
            saved += float(np.interp(count, widths, [known[width] for width in widths]))
        found[phase] = dense + saved
    return found


def _goal(loaded: Loaded, order: Order, stopwatch: Stopwatch, step: int) -> dict[str, Any]:
    """Find, phase by phase, the largest share of the decoder that runs 1.8 times as fast."""
    policies = {keep: policy_of(loaded.anatomy, keep, step) for keep in _SEARCHED}

    def runner(policy: Policy) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with narrowed(loaded, policy, order) as network:
                return stopwatch.decoder(network)

        return run

    with arranged(loaded, order) as ready:
        stopwatch.loaded = ready
        runs = {keep: runner(policy) for keep, policy in policies.items()}
        dense = runner(Policy.dense(loaded.anatomy))
        timings = stopwatch.race({"dense": dense} | runs, "dense")
    stopwatch.loaded = loaded
    found: dict[str, Any] = {}
    for phase in timings["dense"]:
        fast = [
            policies[keep].kept_share(loaded.anatomy)
            for keep in policies
            if 1 / timings[keep][phase].ratio >= GOAL
        ]
        found[phase] = max(fast, default=None)
    return found


def section(found: Mapping[str, Any]) -> str:
    """Write the section of RESULTS.md."""
    parts = []
    for name, one in found["cases"].items():
        rows = []
        for row in one["rows"]:
            cells = [f"{row['keep']:.2f}", f"{row['kept_share']:.3f}"]
            for phase in one["rows"][0]["measured"]:
                predicted, measured, ideal = (
                    row[what][phase] for what in ("predicted", "measured", "ideal")
                )
                cells += [
                    f"{predicted:.2f}", f"**{measured:.2f}**", f"{ideal:.2f}",
                    f"{measured / ideal:.2f}",
                ]  # fmt: skip
            rows.append("| " + " | ".join(cells) + " |")
        phases = list(one["rows"][0]["measured"])
        head = [
            "keep", "share of the decoder",
            *(f"{phase}: {what}" for phase in phases for what in (
                "predicted", "measured", "ideal", "of ideal"
            )),
        ]  # fmt: skip
        goal = ""
        if "goal" in one:
            told_ = ", ".join(
                f"{phase} {'none' if share is None else format(share, '.3f')}"
                for phase, share in one["goal"].items()
            )
            goal = f"\n\nLargest share of the decoder that is {GOAL} times as fast: {told_}."
        how = "exported, read by plain transformers" if one["exported"] else "sliced"
        origin = one["origin"]
        parts.append(
            f"{name} ({origin['parameters']:,} parameters, {origin['dtype']}, batch "
            f"{origin['batch']}, prompts of {origin['prompt_tokens']} tokens; {how}):\n\n"
            f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n" + "\n".join(rows) + goal
        )
    return f"""Generated by `python benchmarks/speedup.py`; do not edit. Figures:
[results](results/{found["file"]}.json).

Uniform policies against the dense model, times as fast. Predicted: by the latency table;
measured: the model whole, raced against the dense one; ideal: operations (prefill) or bytes read
(decoding) of the dense model over those that are left, as if nothing else took time.

{(chr(10) * 2).join(parts)}

{told(found["provenance"])}"""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", help="7b, 13b, small, tiny; without it, models for a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--multiple-of", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    options = parser.parse_args(words)
    seconds = 0.0 if options.tiny else options.seconds
    keeps, checks = ((0.5,), 4) if options.tiny else (KEEPS, 20)
    if options.device == "cpu":
        torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    print("about 1 min" if options.tiny else "about 8 min")
    if options.shape:
        loaded = shaped(options.shape, options.device, options.dtype)
        work = Workload(options.batch, 16, 1, 3, 0.005, seconds)
        cases[f"{options.shape} shape, random weights"] = loaded, measure(
            loaded, questions(options.shape, 8), work,
            step=options.multiple_of, keeps=keeps, checks=checks, exporting=False,
        )  # fmt: skip
    else:
        from effllava_optuna.tasks import Digits, Split

        loaded = load("digits-vlm", device="cpu")
        work = Workload(4 if options.tiny else 64, 8, 1, 3, 0.01, seconds)
        asked = Digits().samples(Split.PROXY)
        cases["digits-vlm"] = (
            loaded,
            measure(loaded, asked, work, step=1, keeps=keeps, checks=checks, exporting=True),
        )
        if not options.tiny:
            larger = shaped("small")
            work = Workload(2, 8, 1, 3, 0.01, seconds)
            cases["a decoder with random weights"] = (
                larger,
                measure(
                    larger,
                    questions("small", 2),
                    work,
                    step=8,
                    keeps=keeps,
                    checks=checks,
                    exporting=True,
                ),
            )
    for loaded, one in cases.values():
        one["origin"]["parameters"] = parameters(loaded)
    name = "speedup" + (f"-{options.shape}" if options.shape else "")
    found = {
        "file": name,
        "cases": {case: one for case, (_, one) in cases.items()},
        "provenance": provenance(options.device),
    }
    if options.tiny:
        print(section(found))
        return
    title = "Speed-ups" + (f", {options.shape}" if options.shape else "")
    publish(name, title, found, section(found))


if __name__ == "__main__":
    main()
