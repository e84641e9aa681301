"""What a pruned checkpoint adds to its stock class: the layer sizes of a plan.

The plan is the entry `PLAN` of config.json. The source of `resize`, `refuse_paged_cache`,
`remove_output_hooks`, `plan_of` and `adopt_renaming` is copied into the modelling file of native
exports: they use only names that are imported there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    conversion_mapping,
)

from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.errors import ModelError
from effllava_optuna.files import read_text
from effllava_optuna.surgery.visual_tokens.token_reduction import TokenReduction

DESCRIBED = "heads_in_config"
"""Key of a plan: an export has ``per_layer_config`` in its configuration, for engines."""

_TOKENS = "visual_tokens"


def resize(model: Any, plan: Any) -> None:
    """Set the sizes of linear layers and the head counts of ``model`` to those of ``plan``."""
    modules = dict(model.named_modules())
    for path, (rows, columns) in plan["linears"].items():
        parent, _, leaf = path.rpartition(".")
        old = modules[path]
        new = nn.Linear(
            columns,
            rows,
            bias=old.bias is not None or path in plan.get("biases", ()),
            device=old.weight.device,
            dtype=old.weight.dtype,
        )
        setattr(modules[parent], leaf, new)
    for path, counts in plan["counts"].items():
        for name, count in counts.items():
            if type(getattr(modules[path], name)) is not int or type(count) is not int:
                raise ValueError(f"{path}.{name} is not a head count")
            setattr(modules[path], name, count)


def refuse_paged_cache(model: Any, plan: Any) -> None:
    """Refuse continuous batching if heads were removed: its cache has one number for all layers.

    Raises:
        ValueError: The decoder of ``model`` has layers with fewer heads than its configuration.
    """
    decoder = {id(module) for module in model.get_decoder().modules()}
    for path in plan["linears"]:
        attention = model.get_submodule(path.rpartition(".")[0])
        if id(attention) in decoder and hasattr(attention, "head_dim"):
            raise ValueError(
                "Continuous batching reserves a cache for one number of key/value heads, that of "
                f"the configuration; {path} has fewer. Use generate(), or an engine such as vLLM."
            )


def remove_output_hooks(model: Any) -> None:
    """Remove hooks that pickle cannot write; transformers installs them when it needs them.

    It does so when a model first returns hidden states, as a vision tower does.
    """
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[number]
        vars(module).pop("_output_capturing_hooks_installed", None)


def plan_of(plan: Any, prefix: str) -> Any:
    """Return the plan of the part of a model whose paths begin with ``prefix``."""
    part = dict(plan)
    for name in ("linears", "counts"):
        inside = {path: size for path, size in plan[name].items() if path.startswith(prefix)}
        part[name] = {path[len(prefix) :]: size for path, size in inside.items()}
    part["biases"] = [
        path[len(prefix) :] for path in plan.get("biases", ()) if path.startswith(prefix)
    ]
    return part


def adopt_renaming(pruned: str, base: str, model_type: str) -> None:
    """Register the checkpoint key names of class ``base`` for class ``pruned``.

    Without this, transformers (5.14 and later) renames no keys for classes that are not its own,
    does not find the weights that it has written itself, and initialises them at random.
    """
    mapping_of = conversion_mapping.get_checkpoint_conversion_mapping
    mapping = mapping_of(base) or mapping_of(model_type)
    if mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(pruned, mapping, overwrite=True)


def remove_described_heads(config: Any) -> None:
    """Remove the heads of single layers that an export describes for engines.

    The stock class would build these layers with fewer heads; the plan has all sizes.
    """
    if DESCRIBED in (getattr(config, PLAN, None) or ()):
        config.get_text_config().per_layer_config = None


def stock_class(model: Any) -> Any:
    """Return the transformers class of a model, or of the model that it was pruned from."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers."))


def auto_class(config: Any) -> Any:
    """Return the ``Auto`` class for a configuration, of vision-language models if it is of one."""
    return AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM


def takes_images(config: Any) -> bool:
    """Return whether a configuration is that of a vision-language model."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def has_plan(path_or_id: str | Path) -> bool:
    """Return whether ``path_or_id`` is a directory whose config.json has a plan."""
    config = Path(path_or_id) / "config.json"
    try:
        document = json.loads(read_text(config))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and PLAN in document


def token_reduction(config: Any, source: str) -> TokenReduction | None:
    """Return how the image tokens of an export are reduced, from its configuration.

    Raises:
        ModelError: The entry is damaged.
    """
    plan = getattr(config, PLAN, None)
    document = plan.get(_TOKENS) if isinstance(plan, dict) else None
    if document is None:
        return None
    try:
        return TokenReduction.from_json(document)
    except TypeError as error:
        raise ModelError(
            f"{source}/config.json has a damaged {PLAN}.{_TOKENS}.",
            hint="Export the checkpoint again.",
        ) from error
