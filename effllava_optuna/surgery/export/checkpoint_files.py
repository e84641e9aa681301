"""Write the files of a checkpoint: weights, configuration, code, policy and model card."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import GenerationConfig

from effllava_optuna import __version__
from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.export.engine_support import describe_layers, model_body
from effllava_optuna.surgery.export.generated_code import (
    MODELLING,
    PROCESSING,
    modelling_source,
    processing_source,
)
from effllava_optuna.surgery.export.model_card import render_model_card
from effllava_optuna.surgery.loading.loader import auto_class
from effllava_optuna.surgery.loading.policy_file import write_policy
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.pruned_class import adopt_renaming, stock_class

if TYPE_CHECKING:
    from effllava_optuna.surgery.export.checkpoint import Form, VerifiedExport
    from effllava_optuna.surgery.export.model_card import ModelCard
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel
    from effllava_optuna.surgery.visual_tokens.token_reduction import TokenReduction


def size_plan(pruned: LoadedModel) -> dict[str, Any]:
    """Compare the layer sizes of a model with those that its configuration describes.

    Returns:
        A plan that can be written as JSON: ``linears``: by path, ``[rows, columns]`` of the
        linear layers that differ; ``biases``: paths of layers that have a bias only here;
        ``counts``: by path, the head counts that differ; ``visual_tokens``: how image tokens are
        reduced, if they are.

    Raises:
        ExportError: The model is narrowed.
    """
    base = stock_class(pruned.model)
    with torch.device("meta"):
        stock = dict(base(pruned.model.config).named_modules())
    reduction = pruned.visual_tokens
    plan: dict[str, Any] = {
        "format": 1 if reduction is None else 2, "base": base.__name__, "version": __version__,
        "linears": {}, "counts": {},
    }  # fmt: skip
    handles = {id(handle.module): handle for handle in inspect_model(pruned.model).handles}
    for path, module in pruned.model.named_modules():
        if isinstance(module, nn.Linear):
            shape = (module.out_features, module.in_features)
            if module.weight.shape != shape:
                raise ExportError(
                    f"{path} is narrowed at present.", hint="Export the result of `sliced`."
                )
            # A compensation may add a bias to a layer that has none.
            gained_bias = module.bias is not None and stock[path].bias is None
            if gained_bias or shape != (stock[path].out_features, stock[path].in_features):
                plan["linears"][path] = list(shape)
            if gained_bias:
                plan.setdefault("biases", []).append(path)
        if id(module) in handles:
            counts = {name: getattr(module, name) for name in handles[id(module)].counts}
            changed = {n: c for n, c in counts.items() if getattr(stock[path], n) != c}
            if changed:
                plan["counts"][path] = changed
    if reduction is not None:
        plan["visual_tokens"] = reduction.to_json()
    return plan


def write_checkpoint(pruned: LoadedModel, directory: Path, plan: dict[str, Any] | None) -> None:
    """Write weights, configuration and processor.

    Args:
        pruned: The model.
        directory: Created.
        plan: Written to config.json, with the modelling file that reads it; None: the stock
            class can load the checkpoint.
    """
    # `save_pretrained` changes the configuration of the model that it writes, and refuses a
    # generation configuration that it finds inconsistent; the checkpoint's is written as it is.
    model = copy.copy(pruned.model)
    model.config = copy.deepcopy(model.config)
    model.generation_config = GenerationConfig()
    base = stock_class(model)
    # Stock classes write the key names of the hub; a pruned class does once it is registered.
    adopt_renaming(type(model).__name__, base.__name__, model.config.model_type)
    model.save_pretrained(directory)
    pruned.model.generation_config.to_json_file(directory / "generation_config.json")
    if pruned.processor is not None:
        pruned.processor.save_pretrained(directory)
    for leftover in directory.glob("*.py"):
        leftover.unlink()
    config_file = directory / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for key in ("auto_map", PLAN):
        config.pop(key, None)
    config["architectures"] = [base.__name__]
    if plan is not None:
        name, body = f"Pruned{base.__name__}", model_body(pruned.model)
        auto = auto_class(model.config).__name__
        config |= {
            "architectures": [name],
            "auto_map": {
                auto: f"{MODELLING}.{name}",
                "AutoModel": f"{MODELLING}.{name if body is None else f'Pruned{body.name}'}",
            },
            PLAN: dict(plan),
        }
        source = modelling_source(
            base.__name__, model.config.model_type, body, reduces_tokens="visual_tokens" in plan
        )
        (directory / f"{MODELLING}.py").write_text(source, encoding="utf-8")
        if pruned.visual_tokens is not None and pruned.processor is not None:
            _write_processing(pruned.processor, pruned.visual_tokens, directory)
    describe_layers(config, pruned)
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_processing(processor: Any, reduction: TokenReduction, directory: Path) -> None:
    """Write the code of a processor that inserts fewer image tokens, and refer to it."""
    base = type(processor).__name__
    source = processing_source(base, reduction)
    (directory / f"{PROCESSING}.py").write_text(source, encoding="utf-8")
    file = directory / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoProcessor": f"{PROCESSING}.Reduced{base}"}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_description(
    pruned: LoadedModel, directory: Path, form: Form, card: ModelCard, verified: VerifiedExport
) -> None:
    """Write policy.json, the model card and the result of the verification."""
    record = pruned.pruning_record
    document: dict[str, Any] = {
        "form": form,
        "base_model": pruned.source if record is None else record.base_model,
        "effllava_optuna": __version__,
        "transformers": transformers.__version__,
    }
    if pruned.visual_tokens is not None:
        document["visual_tokens"] = pruned.visual_tokens.to_json()
    if record is not None:
        document |= {
            "structure": record.structure,
            "importance": record.importance,
            "components": {
                component: {"kept": kept, "of": width}
                for component, (kept, width) in record.kept.items()
            },
        }
    document["metrics"] = [asdict(metric) for metric in card.metrics]
    write_policy(directory, document)
    text = render_model_card(pruned, card, form, verified.engines)
    (directory / "README.md").write_text(text, encoding="utf-8")
    verification = json.dumps(asdict(verified), indent=2)
    (directory / "verified.json").write_text(verification + "\n", encoding="utf-8")
