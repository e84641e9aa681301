"""Create the class that loads a pruned checkpoint: the stock class with the layer sizes of a plan.

The plan is the entry `PLAN` of config.json. The source of `resize` and `adopt_renaming` is copied
into the modelling file of native exports: both use only names that are imported there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import conversion_mapping

from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.errors import ModelError
from effllava_optuna.files import read_text
from effllava_optuna.surgery.visual_tokens.token_reduction import TokenReduction
from effllava_optuna.surgery.visual_tokens.token_selection import reduce_model

DESCRIBED = "heads_in_config"
"""Key of a plan: an export has ``per_layer_config`` in its configuration, for engines."""

_FORMATS = (1, 2)  # 2: with reduced image tokens
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


def stock_class(model: Any) -> Any:
    """Return the transformers class of a model, or of the model that it was pruned from."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers."))


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


def pruned_class(directory: Path) -> Any:
    """Create the class that loads ``directory``, without running code from there.

    Raises:
        ModelError: The plan is damaged, has an unsupported format, or names a class that
            transformers does not have.
    """
    config = json.loads(read_text(directory / "config.json"))
    plan = config[PLAN]
    if not isinstance(plan, dict) or not {"format", "base", "linears", "counts"} <= set(plan):
        raise ModelError(
            f"{directory}/config.json has a damaged {PLAN!r}.",
            hint="Export the checkpoint again.",
        )
    if plan["format"] not in _FORMATS:
        raise ModelError(
            f"{directory}/config.json has a plan of format {plan['format']!r}; "
            f"this version reads {' and '.join(map(str, _FORMATS))}.",
            hint="Use the version of effllava_optuna that wrote it.",
        )
    base: Any = getattr(transformers, str(plan["base"]), None)
    is_model = isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)
    if not is_model:
        raise ModelError(
            f"{directory} was pruned from a {plan['base']}, which transformers "
            f"{transformers.__version__} does not have.",
            hint=f"Use transformers {config.get('transformers_version')}.",
        )

    def initialise(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        if DESCRIBED in plan:  # for engines; the plan describes all sizes
            config.get_text_config().per_layer_config = None
        base.__init__(self, config, *arguments, **options)
        resize(self, getattr(config, PLAN))
        if _TOKENS in plan:
            reduce_model(self, plan[_TOKENS])

    name = f"Pruned{plan['base']}"
    adopt_renaming(name, plan["base"], config["model_type"])
    return type(name, (base,), {"__init__": initialise, "__module__": __name__})
