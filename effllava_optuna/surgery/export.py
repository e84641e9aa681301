"""Write a pruned model as a checkpoint, and prove in a fresh process that it comes back.

A ``native`` checkpoint has safetensors under the stock names, the stock ``model_type``, the sizes
of the layers as a plan in config.json, and a small modelling file for ``trust_remote_code=True``;
`load_pruned` reads it without running that file. A ``portable`` one is padded to what a stock
configuration can say, and loads wherever the base model does.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from effllava_optuna import __version__
from effllava_optuna.errors import ExportError
from effllava_optuna.files import scratch_beside, write_errors_as
from effllava_optuna.surgery import reload
from effllava_optuna.surgery.card import Card, written
from effllava_optuna.surgery.discover import discover
from effllava_optuna.surgery.load import auto_class, load
from effllava_optuna.surgery.portable import portable
from effllava_optuna.surgery.probe import probe
from effllava_optuna.surgery.seal import is_ours, seal, write_policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.surgery.loaded import Loaded

    Form = Literal["native", "portable"]

# Logits of the same weights on the same machine; what differs is memory layout.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_NEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Verified:
    """What a fresh process found in an exported checkpoint.

    Attributes:
        directory: Where it is.
        parameters: Of the whole model, padding included.
        logit_difference: Largest absolute difference to the model that was exported.
        generation_equal: Whether greedy generation gives the same tokens.
        loader: What loaded it: ``load_pruned``, ``trust_remote_code`` or the stock ``Auto`` class.
        padded: Share of the parameters that are only padding.
    """

    directory: str
    parameters: int
    logit_difference: float
    generation_equal: bool
    loader: tuple[str, ...]
    padded: float = 0.0


def export(
    pruned: Loaded,
    directory: str | Path,
    *,
    form: Form = "native",
    card: Card | None = None,
    inputs: Mapping[str, torch.Tensor] | None = None,
    overwrite: bool = False,
) -> Verified:
    """Write ``pruned`` to ``directory`` and verify it in a fresh process.

    Args:
        pruned: What `sliced` gave.
        directory: Made if need be. It appears complete or not at all.
        form: ``native``: each layer has its own size. ``portable``: padded with zeros to one
            width a tower, where the stock configuration has a field for it, else to the dense
            width; loads in stock transformers, and in whatever else loads the base model.
        card: What the model card shall say about data and measurements.
        inputs: Keyword arguments of the model to compare answers on; a picture and two questions
            where there is a processor to make them.
        overwrite: Replace an export that is already there.

    Raises:
        ExportError: The directory holds something, cannot be written, there is nothing to compare
            answers on, the model is narrowed instead of sliced, or the checkpoint does not come
            back: other keys, other logits, other tokens.
    """
    target = Path(directory).resolve()
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (overwrite and is_ours(target)):
        raise ExportError(
            f"{directory} is not empty.",
            hint="Choose another directory, or allow overwriting an earlier export.",
        )
    if inputs is None and pruned.processor is None:
        raise ExportError(
            f"{pruned.source} has no processor to make a question with.",
            hint="Give inputs to compare answers on.",
        )
    asked = dict(inputs) if inputs is not None else probe(pruned.processor)
    leaving = portable(pruned) if form == "portable" else pruned
    plan = _plan(leaving)
    if form == "portable" and (plan["linears"] or plan["counts"]):
        raise ExportError(
            f"{pruned.source} has sizes or biases that its configuration cannot say, such as "
            f"{next(iter(plan['linears'] or plan['counts']))}.",
            hint="Export it as native.",
        )
    hint = "Choose a directory on a disk with room for the checkpoint."
    with write_errors_as(ExportError, target, hint=hint), scratch_beside(target) as scratch:
        draft = scratch / "checkpoint"
        _write(leaving, draft, plan if form == "native" else None)
        found = _verify(pruned, draft, scratch, asked)
        spare = 1 - pruned.model.num_parameters() / leaving.model.num_parameters()
        report = Verified(str(directory), **found, padded=round(spare, 6))
        _describe(pruned, draft, form, card or Card(), report)
        seal(draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    return report


def load_pruned(directory: str | Path, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load what `export` wrote, without running code from the directory.

    Raises:
        ModelError: The directory holds no such checkpoint, or a damaged one.
    """
    if not is_ours(directory):
        raise ExportError(
            f"{directory} holds no checkpoint that effllava_optuna wrote.",
            hint="Give the directory that `export` wrote; use load() for others.",
        )
    return load(directory, device=device, dtype=dtype)


def _plan(pruned: Loaded) -> dict[str, Any]:
    """Compare the model with the one that its configuration describes."""
    base = reload.stock_class(pruned.model)
    with torch.device("meta"):
        stock = dict(base(pruned.model.config).named_modules())
    plan: dict[str, Any] = {
        "format": 1, "base": base.__name__, "version": __version__, "linears": {}, "counts": {},
    }  # fmt: skip
    handles = {id(handle.module): handle for handle in discover(pruned.model).handles}
    for path, module in pruned.model.named_modules():
        if isinstance(module, nn.Linear):
            shape = (module.out_features, module.in_features)
            if module.weight.shape != shape:
                raise ExportError(
                    f"{path} is narrowed at present.", hint="Export what `sliced` gives."
                )
            gained = module.bias is not None and stock[path].bias is None
            if gained or shape != (stock[path].out_features, stock[path].in_features):
                plan["linears"][path] = list(shape)
            if gained:  # a refit may bring one to a layer that has none
                plan.setdefault("biases", []).append(path)
        if id(module) in handles:
            counts = {name: getattr(module, name) for name in handles[id(module)].counts}
            changed = {n: c for n, c in counts.items() if getattr(stock[path], n) != c}
            if changed:
                plan["counts"][path] = changed
    return plan


def _write(pruned: Loaded, draft: Path, plan: dict[str, Any] | None) -> None:
    """Write weights, configuration and processor; with a plan, the modelling file, too."""
    model = pruned.model
    base = reload.stock_class(model)
    # A native class writes hub names; ours, once registered, writes the same ones.
    reload.adopt_renaming(type(model).__name__, base.__name__, model.config.model_type)
    model.save_pretrained(draft)
    if pruned.processor is not None:
        pruned.processor.save_pretrained(draft)
    for leftover in draft.glob("*.py"):
        leftover.unlink()
    place = draft / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    for key in ("auto_map", reload.PLAN):
        config.pop(key, None)
    config["architectures"] = [base.__name__]
    if plan is not None:
        name = f"Pruned{base.__name__}"
        auto = auto_class(model.config).__name__
        config |= {
            "architectures": [name],
            "auto_map": dict.fromkeys((auto, "AutoModel"), f"modeling_effllava.{name}"),
            reload.PLAN: plan,
        }
        (draft / "modeling_effllava.py").write_text(_modelling(model, base), encoding="utf-8")
    place.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _modelling(model: Any, base: type) -> str:
    text = (Path(__file__).parent / "modeling_effllava.py.txt").read_text(encoding="utf-8")
    for name, value in {
        "BASE": base.__name__,
        "PLAN": reload.PLAN,
        "VERSION": __version__,
        "MODEL_TYPE": model.config.model_type,
        "RESIZE": inspect.getsource(reload.resize),
        "ADOPT": inspect.getsource(reload.adopt_renaming),
    }.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _describe(pruned: Loaded, draft: Path, form: Form, card: Card, report: Verified) -> None:
    """Write policy.json, the model card and what the fresh process found."""
    cut = pruned.cut
    document: dict[str, Any] = {
        "form": form,
        "base_model": pruned.source if cut is None else cut.base,
        "effllava_optuna": __version__,
        "transformers": transformers.__version__,
    }
    if cut is not None:
        sites = {site: {"kept": kept, "of": width} for site, (kept, width) in cut.kept.items()}
        document |= {"anatomy": cut.anatomy, "order": cut.order, "sites": sites}
    document["metrics"] = [asdict(metric) for metric in card.metrics]
    write_policy(draft, document)
    (draft / "README.md").write_text(written(pruned, card, form), encoding="utf-8")
    found = json.dumps(asdict(report), indent=2)
    (draft / "verified.json").write_text(found + "\n", encoding="utf-8")


@torch.no_grad()
def respond(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give logits and greedily generated tokens for ``inputs``."""
    device = model.get_input_embeddings().weight.device
    moved = {name: value.to(device) for name, value in inputs.items()}
    logits = model(**moved).logits[:, -1].float()
    tokens = model.generate(**moved, max_new_tokens=_NEW_TOKENS, do_sample=False)
    new = tokens[:, moved["input_ids"].shape[1] :]
    padded = nn.functional.pad(new, (0, _NEW_TOKENS - new.shape[1]), value=-1)
    return {"logits": logits.cpu().contiguous(), "tokens": padded.cpu().contiguous()}


def _verify(
    pruned: Loaded, draft: Path, scratch: Path, inputs: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    expected = respond(pruned.model, inputs)
    save_file({name: value.contiguous() for name, value in inputs.items()}, scratch / "in")
    save_file(expected, scratch / "out")
    dtype = str(pruned.model.dtype).removeprefix("torch.")
    run = subprocess.run(
        [
            sys.executable, "-m", "effllava_optuna.surgery.verify",
            str(draft), str(scratch / "in"), str(scratch / "out"), str(pruned.device), dtype,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")},
    )  # fmt: skip
    if run.returncode:
        last = (run.stderr.strip() or "no message").splitlines()[-1]
        raise ExportError(
            f"The export of {pruned.source} does not load in a fresh process: {last}",
            hint="Nothing was written.",
        )
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    found["loader"] = tuple(found.get("loader", ()))
    tolerance = TOLERANCE[pruned.model.dtype]
    worst = max(1.0, float(expected["logits"].abs().max()))
    if not found["logit_difference"] <= tolerance * worst or not found["generation_equal"]:
        raise ExportError(
            f"The export of {pruned.source} comes back as another model: logits differ by "
            f"{found['logit_difference']:.2g}, same tokens: {found['generation_equal']}.",
            hint=f"Nothing was written; transformers is {transformers.__version__}.",
        )
    return found
