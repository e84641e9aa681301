"""What a policy costs on a model, beside the forward passes of the network that it stands for.

Needs torch, transformers and pillow, and of the package nothing that knows of a search.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _shapes import SHAPES, config_of, processor_of
from torch.profiler import ProfilerActivity, profile
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from effllava_optuna import Loaded
from effllava_optuna.objectives import answers, ask, folds_of
from effllava_optuna.policy import Order, Policy
from effllava_optuna.surgery import (
    Basis,
    Fitted,
    Probe,
    Recipe,
    arranged,
    compensate,
    projector,
    rank_units,
    running,
)
from effllava_optuna.surgery.discover import LANGUAGE, discover
from effllava_optuna.tasks import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.objectives import Asked
    from effllava_optuna.surgery import Seen
    from effllava_optuna.tasks import Sample

KEEPS = (1.0, 0.75, 0.5, 0.35)
PROFILED = 0.5
# By what an operator's name begins with, in this order.
_PARTS = {
    "attention": ("_scaled_dot", "_flash", "_efficient", "_fused_sdp", "_softmax", "_cudnn_att"),
    "GEMM": ("addmm", "mm", "bmm", "baddbmm", "linear", "matmul", "mkldnn_linear"),
    "copies": ("copy_", "_to_copy", "cat", "clone", "contiguous", "masked_scatter", "index"),
}


def measure(
    loaded: Loaded,
    samples: Sequence[Sample],
    *,
    rounds: int,
    refit: str = "least-squares",
    folds: int = 2,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Time policies against the plain forward passes of the dense model, in turn.

    Args:
        loaded: The model, on any device.
        samples: Proxy samples.
        rounds: How often everything is timed, after once for warming up.
        refit: ``none``, ``bias`` or ``least-squares``.
        folds: Of the samples; each is answered by a refit of its own.
        batch_size: The most samples of a forward pass.

    Returns:
        Milliseconds of each round: ``plain`` (dense forward passes over the batches, pictures
        seen), and by keep ``trial`` (`answers`) and ``forward`` (the policy's own forward
        passes); ``put_on``, to put a random policy on and off, for each fit that scores; and
        ``profile``, the share of each part in a trial at half the width.
    """
    basis = _basis(loaded, samples, folds, refit, batch_size)
    asked = tuple(
        item
        for fold, mine in enumerate(folds_of(samples, folds))
        for item in ask(loaded, mine, batch_size=batch_size, fit=fold + 1)
    )
    policies = {keep: Policy.uniform(loaded.anatomy, keep=keep) for keep in KEEPS}
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"plain": [], "put_on": []}
    found |= {what: {str(keep): [] for keep in KEEPS} for what in ("trial", "forward")}
    with arranged(loaded, basis.order) as ready:
        for turn in range(rounds + 1):
            mine = _turn(ready, basis, policies, asked)
            mine["put_on"] = _put_on(ready, basis, rng)
            if turn:
                _add(found, mine)
        found["profile"] = _shares(
            ready, partial(answers, ready, basis, policies[PROFILED], asked)
        )
    tokens = [item.seen.inputs["attention_mask"] for item in asked]
    return found | {
        "device": _name(loaded.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "samples": len(samples),
        "batches": len(asked),
        "tokens": sum(mask.numel() for mask in tokens),
        "padding": sum(int((mask == 0).sum()) for mask in tokens),
        "refit": refit,
    }


def put_on_shape(name: str, rounds: int) -> list[float]:
    """Time how long it takes to put a random policy on a model of a shape, and off again.

    Its weights and fits have no data: putting them on is views and look-ups, whatever they hold.
    """
    shape = SHAPES[name]
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(
            config_of(shape, processor_of(shape)), dtype=torch.bfloat16
        )
    loaded = Loaded(model, None, discover(model).only((LANGUAGE,), depth=False), name)
    anatomy, rng = loaded.anatomy, np.random.default_rng(0)
    order = Order.from_scores(
        anatomy, "random", {site.id: rng.random(site.width) for site in anatomy.sites}
    )
    refit = {
        (handle.site.id, count): Fitted(
            torch.empty(
                handle.linear(handle.output).out_features, handle.columns * count,
                dtype=torch.bfloat16, device="meta",
            )
        )
        for keep in KEEPS
        for handle, count in zip(
            loaded.handles, Policy.uniform(anatomy, keep=keep).keep, strict=True
        )
    }  # fmt: skip
    none = (None,) * 2
    basis = Basis("shape", order, (refit, refit), none)
    with arranged(loaded, order) as ready:
        return [_put_on(ready, basis, rng) for _ in range(rounds)]


def _turn(
    ready: Loaded, basis: Basis, policies: dict[float, Policy], asked: Sequence[Asked]
) -> dict[str, Any]:
    device = ready.device
    mine: dict[str, Any] = {
        "plain": _ms(device, partial(_pass, [item.seen for item in asked], ready)),
        "trial": {},
        "forward": {},
    }
    for keep, policy in policies.items():
        mine["trial"][str(keep)] = _ms(device, partial(answers, ready, basis, policy, asked))
        spent = 0.0
        for fit, items in groupby(asked, key=lambda item: item.fit):
            seen = [item.seen for item in items]
            with running(ready, basis, policy, fit) as network:
                spent += _ms(device, partial(_pass, seen, network))
        mine["forward"][str(keep)] = spent
    return mine


def _add(found: dict[str, Any], mine: dict[str, Any]) -> None:
    for name, value in mine.items():
        if isinstance(value, dict):
            _add(found[name], value)
        else:
            found[name].append(value)


@torch.inference_mode()
def _pass(seen: Sequence[Seen], loaded: Loaded) -> None:
    for item in seen:
        inputs = dict(item.inputs)
        if item.features is not None:
            projected = list(projector(loaded.model)(item.features))
            encoded = BaseModelOutputWithPooling(pooler_output=projected)
            inputs["mm_encoder_outputs"] = {"image": encoded}
        loaded.model(**inputs, logits_to_keep=item.positions, use_cache=False)


def _put_on(ready: Loaded, basis: Basis, rng: np.random.Generator) -> float:
    """Put on a policy of which every site has a width of its own."""
    anatomy = ready.anatomy
    choices = [Policy.uniform(anatomy, keep=keep).keep for keep in KEEPS]
    keep = [int(rng.choice(counts)) for counts in zip(*choices, strict=True)]
    policy = Policy.of(anatomy, keep)

    def work() -> None:
        with torch.inference_mode(), running(ready, basis, policy, 1):
            pass

    return _ms(ready.device, work)


def _basis(
    loaded: Loaded, samples: Sequence[Sample], folds: int, refit: str, batch_size: int
) -> Basis:
    none = (None,) * (folds + 1)
    if refit == "none":
        return Basis("plain", rank_units(loaded), none, none)
    widths = {
        site.id: tuple(sorted({max(site.floor, round(keep * site.width)) for keep in KEEPS}))
        for site in loaded.anatomy.sites
    }
    dealt = [
        [
            Probe(batch.inputs, batch.targets, batch.answers)
            for batch in encode(loaded.processor, mine, batch_size=batch_size)
        ]
        for mine in folds_of(samples, folds)
    ]
    recipe = Recipe("magnitude", refit, "all", table_gb=32.0)
    found = compensate(loaded, dealt, widths, recipe)
    return Basis("fitted", found.order, found.refits, none)


def _ms(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return 1000 * (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _shares(ready: Loaded, work: Callable[[], object]) -> dict[str, float]:
    """Give the share of a trial that each part takes; on a GPU, what is left is its idle time."""
    on_gpu = ready.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as prof:
        wall = _ms(ready.device, work)
    parts: defaultdict[str, float] = defaultdict(float)
    for row in prof.key_averages():
        if row.device_type.name == "CPU" and row.key.startswith("aten::"):
            spent = row.self_device_time_total if on_gpu else row.self_cpu_time_total
            parts[_part(row.key.removeprefix("aten::"))] += spent / 1000
    shares = {name: parts[name] / wall for name in (*_PARTS, "other operators")}
    return shares | {"Python, or idle": 1 - sum(shares.values())}


def _part(operator: str) -> str:
    for name, beginnings in _PARTS.items():
        if operator.startswith(beginnings):
            return name
    return "other operators"
