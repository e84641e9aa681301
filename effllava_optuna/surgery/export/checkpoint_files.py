"""Write the files of a checkpoint: weights, configuration, code, policy and model card."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange

from effllava_optuna import __version__
from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.surgery.export.model_card import EngineSupport, render_model_card
from effllava_optuna.surgery.loading.policy_file import write_policy
from effllava_optuna.surgery.structure.native_files import (
    complete_checkpoint,
    find_engine_obstacle,
    layer_plan,
)
from effllava_optuna.surgery.structure.pruned_class import adopt_renaming, stock_class

if TYPE_CHECKING:
    from effllava_optuna.surgery.export.checkpoint import Form, VerifiedExport
    from effllava_optuna.surgery.export.model_card import ModelCard
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


def size_plan(pruned: LoadedModel) -> dict[str, Any]:
    """Compare the layer sizes of a model with those that its configuration describes.

    Returns:
        A plan that can be written as JSON; see `layer_plan`.

    Raises:
        ExportError: The model is narrowed.
    """
    return layer_plan(pruned.model, pruned.visual_tokens)


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
    if plan is None:
        model._weight_conversions = hub_renaming(model)
    base.save_pretrained(model, directory)
    pruned.model.generation_config.to_json_file(directory / "generation_config.json")
    for leftover in directory.glob("*.py"):
        leftover.unlink()
    complete_checkpoint(model, directory, plan)
    if pruned.processor is not None:
        pruned.processor.save_pretrained(directory)
    # safetensors makes files that only their owner reads; an engine may run as another user.
    mode = (directory / "generation_config.json").stat().st_mode
    for weights in directory.glob("*.safetensors"):
        weights.chmod(mode)


def hub_renaming(model: Any) -> list[Any]:
    """Return the changes of key names with which engines find the weights of a stock class.

    transformers renames the keys of a checkpoint when it loads it, and back when it saves it. It
    does not add the ``vision_model`` of CLIP and SigLIP towers, which every LLaVA of the hub has,
    to a model that it loaded without: engines such as vLLM need it.
    """
    default = get_model_conversion_mapping(model, add_legacy=False)
    used = getattr(model, "_weight_conversions", None) or [
        change for change in default if not isinstance(change, PrefixChange)
    ]
    # The order is that of a load: the parts of a model come after it.
    return [
        *(change for change in used if not _adds_tower_prefix(change)),
        *(change for change in default if _adds_tower_prefix(change)),
    ]


def _adds_tower_prefix(change: Any) -> bool:
    prefix = change.prefix_to_remove if isinstance(change, PrefixChange) else None
    return prefix == "vision_model" and bool(change.scope_prefix)


def write_description(
    pruned: LoadedModel, directory: Path, form: Form, card: ModelCard, verified: VerifiedExport
) -> None:
    """Write policy.json, the model card and the result of the verification."""
    record = pruned.pruning_record
    document: dict[str, Any] = {
        "form": form,
        "base_model": pruned.base_name,
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
    plan = json.loads((directory / "config.json").read_text(encoding="utf-8")).get(PLAN)
    obstacle = "" if plan is None else find_engine_obstacle(pruned.model, plan)
    text = render_model_card(pruned, card, form, EngineSupport(obstacle, verified.engines))
    (directory / "README.md").write_text(text, encoding="utf-8")
    verification = asdict(verified)
    del verification["directory"]  # of this machine
    (directory / "verified.json").write_text(
        json.dumps(verification, indent=2) + "\n", encoding="utf-8"
    )
