"""Does Torch-Pruning give the same models, and of which models? ``python benchmarks/peers.py``.

A toy decoder is pruned to half its heads and channels by the same ranking, with `sliced` and with
Torch-Pruning (its dependency graph, our ranking as its importance). The logits of both results
must be the same, and the forward passes of a larger decoder, pruned to the same widths by both,
should take the same time. Then the same with grouped queries: Torch-Pruning runs in a process of
its own, which is ended after a time limit.
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
from _means import markdown
from _pages import publish
from _results import provenance
from _sentences import joined, paragraph
from torch import nn

from effllava_optuna import LoadedModel, Policy, rank_units, sliced
from effllava_optuna.policy import ComponentId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Ranking

_HEADS, _HEAD, _CHANNELS = 4, 16, 96
_IDS = torch.tensor([[1, 7, 9, 11, 13, 20]])


def toy(groups: int, scale: int = 1) -> Any:
    """Create a decoder of three blocks with four query heads.

    Args:
        groups: Number of key/value heads.
        scale: Factor of its widths.
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


def halved(model: Any) -> tuple[LoadedModel, Ranking, Policy]:
    """Inspect a toy and rank its units by magnitude; return all with a policy."""
    loaded = LoadedModel.of(model, None, "toy")
    return loaded, rank_units(loaded), Policy.uniform(loaded.structure, ratio=0.5)


def prune_with_torch_pruning(model: Any, ranking: Ranking, groups: int) -> None:
    """Prune ``model`` in place to the first half of ``ranking``, by Torch-Pruning's graph."""
    import torch_pruning

    scores: dict[nn.Module, torch.Tensor] = {}
    heads: dict[nn.Module, int] = {}
    for layer, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        ranks = _scores_of(ranking.units[ComponentId(f"language.{layer:02d}.attn")])
        for linear, count in (
            (attention.q_proj, _HEADS), (attention.k_proj, groups), (attention.v_proj, groups),
        ):  # fmt: skip
            scores[linear] = ranks.repeat_interleave(linear.out_features // groups)
            heads[linear] = count
        for linear in (mlp.gate_proj, mlp.up_proj):
            scores[linear] = _scores_of(ranking.units[ComponentId(f"language.{layer:02d}.mlp")])

    def importance(group: Any, **_: Any) -> torch.Tensor | None:
        for dependency, indices in group:
            if dependency.target.module in scores:
                return scores[dependency.target.module][torch.as_tensor(indices)]
        return None

    pruner = torch_pruning.pruner.BasePruner(
        model, {"input_ids": _IDS}, importance=importance, pruning_ratio=0.5, num_heads=heads,
        prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5,
        ignored_layers=[model.lm_head],
        root_module_types=[nn.Linear], output_transform=lambda output: output.logits.sum(),
    )  # fmt: skip
    for group in pruner.step(interactive=True):
        names = [dependency.dep.target.name for dependency in group]
        if not any("embed" in name or "norm" in name for name in names):  # not the hidden size
            group.prune()


def _scores_of(units: Any) -> torch.Tensor:
    """Convert a ranking to scores: the first unit has the highest one."""
    scores = torch.empty(len(units))
    scores[torch.from_numpy(units.copy())] = torch.arange(len(units), 0, -1).float()
    return scores


def compare_pruning(rounds: int) -> dict[str, Any]:
    """Prune the multi-head toy by both packages in turn; compare times and logits."""
    warnings.simplefilter("ignore")
    dense = toy(_HEADS)
    loaded, ranking, policy = halved(dense)
    seconds: dict[str, list[float]] = {"effllava_optuna": [], "Torch-Pruning": []}
    for _ in range(rounds):
        started = time.perf_counter()
        ours = sliced(loaded, policy, ranking).model
        seconds["effllava_optuna"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = toy(_HEADS)  # pruned in place; its graph needs gradients
        prune_with_torch_pruning(theirs, ranking, _HEADS)
        seconds["Torch-Pruning"].append(time.perf_counter() - started)
    with torch.no_grad():
        logits = [model(_IDS).logits for model in (dense, ours, theirs)]
    return {
        "seconds": seconds,
        "difference": float((logits[1] - logits[2]).abs().max()),
        "effect": float((logits[0] - logits[1]).abs().max()),
        "parameters": [model.num_parameters() for model in (dense, ours, theirs)],
    }


def compare_latency(scale: int, rounds: int) -> dict[str, Any]:
    """Prune a wider toy by both packages to the same widths; time forward passes in turn."""
    warnings.simplefilter("ignore")
    dense = toy(_HEADS, scale)
    loaded, ranking, policy = halved(dense)
    ours, theirs = sliced(loaded, policy, ranking).model, toy(_HEADS, scale)
    prune_with_torch_pruning(theirs, ranking, _HEADS)
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


def _prune_grouped() -> None:
    warnings.simplefilter("ignore")
    _, ranking, _ = halved(toy(2))
    model = toy(2)
    prune_with_torch_pruning(model, ranking, 2)
    model(_IDS)


def compare_grouped(time_limit_s: float) -> dict[str, Any]:
    """Prune the toy with grouped queries by both packages; Torch-Pruning has a time limit."""
    loaded, ranking, policy = halved(toy(2))
    started = time.perf_counter()
    with torch.no_grad():
        sliced(loaded, policy, ranking).model(_IDS)
    ours = time.perf_counter() - started
    process = multiprocessing.get_context("spawn").Process(target=_prune_grouped)
    started = time.perf_counter()
    process.start()
    process.join(time_limit_s)
    theirs = time.perf_counter() - started
    ended = "still running" if process.is_alive() else f"exit code {process.exitcode}"
    process.kill()
    process.join()
    return {"ours": ours, "theirs": theirs, "ended": ended}


def summary(figures: Mapping[str, Any]) -> str:
    """Return the main figures."""
    times = [
        f"{1e3 * np.median(seconds):.0f} ms ({name})"
        for name, seconds in figures["pruning"]["seconds"].items()
    ]
    return paragraph(f"""
        Both packages remove the same heads and channels of a toy decoder: the logits differ by
        {figures["pruning"]["difference"]:.1e}. Pruning takes {joined(times, ",")}. With grouped
        queries, Torch-Pruning {figures["version"]} was {figures["grouped"]["ended"]} after
        {figures["grouped"]["theirs"]:.0f} s.""")


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    pruning, grouped, wide = figures["pruning"], figures["grouped"], figures["latency"]
    origin, (dense, ours, theirs) = figures["provenance"], pruning["parameters"]
    packages = []
    for (name, seconds), count in zip(pruning["seconds"].items(), (ours, theirs), strict=True):
        ms = np.array(seconds) * 1e3
        times = f"{np.median(ms):.0f} ({ms.min():.0f} to {ms.max():.0f})"
        packages.append([name, times, f"{count:,}"])
    models = []
    for name, ms in wide["ms"].items():
        low, middle, high = np.quantile(ms, (0.25, 0.5, 0.75))
        models.append([name, f"{middle:.1f} ({low:.1f} to {high:.1f})"])
    return f"""{summary(figures)}

Generated by `python benchmarks/peers.py`; do not edit. Figures:
[results](../results/peers.json).

A toy decoder of three blocks ({dense:,} parameters), pruned to half of its heads and channels by
the same ranking. The logits of the two results differ by {pruning["difference"]:.1e} (from those
of the dense model by {pruning["effect"]:.1f}).

{markdown(["pruned by", "ms, median (range)", "parameters left"], packages)}

A forward pass over 256 tokens of a decoder of {wide["parameters"]:,} parameters, pruned to half by
both (logits differ by {wide["difference"]:.1e}), in CPU time of one thread,
{len(wide["ms"]["dense"])} rounds in turn:

{markdown(["model", "ms, median (quartiles)"], models)}

With grouped queries (four query heads, two key/value heads) ours took {grouped["ours"] * 1e3:.0f}
ms, forward pass included; Torch-Pruning {figures["version"]} was {grouped["ended"]} after
{grouped["theirs"]:.0f} s.

{origin["cpu"]}; torch {origin["torch"]}; {origin["date"]}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds")
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.rounds, options.time_limit = 2, 5.0
    torch.set_num_threads(1)
    print(f"about {options.time_limit + 30:.0f} s")
    figures = {
        "provenance": provenance(),
        "version": version("torch-pruning"),
        "pruning": compare_pruning(options.rounds),
        "latency": compare_latency(*((1, 3) if options.tiny else (8, 41))),
        "grouped": compare_grouped(options.time_limit),
    }
    if options.tiny:
        print(section(figures))
        return
    publish("peers", "Side by side with Torch-Pruning", figures, section(figures))


if __name__ == "__main__":
    main()
