"""Write what a native checkpoint has beside its weights: the plan, the code, and entries for vLLM.

The Transformers backend of vLLM builds the class of ``AutoModel``, without the output layer, and
reads the attention heads of each layer from ``per_layer_config`` of the configuration. It finds
the widths of the MLPs in the modules.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel

from effllava_optuna import __version__
from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.errors import ExportError
from effllava_optuna.policy import Kind
from effllava_optuna.surgery.structure.generated_code import (
    MODELLING,
    PROCESSING,
    modelling_source,
    processing_source,
)
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE
from effllava_optuna.surgery.structure.pruned_class import (
    DESCRIBED,
    auto_class,
    remove_described_heads,
    stock_class,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from effllava_optuna.surgery.visual_tokens.token_reduction import TokenReduction

_LAYERS, _ALLOW = "per_layer_config", "allow_global_per_layer_attribute_access"


class ModelBody(NamedTuple):
    """The part of a model that computes hidden states.

    Attributes:
        name: Name of its transformers class.
        path: Its path in the model.
    """

    name: str
    path: str


def model_body(model: Any) -> ModelBody | None:
    """Return the part of a model that ``AutoModel`` builds; None: the model has no such part."""
    mapping: Any = AutoModel._model_mapping
    path: str = model.base_model_prefix
    if type(model.config) not in mapping:
        return None
    body = getattr(model, path, None)
    expected = mapping[type(model.config)]
    return ModelBody(expected.__name__, path) if isinstance(body, expected) else None


def layer_plan(model: Any, reduction: TokenReduction | None) -> dict[str, Any]:
    """Compare the layer sizes of a model with those that its configuration describes.

    Args:
        model: A transformers model.
        reduction: How its image tokens are reduced; None: they are not.

    Returns:
        A plan that can be written as JSON: ``linears``: by path, ``[rows, columns]`` of the
        linear layers that differ; ``biases``: paths of layers that have a bias only here;
        ``counts``: by path, the head counts that differ; ``visual_tokens``: how image tokens are
        reduced, if they are.

    Raises:
        ExportError: The model is narrowed.
    """
    base, config = stock_class(model), copy.deepcopy(model.config)
    remove_described_heads(config)
    with torch.device("meta"):
        stock = dict(base(config).named_modules())
    plan: dict[str, Any] = {
        "format": 1 if reduction is None else 2, "base": base.__name__, "version": __version__,
        "linears": {}, "counts": {},
    }  # fmt: skip
    handles = {id(handle.module): handle for handle in inspect_model(model).handles}
    for path, module in model.named_modules():
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


def complete_checkpoint(model: Any, directory: Path, plan: dict[str, Any] | None) -> None:
    """Complete what ``save_pretrained`` of the stock class wrote: config.json and the code.

    Args:
        model: The model that was written.
        directory: The checkpoint.
        plan: Written to config.json, with the modelling file that reads it; None: the stock
            class can load the checkpoint.
    """
    config_file = directory / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for key in ("auto_map", PLAN):
        config.pop(key, None)
    base = stock_class(model)
    config["architectures"] = [base.__name__]
    if plan is not None:
        name, body = f"Pruned{base.__name__}", model_body(model)
        config |= {
            "architectures": [name],
            "auto_map": {
                auto_class(model.config).__name__: f"{MODELLING}.{name}",
                "AutoModel": f"{MODELLING}.{name if body is None else f'Pruned{body.name}'}",
            },
            PLAN: dict(plan),
        }
        source = modelling_source(
            base.__name__, model.config.model_type, body, reduces_tokens="visual_tokens" in plan
        )
        (directory / f"{MODELLING}.py").write_text(source, encoding="utf-8")
    _describe_heads(config, model)
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def complete_processor_files(base: str, reduction: TokenReduction, directory: Path) -> None:
    """Write the code of a processor that inserts fewer image tokens, and refer to it.

    Args:
        base: Name of its transformers class.
        reduction: How image tokens are reduced.
        directory: Has the files that ``save_pretrained`` of the stock class wrote.
    """
    source = processing_source(base, reduction)
    (directory / f"{PROCESSING}.py").write_text(source, encoding="utf-8")
    file = directory / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoProcessor": f"{PROCESSING}.{base}"}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _describe_heads(config: dict[str, Any], model: Any) -> None:
    """Write the attention heads of the decoder's layers that differ into a configuration.

    A configuration that describes layers by itself (Gemma 4) is left as it is.

    Args:
        config: The configuration as JSON; changed. If it has no plan, no layer differs.
        model: The model.
    """
    text, decoder = _text_part(config, model.config)
    plan, earlier = config.get(PLAN), getattr(model.config, PLAN, None) or {}
    if DESCRIBED in earlier:  # by an earlier export
        for key in (_LAYERS, _ALLOW):
            text.pop(key, None)
    elif getattr(decoder, "is_heterogeneous", False):
        return
    layers = {} if plan is None else dict(_changed_heads(model, plan))
    if layers and plan is not None:
        text[_LAYERS], text[_ALLOW], plan[DESCRIBED] = layers, True, True


def find_engine_obstacle(model: Any, plan: dict[str, Any]) -> str:
    """Return why vLLM cannot build a native checkpoint from its files; empty if it can.

    Args:
        model: The model that was written.
        plan: The plan in config.json.
    """
    if model_body(model) is None:
        return "transformers has no class for its part without the output layer"
    paths = {id(module): path for path, module in model.named_modules()}
    described = [layer for layer, _ in _changed_heads(model, plan)] if DESCRIBED in plan else []
    for handle in inspect_model(model).handles:
        component, path = handle.component, paths[id(handle.module)]
        changes = any(f"{path}.{name}" in plan["linears"] for name in handle.inputs)
        is_attention = component.tower == LANGUAGE and component.kind is Kind.ATTN
        if is_attention and changes and str(component.layer) not in described:
            return f"its configuration does not describe the heads of {component.id}"
    return ""


def _changed_heads(model: Any, plan: dict[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the layers of the decoder whose heads a plan changes, with their head counts."""
    paths = {id(module): path for path, module in model.named_modules()}
    for handle in inspect_model(model).handles:
        module: Any = handle.module
        path = paths[id(module)]
        # Of one group of keys and values, query heads alone are removed.
        changes = any(f"{path}.{name}" in plan["linears"] for name in ("q_proj", "k_proj"))
        if handle.component.tower == LANGUAGE and changes:
            yield (
                str(handle.component.layer),
                {
                    "num_attention_heads": module.q_proj.weight.shape[0] // module.head_dim,
                    "num_key_value_heads": module.k_proj.weight.shape[0] // module.head_dim,
                },
            )


def _text_part(config: dict[str, Any], of_model: Any) -> tuple[dict[str, Any], Any]:
    """Return the part of a configuration that describes the decoder, as JSON and as an object."""
    decoder = of_model.get_text_config()
    names = [name for name in of_model.sub_configs if getattr(of_model, name, None) is decoder]
    return (config[names[0]] if names else config), decoder
