"""Create the classes that load pruned checkpoints without running code from them.

They are attributes of this module, such as ``PrunedLlamaForCausalLM``, and created on demand:
pickle finds a class by its module and its name, in another process as well.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, cast

import transformers

from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.errors import ExportError, ModelError
from effllava_optuna.files import read_text
from effllava_optuna.surgery.structure.native_files import complete_checkpoint, layer_plan
from effllava_optuna.surgery.structure.pruned_class import (
    adopt_renaming,
    refuse_paged_cache,
    remove_described_heads,
    remove_output_hooks,
    resize,
    token_reduction,
)
from effllava_optuna.surgery.visual_tokens.token_selection import reduce_model

_FORMATS = (1, 2)  # 2: with reduced image tokens
_PREFIX = "Pruned"
_TOKENS = "visual_tokens"


def pruned_class(directory: Path) -> Any:
    """Return the class that loads ``directory``, without running code from there.

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
    loader = _class_for(str(plan["base"]))
    if loader is None:
        raise ModelError(
            f"{directory} was pruned from a {plan['base']}, which transformers "
            f"{transformers.__version__} does not have.",
            hint=f"Use transformers {config.get('transformers_version')}.",
        )
    return loader


class _PrunedModel:
    """What a class that loads pruned checkpoints changes in its stock class."""

    config: Any

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        plan, stock = getattr(config, PLAN), cast("Any", super())
        remove_described_heads(config)
        stock.__init__(config, *arguments, **options)
        resize(self, plan)
        if _TOKENS in plan:
            reduce_model(self, plan[_TOKENS])

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """Save the model with its sizes and with the code that reads them; see transformers.

        Raises:
            ExportError: ``push_to_hub`` is set: the code would not be uploaded.
        """
        if options.get("push_to_hub"):
            raise ExportError(
                "save_pretrained(push_to_hub=True) does not upload the code of a pruned model.",
                hint="Use push_to_hub().",
            )
        cast("Any", super()).save_pretrained(save_directory, *arguments, **options)
        if arguments[0] if arguments else options.get("is_main_process", True):
            plan = layer_plan(self, token_reduction(self.config, str(save_directory)))
            complete_checkpoint(self, Path(save_directory), plan)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return what pickle and copy write."""
        remove_output_hooks(self)
        return super().__reduce_ex__(protocol)

    def init_continuous_batching(self, *arguments: Any, **options: Any) -> Any:
        """Refuse a cache that reserves one number of heads for all layers; see transformers."""
        refuse_paged_cache(self, layer_plan(self, None))
        return cast("Any", super()).init_continuous_batching(*arguments, **options)

    def _get_static_cache_init_shape(self) -> None:
        """Make transformers create a static cache from the keys that each layer computes."""


@functools.cache
def _class_for(base_name: str) -> Any:
    """Create the class for a class of transformers; None: it is not the class of a model."""
    base: Any = getattr(transformers, base_name, None)
    is_model = isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)
    if not is_model:
        return None
    name = f"{_PREFIX}{base_name}"
    adopt_renaming(name, base_name, base.config_class.model_type)
    return type(name, (_PrunedModel, base), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    created = _class_for(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if created is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return created
