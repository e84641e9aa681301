"""Load a checkpoint, find its prunable parts and verify them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
)
from transformers.utils import cached_file

from effllava_optuna.checkpoint_format import (
    DESCRIPTIONS,
    check_format,
    is_directory,
    local_directory,
    locate_checkpoint,
)
from effllava_optuna.damaged_files import read_header, refuse_damaged_weights
from effllava_optuna.errors import ModelError
from effllava_optuna.export_target import POLICY_FILE, is_export
from effllava_optuna.surgery.apply.reduced_model import reduced_processor
from effllava_optuna.surgery.loading.checksums import check_checksums
from effllava_optuna.surgery.loading.finite_values import require_finite_weights
from effllava_optuna.surgery.loading.one_line_errors import errors_in_one_line
from effllava_optuna.surgery.loading.policy_file import (
    pruning_record,
    read_policy,
)
from effllava_optuna.surgery.loading.processor_loading import encode_example, load_processor
from effllava_optuna.surgery.loading.structure_verification import verify_structure
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.loaded_model import LoadedModel
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE
from effllava_optuna.surgery.structure.pruned_class import (
    auto_class,
    has_plan,
    takes_images,
    token_reduction,
)
from effllava_optuna.surgery.structure.reloaded_class import pruned_class

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.surgery.structure.prunable_parts import PrunableParts

_TEXT = "text_config"
_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path_or_id: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    towers: Sequence[str] | None = (LANGUAGE,),
    depth: bool = False,
) -> LoadedModel:
    """Load a vision-language model or a text decoder with its processor, and find what to prune.

    The model runs on an example to verify its prunable parts (`verify_structure`).

    Args:
        path_or_id: A directory, a hub id, or ``digits-vlm``, a model inside the package. The
            checkpoint may be one that `export` wrote.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto``: cuda if available; ``device-map``:
            spread over all devices, as ``device_map="auto"`` does.
        dtype: ``float32``, ``bfloat16`` or ``float16``, for computing and for exports; ``auto``:
            as the checkpoint was saved, but on a CPU, which computes half precision slowly,
            computing is in float32 and exports are written as the checkpoint was saved.
        towers: What to prune: ``language``, ``vision``, ``projector`` ... None: everything.
        depth: Whether to offer whole blocks of the decoder, too.

    Raises:
        ModelError: There is no such checkpoint, its weights do not fit its configuration or are
            not finite, it has no prunable parts, part of it is offloaded, or another version
            exported it.

    Example:
        >>> loaded = load("digits-vlm", device="cpu")
        >>> len(loaded.structure.components), loaded.structure.components[1].id
        (12, 'language.00.mlp')
    """
    source = str(path_or_id)
    spread = device == "device-map"
    torch_device = _device("auto" if spread else device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}.", hint=f"Use auto or one of {', '.join(DTYPES)}.")
    torch_dtype: Any = DTYPES.get(dtype, torch.float32 if torch_device.type == "cpu" else "auto")
    config = read_config(path_or_id)
    location = complete_export(path_or_id)
    policy = None
    if is_export(location):
        policy = read_policy(location)
        check_checksums(Path(location))
    processor = load_processor(location, source, takes_images=takes_images(config))
    reduction = token_reduction(config, source)
    if reduction is not None:
        processor = reduced_processor(processor, reduction)
    spreading = {"device_map": "auto"} if spread else {}
    model = read_model(location, source, dtype=torch_dtype, **spreading)
    if not spread:
        model.to(torch_device)
    loaded = LoadedModel.of(model, processor, source, towers=towers, depth=depth)
    stored = stored_dtype(path_or_id) if dtype == "auto" else None
    loaded = replace(loaded, visual_tokens=reduction, stored_dtype=stored)
    if policy is not None:
        with errors_in_one_line(f"{source}/{POLICY_FILE}"):
            loaded = replace(loaded, pruning_record=pruning_record(policy))
    require_finite_weights(model, source)
    _check_end_token(model, source)
    return verify_structure(loaded, encode_example(processor, model, source))


def stored_dtype(path_or_id: str | Path) -> torch.dtype | None:
    """Return the dtype of most weights in the files of a checkpoint.

    Returns:
        float32, bfloat16 or float16; None: another one, or the files cannot be read.
    """
    directory = local_directory(path_or_id)
    sizes: Counter[str] = Counter()
    for file in () if directory is None else directory.glob("*.safetensors"):
        for entry in read_header(file).values():
            if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                sizes[str(entry.get("dtype"))] += math.prod(entry["shape"])
    return _STORED_DTYPES.get(sizes.most_common(1)[0][0]) if sizes else None


def inspect_checkpoint(path_or_id: str | Path) -> PrunableParts:
    """Find the prunable parts of a checkpoint from its configuration, without verifying them.

    Raises:
        ModelError: There is no such checkpoint, or it has no prunable parts.
    """
    model, _ = load_without_weights(path_or_id)
    return inspect_model(model)


def load_without_weights(path_or_id: str | Path) -> tuple[Any, bool]:
    """Create the model of a checkpoint without weights; also return whether it takes images.

    Raises:
        ModelError: There is no such checkpoint, or its configuration does not load.
    """
    config = read_config(path_or_id)
    with errors_in_one_line(str(path_or_id)), torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=False)
    return model, takes_images(config)


def complete_export(path_or_id: str | Path) -> str | Path:
    """Return the location of a checkpoint; of an export on the hub, the directory of its download.

    An export is downloaded whole, because transformers would run the code in it.

    Raises:
        ModelError: There is no such checkpoint, or the download failed.
    """
    location = locate_checkpoint(path_or_id)
    if is_directory(location):
        return location
    with errors_in_one_line(str(path_or_id)):
        on_hub = has_plan(_described(location))
        return Path(snapshot_download(str(location))) if on_hub else location


def _described(location: str | Path) -> str | Path:
    """Return the location of a checkpoint, or the directory of the downloaded description of one.

    A hub id stays one, unless it is that of an export.
    """
    if is_directory(location):
        return location
    for name in DESCRIPTIONS:  # so that `check_format` finds them, too
        cached_file(
            location,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    directory = local_directory(location)
    return location if directory is None or not has_plan(directory) else directory


def read_config(path_or_id: str | Path) -> Any:
    """Read the configuration of a checkpoint, without running code from there.

    Raises:
        ModelError: There is no such checkpoint, it cannot be pruned (see `check_format`), or its
            configuration contradicts itself.
    """
    source, location = str(path_or_id), locate_checkpoint(path_or_id)
    with errors_in_one_line(source):
        location = _described(location)
        check_format(path_or_id)
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        if not has_plan(location):
            _check_config(source, config, type(config).get_config_dict(location)[0])
    return config


def _check_config(source: str, config: Any, document: Mapping[str, Any]) -> None:
    """Check that a configuration has the architecture and the depth that config.json says.

    A class of transformers ignores the keys that it does not know and uses its defaults instead.
    """
    for name in document.get("architectures") or ():
        expected = getattr(getattr(transformers, str(name), None), "config_class", None)
        fits = expected is None or isinstance(config, expected) or name in _class_names(config)
        if not fits:
            raise ModelError(
                f"{source!r} has a config.json with the architecture {name!r}, but with the "
                f"model_type {config.model_type!r}.",
                hint="Use a complete checkpoint.",
            )
    key = "num_hidden_layers"
    if _TEXT in config.sub_configs and not {_TEXT, key} & set(document):
        raise ModelError(
            f"{source!r} has no {_TEXT} in its config.json: transformers would build a "
            f"{config.text_config.model_type} of its default size.",
            hint="Use a complete checkpoint.",
        )
    depth = getattr(config.get_text_config(), key, None)
    if document.get(key, depth) != depth:
        raise ModelError(
            f"{source!r} has {key} = {document[key]} in its config.json, but "
            f"{type(config).__name__} of transformers reads {depth}.",
            hint="Use a checkpoint that was converted for transformers.",
        )


def _class_names(config: Any) -> set[str]:
    """Return the classes that transformers loads for a configuration, if only by its mappings."""
    mappings = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    found = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    # A few types have several classes.
    classes = [c for entry in found for c in (entry if isinstance(entry, tuple) else (entry,))]
    return {c.__name__ for c in classes}


def read_model(location: str | Path, source: str, **options: Any) -> Any:
    """Load a model without its processor, and without running code from a directory.

    Args:
        location: A directory or a hub id.
        source: Name of the checkpoint in messages.
        options: Arguments of ``from_pretrained``.

    Raises:
        ModelError: The checkpoint cannot be read, or its weights do not fit.
    """
    with errors_in_one_line(source):
        if is_directory(location):
            refuse_damaged_weights(source, Path(location))
        if has_plan(location):
            factory = pruned_class(Path(location))
        else:
            config = AutoConfig.from_pretrained(location, trust_remote_code=False)
            factory = auto_class(config)
        # With `ignore_mismatched_sizes`, keys of another shape are listed in the report.
        model, report = factory.from_pretrained(
            location,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    check_keys(report, source)
    return model


def fingerprint(loaded: LoadedModel) -> str:
    """Compute a hash that identifies the weights of a model without reading all of them.

    It covers names and shapes of all parameters, and up to 256 evenly spaced values of each:
    another checkpoint, or the same one after any training, has another fingerprint. A model that
    reads fewer image tokens has another one, too.
    """
    content = hashlib.sha256()
    for name, weight in sorted(loaded.model.named_parameters()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 256)][:256]
        content.update(f"{name} {tuple(weight.shape)}".encode())
        content.update(sample.cpu().float().numpy().tobytes())
    if loaded.visual_tokens is not None:
        content.update(json.dumps(loaded.visual_tokens.to_json(), sort_keys=True).encode())
    return content.hexdigest()[:16]


def check_keys(report: dict[str, Any], source: str) -> None:
    """Check that all weights fit: transformers initialises missing ones at random.

    Raises:
        ModelError: Keys are missing, unexpected or of another shape.
    """
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(fault):
            keys = sorted(map(str, report[fault]))
            raise ModelError(
                f"{source!r} has {len(keys)} {fault.replace('_', ' ')}, such as {keys[0]}.",
                hint="Use a complete checkpoint for this version of transformers.",
            )


def _check_end_token(model: Any, source: str) -> None:
    """Check that the end token, at which generation stops, is an id or a list of ids."""
    end = model.generation_config.eos_token_id
    ids = end if isinstance(end, list) else [end]
    if end is not None and not (ids and all(type(token) is int and token >= 0 for token in ids)):
        raise ModelError(
            f"{source!r} has eos_token_id = {json.dumps(end)} in its generation_config.json or "
            "config.json.",
            hint="It has to be the id of a token, or a list of such ids.",
        )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"This machine has no device {device!r}.", hint="Use auto, cpu or cuda."
        ) from error
    return torch_device
