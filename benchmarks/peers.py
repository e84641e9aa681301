"""Does Torch-Pruning cut the same, and what of ours can it cut? ``python benchmarks/peers.py``.

A toy decoder is cut to half its heads and channels in the same order of units, by `sliced` and by
Torch-Pruning (its dependency graph, our ranking as its importance); their logits must be the
same, and so should be the time that a forward pass of a larger decoder takes, cut to the same
widths by both. Then the same with grouped queries: Torch-Pruning runs in a process of its own,
which is ended when its time is over.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from _results import provenance, publish
from torch import nn

from effllava_optuna import Loaded, Policy, rank_units, sliced
from effllava_optuna.policy import SiteId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import Order

_HEADS, _HEAD, _CHANNELS = 4, 16, 96
_IDS = torch.tensor([[1, 7, 9, 11, 13, 20]])


def toy(groups: int, scale: int = 1) -> Any:
    """Build a decoder of three blocks, four query heads and ``groups`` key/value heads.

    Args:
        groups: Key/value heads.
        scale: How many times as wide it is.
    """
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=scale * _HEADS * _HEAD, intermediate_size=scale * _CHANNELS,
        num_hidden_layers=3, num_attention_heads=_HEADS, num_key_value_heads=groups,
        max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.12, generator=generator)
    return model


def halved(model: Any) -> tuple[Loaded, Order, Policy]:
    """Understand a toy, rank its units by magnitude, and keep half of them."""
    loaded = Loaded.of(model, None, "toy")
    return loaded, rank_units(loaded), Policy.uniform(loaded.anatomy, keep=0.5)


def by_torch_pruning(model: Any, order: Order, groups: int) -> None:
    """Cut ``model`` in place to the first half of ``order``, by Torch-Pruning's graph."""
    import torch_pruning

    scores: dict[nn.Module, torch.Tensor] = {}
    heads: dict[nn.Module, int] = {}
    for layer, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        ranks = _falling(order.units[SiteId(f"language.{layer:02d}.attn")])
        for linear, count in (
            (attention.q_proj, _HEADS), (attention.k_proj, groups), (attention.v_proj, groups),
        ):  # fmt: skip
            scores[linear] = ranks.repeat_interleave(linear.out_features // groups)
            heads[linear] = count
        for linear in (mlp.gate_proj, mlp.up_proj):
            scores[linear] = _falling(order.units[SiteId(f"language.{layer:02d}.mlp")])

    def ranking(group: Any, **_: Any) -> torch.Tensor | None:
        for dependency, indices in group:
            if dependency.target.module in scores:
                return scores[dependency.target.module][torch.as_tensor(indices)]
        return None

    pruner = torch_pruning.pruner.BasePruner(
        model, {"input_ids": _IDS}, importance=ranking, pruning_ratio=0.5, num_heads=heads,
        prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5,
        ignored_layers=[model.lm_head],
        root_module_types=[nn.Linear], output_transform=lambda output: output.logits.sum(),
    )  # fmt: skip
    for group in pruner.step(interactive=True):
        names = [dependency.dep.target.name for dependency in group]
        if not any("embed" in name or "norm" in name for name in names):  # not the hidden size
            group.prune()


def _falling(units: Any) -> torch.Tensor:
    """Turn a ranking into scores: the first unit has the highest."""
    scores = torch.empty(len(units))
    scores[torch.from_numpy(units.copy())] = torch.arange(len(units), 0, -1).float()
    return scores


def race(rounds: int) -> dict[str, Any]:
    """Cut the multi-head toy in turn, by us and by them; compare times and logits."""
    warnings.simplefilter("ignore")
    dense = toy(_HEADS)
    loaded, order, policy = halved(dense)
    seconds: dict[str, list[float]] = {"effllava_optuna": [], "Torch-Pruning": []}
    for _ in range(rounds):
        started = time.perf_counter()
        ours = sliced(loaded, policy, order).model
        seconds["effllava_optuna"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = toy(_HEADS)  # it cuts in place, and its graph needs gradients
        by_torch_pruning(theirs, order, _HEADS)
        seconds["Torch-Pruning"].append(time.perf_counter() - started)
    with torch.no_grad():
        logits = [model(_IDS).logits for model in (dense, ours, theirs)]
    return {
        "seconds": seconds,
        "difference": float((logits[1] - logits[2]).abs().max()),
        "effect": float((logits[0] - logits[1]).abs().max()),
        "parameters": [model.num_parameters() for model in (dense, ours, theirs)],
    }


def latency(scale: int, rounds: int) -> dict[str, Any]:
    """Cut a wider toy by both to the same widths; time their forward passes in turn."""
    warnings.simplefilter("ignore")
    dense = toy(_HEADS, scale)
    loaded, order, policy = halved(dense)
    ours, theirs = sliced(loaded, policy, order).model, toy(_HEADS, scale)
    by_torch_pruning(theirs, order, _HEADS)
    models = {"dense": dense, "effllava_optuna": ours, "Torch-Pruning": theirs}
    ids = torch.arange(256)[None] % 64
    ms: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        difference = float((ours(ids).logits - theirs(ids).logits).abs().max())
        for _ in range(rounds):
            for name, model in models.items():
                started = time.thread_time()
                model(ids)
                ms[name].append((time.thread_time() - started) * 1e3)
    return {"ms": ms, "difference": difference, "parameters": dense.num_parameters()}


def _cut_grouped() -> None:
    warnings.simplefilter("ignore")
    _, order, _ = halved(toy(2))
    model = toy(2)
    by_torch_pruning(model, order, 2)
    model(_IDS)


def grouped(patience: float) -> dict[str, Any]:
    """Cut the toy with grouped queries; give Torch-Pruning ``patience`` seconds for it."""
    loaded, order, policy = halved(toy(2))
    started = time.perf_counter()
    with torch.no_grad():
        sliced(loaded, policy, order).model(_IDS)
    ours = time.perf_counter() - started
    process = multiprocessing.get_context("spawn").Process(target=_cut_grouped)
    started = time.perf_counter()
    process.start()
    process.join(patience)
    waited = time.perf_counter() - started
    ended = "still running" if process.is_alive() else f"exit code {process.exitcode}"
    process.kill()
    process.join()
    return {"ours": ours, "theirs": waited, "ended": ended}


def section(found: dict[str, Any]) -> str:
    """Write the section of RESULTS.md."""
    race_, grouped_, origin = found["race"], found["grouped"], found["provenance"]
    wide = found["latency"]
    dense, ours, theirs = race_["parameters"]
    rows = [
        f"| {name} | {np.median(times) * 1e3:.0f} ({min(times) * 1e3:.0f} to "
        f"{max(times) * 1e3:.0f}) | {count:,} |"
        for (name, times), count in zip(race_["seconds"].items(), (ours, theirs), strict=True)
    ]
    return "\n".join(
        [
            "Generated by `python benchmarks/peers.py`; do not edit. Figures: "
            "[results](results/peers.json).",
            "",
            f"A toy decoder of three blocks ({dense:,} parameters), half of its heads and "
            "channels cut in the same order of units. The logits of the two results differ by "
            f"{race_['difference']:.1e} (from the dense model's by {race_['effect']:.1f}).",
            "",
            "| cut by | ms, median (range) | parameters left |",
            "|---|---|---|",
            *rows,
            "",
            f"A forward pass over 256 tokens of one of {wide['parameters']:,} parameters, cut to "
            "half by both (logits differ by "
            f"{wide['difference']:.1e}), in CPU time of one thread, {len(wide['ms']['dense'])} "
            "rounds in turn:",
            "",
            "| | ms, median (quartiles) |",
            "|---|---|",
            *(
                f"| {name} | {np.median(ms):.1f} ({np.quantile(ms, 0.25):.1f} to "
                f"{np.quantile(ms, 0.75):.1f}) |"
                for name, ms in wide["ms"].items()
            ),
            "",
            "With grouped queries (four query heads, two key/value heads) ours took "
            f"{grouped_['ours'] * 1e3:.0f} ms, forward pass included; Torch-Pruning "
            f"{found['version']} was {grouped_['ended']} after {grouped_['theirs']:.0f} s.",
            "",
            f"{origin['cpu']}; torch {origin['torch']}; {origin['date']}.",
        ]
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds")
    parser.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    options = parser.parse_args(words)
    if options.tiny:
        options.rounds, options.patience = 2, 5.0
    torch.set_num_threads(1)
    print(f"about {options.patience + 30:.0f} s")
    found = {
        "provenance": provenance(),
        "version": version("torch-pruning"),
        "race": race(options.rounds),
        "latency": latency(*((1, 3) if options.tiny else (8, 41))),
        "grouped": grouped(options.patience),
    }
    if options.tiny:
        print(section(found))
        return
    publish("peers", "Side by side with Torch-Pruning", found, section(found))


if __name__ == "__main__":
    main()
