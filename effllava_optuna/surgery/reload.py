"""Build the class of a pruned checkpoint: the stock class, resized by the plan in its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import conversion_mapping

from effllava_optuna.errors import ModelError

PLAN = "effllava_plan"


def resize(model: Any, plan: Any) -> None:
    """Give each linear layer and head count the size that ``plan`` says."""
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
                raise ValueError(f"{path}.{name} is no head count")
            setattr(modules[path], name, count)


def adopt_renaming(pruned: str, base: str, model_type: str) -> None:
    """Let checkpoints of class ``pruned`` be read under the key names of class ``base``.

    Without this, transformers (5.14 and later) renames nothing for classes that are not its own,
    finds no weight under the names it wrote itself, and fills in random ones.
    """
    known = conversion_mapping.get_checkpoint_conversion_mapping
    mapping = known(base) or known(model_type)
    if mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(pruned, mapping, overwrite=True)


def stock_class(model: Any) -> Any:
    """Give the class of transformers that a model is of, or was cut from."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers."))


def has_plan(place: str | Path) -> bool:
    """Tell whether ``place`` is a directory whose layers have the sizes of a plan."""
    config = Path(place) / "config.json"
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and PLAN in document


def pruned_class(directory: Path) -> Any:
    """Make the class that loads ``directory``, without running code from there.

    Raises:
        ModelError: The plan is damaged, of a later format, or of a class that transformers lacks.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    plan = config[PLAN]
    if not isinstance(plan, dict) or not {"format", "base", "linears", "counts"} <= set(plan):
        raise ModelError(
            f"{directory} has a damaged {PLAN!r} in its config.json.",
            hint="Export the checkpoint again.",
        )
    if plan["format"] != 1:
        raise ModelError(
            f"{directory} has a plan of format {plan['format']!r}, this version reads 1.",
            hint="Use the version of effllava_optuna that wrote it.",
        )
    base: Any = getattr(transformers, str(plan["base"]), None)
    known = isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)
    if not known:
        raise ModelError(
            f"{directory} was cut from a {plan['base']}, which transformers "
            f"{transformers.__version__} does not have.",
            hint=f"Use transformers {config.get('transformers_version')}.",
        )

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        base.__init__(self, config, *arguments, **options)
        resize(self, getattr(config, PLAN))

    name = f"Pruned{plan['base']}"
    adopt_renaming(name, plan["base"], config["model_type"])
    return type(name, (base,), {"__init__": build, "__module__": __name__})
