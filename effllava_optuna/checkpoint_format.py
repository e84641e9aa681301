"""Find a checkpoint, and refuse from its files alone what cannot be pruned.

Without torch, so that a study file is checked before anything is loaded. transformers itself
accepts some of these files and fails later, or reads something else than they contain: it loads
an adapter that is beside the weights (peft issue 1381), and it reads the sizes of a 7B from the
configuration of LLaVA's own 13B, whose keys it does not know.
"""

from __future__ import annotations

import functools
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from effllava_optuna.damaged_files import (
    read_header,
    refuse_damaged_documents,
    refuse_damaged_weights,
)
from effllava_optuna.errors import ModelError, shorten
from effllava_optuna.files import expand_home, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EMBEDDED = Path(__file__).parent / "embedded"
PLAN = "effllava_plan"
"""Key of config.json in a native export: the sizes of its layers."""

_CONFIG = "config.json"
_ADAPTER_CONFIG = "adapter_config.json"
DESCRIPTIONS = (_CONFIG, _ADAPTER_CONFIG)
"""Files of a hub id that `check_format` reads if they have been downloaded."""

_ADAPTER_FILES = (_ADAPTER_CONFIG, "adapter_model*.*", "non_lora_trainables.bin",
                  "*_lora_weights.*")  # fmt: skip
_FORMATS = {"*.gguf": "GGUF", "*.ggml": "GGML", "*.h5": "TensorFlow", "*.msgpack": "Flax",
            "*.onnx": "ONNX", "openvino*.xml": "OpenVINO", "*.npz": "NumPy"}  # fmt: skip
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states",
                "tokenizer", "openvino")  # fmt: skip
_QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")
_QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_METHODS = ("quant_method", "quant_algo")
_STORED_TYPES = ("F64", "F32", "F16", "BF16")
_LLAVA_KEYS = ("mm_vision_tower", "mm_projector_type")
_VIDEO_KEYS = ("video_token_id", "video_token_index")
_ANY_RESOLUTION = "any resolution"
# Checkpoints that were converted from LLaVA's own format, by architecture, and hidden size or
# handling of pictures.
_CONVERTED: dict[str, dict[Any, str]] = {
    "llavallama": {
        4096: "llava-hf/llava-1.5-7b-hf", 5120: "llava-hf/llava-1.5-13b-hf",
        (4096, _ANY_RESOLUTION): "llava-hf/llava-v1.6-vicuna-7b-hf",
        (5120, _ANY_RESOLUTION): "llava-hf/llava-v1.6-vicuna-13b-hf",
        (7168, _ANY_RESOLUTION): "llava-hf/llava-v1.6-34b-hf",
    },
    "llavamistral": {4096: "llava-hf/llava-v1.6-mistral-7b-hf"},
    "llavaqwen": {
        896: "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        3584: "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        8192: "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    },
}  # fmt: skip


def locate_checkpoint(path_or_id: str | Path) -> str | Path:
    """Return the path of a checkpoint inside the package, or the path or hub id itself.

    A leading ``~`` is the home directory.

    Raises:
        ModelError: It is the path of a file, or of no directory.
    """
    source = str(path_or_id)
    embedded = EMBEDDED / source
    if "/" not in source and _exists(embedded / _CONFIG):
        return embedded
    path = expand_home(path_or_id)
    if _exists(path) and path.is_file():
        _refuse_file(source, path)
    is_path = isinstance(path_or_id, Path) or source[:1] in {"/", ".", "~"}
    if is_path and not is_directory(path):
        raise ModelError(
            f"There is no directory {source!r}.", hint="Use a directory, a hub id, or digits-vlm."
        )
    return path if is_path else path_or_id


def check_format(path_or_id: str | Path) -> None:
    """Refuse a checkpoint that this package cannot prune, as far as its files show it.

    Of a hub id, the files that have been downloaded are read.

    Raises:
        ModelError: There is no such directory, or it has an adapter, quantised weights, weights
            in another format than safetensors, an architecture that transformers does not have,
            or a damaged file.
    """
    source, location = str(path_or_id), locate_checkpoint(path_or_id)
    is_local, directory = is_directory(location), local_directory(path_or_id)
    if directory is None or directory.parent == EMBEDDED:
        return
    _refuse_adapter(source, directory)
    config = _read_json(directory / _CONFIG)
    _refuse_quantised(source, directory, config)
    if PLAN not in config:
        _refuse_unknown_architecture(source, config)
    if is_local:  # a download may be incomplete
        _refuse_other_format(source, directory)
        if not _exists(directory / _CONFIG):
            raise ModelError(
                f"{str(location)!r} does not load: it has no {_CONFIG}.",
                hint="Use a directory that save_pretrained wrote.",
            )
    refuse_damaged_documents(source, directory)


def check_weights(path_or_id: str | Path) -> None:
    """Refuse a directory whose files of weights are missing or not complete.

    Raises:
        ModelError: They are; the first is named.
    """
    location = locate_checkpoint(path_or_id)
    if is_directory(location):
        refuse_damaged_weights(str(path_or_id), Path(location))


def has_video_part(path_or_id: str | Path) -> bool:
    """Return whether the processor of a checkpoint has a video part, as far as its files show it.

    Of a hub id, the files that have been downloaded are read.
    """
    directory = local_directory(path_or_id)
    if directory is None:
        return False
    return (
        (directory / "video_preprocessor_config.json").is_file()
        or "video_processor" in _read_json(directory / "processor_config.json")
        or any(key in _read_json(directory / _CONFIG) for key in _VIDEO_KEYS)
    )


def local_directory(path_or_id: str | Path) -> Path | None:
    """Return the directory of a checkpoint; of a hub id, that of its downloaded files, or None.

    Raises:
        ModelError: It is the path of a file, or of no directory.
    """
    location = locate_checkpoint(path_or_id)
    return Path(location) if is_directory(location) else _downloaded(str(location))


def is_directory(location: str | Path) -> bool:
    """Return whether a location is a directory, and not a hub id."""
    return _exists(Path(location)) and Path(location).is_dir()


def public_name(location: str) -> str:
    """Return the name of a directory without the path to it; a hub id stays as it is."""
    is_path = location.startswith(("/", "~", ".")) or is_directory(location)
    return Path(location).resolve().name if is_path else location


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        return False


def _refuse_file(source: str, file: Path) -> NoReturn:
    kind = "a file"
    if any(file.match(pattern) for pattern in _PICKLED):
        kind = "a pickled file"
    for pattern, name in _FORMATS.items():
        if file.match(pattern):
            kind = f"a file in the format {name}"
    raise ModelError(
        f"{source!r} is {kind}, not a directory.",
        hint="Use the directory of a checkpoint that transformers saved as safetensors.",
    )


def _downloaded(hub_id: str) -> Path | None:
    """Return the directory of the downloaded files of a hub id, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in DESCRIPTIONS:
        try:
            file = try_to_load_from_cache(hub_id, name)
        except HFValidationError:  # neither a directory nor a hub id: loading it will fail
            return None
        if isinstance(file, str):
            return Path(file).parent
    return None


def _read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it is missing or damaged, as loading it says."""
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _first_match(directory: Path, patterns: tuple[str, ...]) -> str:
    """Return the name of the first file that matches one of ``patterns``; empty if none does.

    Upper case is no difference.
    """
    files = sorted(file.name for file in directory.iterdir())
    names = (
        name
        for pattern in patterns
        for name in files
        if fnmatchcase(name.casefold(), pattern) and not name.startswith(_NOT_WEIGHTS)
    )
    return next(names, "")


def _refuse_adapter(source: str, directory: Path) -> None:
    name = _first_match(directory, _ADAPTER_FILES)
    if not name:
        return
    hint = "Merge it into its base model with merge_and_unload() of peft, and use the result."
    if (directory / _CONFIG).exists():
        raise ModelError(
            f"{source!r} has files of an adapter ({name}) beside its model.", hint=hint
        )
    base = _read_json(directory / _ADAPTER_CONFIG).get("base_model_name_or_path")
    of_base = f" of {base!r}" if base else ""
    raise ModelError(f"{source!r} is an adapter{of_base} ({name}), not a model.", hint=hint)


def _refuse_other_format(source: str, directory: Path) -> None:
    if _first_match(directory, ("*.safetensors",)):
        return
    for pattern, kind in _FORMATS.items():
        name = _first_match(directory, (pattern,))
        if name:
            raise ModelError(
                f"{source!r} has its weights in the format {kind} ({name}).",
                hint="Use the checkpoint of safetensors that it was converted from.",
            )
    name = _first_match(directory, _PICKLED)
    if name:
        raise ModelError(
            f"{source!r} has pickled weights ({name}), which can contain code.",
            hint="Load them where you trust them, and save them with save_pretrained(), which "
            "writes safetensors.",
        )


def _refuse_quantised(source: str, directory: Path, config: Mapping[str, Any]) -> None:
    place = method = ""
    for key, entry in _quantisation_entries(config):
        place, method = f"{_CONFIG} has {key!r}", _method(entry)
        break
    for name in _QUANTISED_FILES:
        if not place and (directory / name).is_file():
            place, method = name, _method(_read_json(directory / name))
    if not place:
        place = _stored_quantised(directory)
    if place:
        raise ModelError(
            f"{source!r} is quantised{f' ({method})' if method else ''}: {place}.",
            hint="Quantised weights cannot be pruned: use the checkpoint that it was quantised "
            "from, and quantise the export.",
        )


def _quantisation_entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Find the entries of quantisation in a configuration and in those of its parts."""
    for key in _QUANTISED_KEYS:
        if config.get(key):
            yield key, config[key] if isinstance(config[key], dict) else {}
    for entry in config.values():
        if isinstance(entry, dict):
            yield from _quantisation_entries(entry)


def _method(entry: Mapping[str, Any]) -> str:
    """Return the name of a quantisation, such as gptq; empty if it has none."""
    for table in (entry, entry.get("quantization")):
        if isinstance(table, dict):
            names = [str(table[key]) for key in _METHODS if table.get(key)]
            names += [key for key, value in table.items() if key.startswith("load_in_") and value]
            if names:
                return names[0]
    return ""


def _stored_quantised(directory: Path) -> str:
    """Return the first weight that is stored as quantised numbers; empty if there is none."""
    for file in sorted(directory.glob("*.safetensors")):
        for name, entry in read_header(file).items():
            stored = str(entry.get("dtype")) if isinstance(entry, dict) else ""
            # Buffers may have integers, such as the numbers of positions.
            is_weight = "weight" in name.rpartition(".")[2] or stored.startswith(("F8", "F4"))
            if is_weight and stored and stored not in _STORED_TYPES:
                return f"{name} is stored as {stored} in {file.name}"
    return ""


def _refuse_unknown_architecture(source: str, config: Mapping[str, Any]) -> None:
    """Refuse a model type or an architecture that transformers does not have itself."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    architectures, model_type = config.get("architectures"), config.get("model_type")
    if not isinstance(model_type, (str, type(None))):
        raise ModelError(
            f"{source!r} does not load: {_CONFIG} has the model_type {shorten(model_type)}, which "
            "is no text.",
            hint="Use a complete checkpoint.",
        )
    named = architectures if isinstance(architectures, list) else []
    unknown = [
        name for name in named if isinstance(name, str) and name.casefold() not in _known_names()
    ]
    registered = model_type in CONFIG_MAPPING and model_type not in CONFIG_MAPPING_NAMES
    if registered:  # by the user, with AutoConfig.register
        return
    _refuse_own_format_of_llava(source, unknown, config)
    unknown_type = model_type is not None and model_type not in CONFIG_MAPPING
    code = config.get("auto_map")
    if isinstance(code, dict) and (unknown or unknown_type):
        refuse_code(source, _code_file(code))
    for kind, value in (("architecture", unknown[:1]), ("model_type", [model_type])):
        if value and (kind == "architecture" or unknown_type):
            raise ModelError(
                f"{source!r} does not load: {_CONFIG} names the {kind} {value[0]!r}, which "
                f"transformers {transformers.__version__} does not have.",
                hint="Use a checkpoint that was converted for transformers, or another version "
                "of transformers.",
            )


@functools.cache
def _known_names() -> frozenset[str]:
    """Return the names of transformers, in lower case, without importing what they name."""
    import transformers

    return frozenset(name.casefold() for name in dir(transformers))


def refuse_code(source: str, place: str) -> NoReturn:
    """Refuse a checkpoint that needs code of its own.

    An export could not be loaded without that code, and would contain it.

    Raises:
        ModelError: Always.
    """
    raise ModelError(
        f"{source!r} needs code of its own{f' ({place})' if place else ''}, which is never run.",
        hint="Use a checkpoint of an architecture that transformers has itself.",
    )


def _code_file(auto_map: Mapping[str, Any]) -> str:
    """Return the file of code that an ``auto_map`` names first."""
    reference: Any = next(iter(auto_map.values()), "")
    if isinstance(reference, list):  # of a tokenizer without and with a fast form
        reference = next((name for name in reference if name), "")
    reference = str(reference)
    repository, separator, name = reference.rpartition("--")
    file = f"{name.partition('.')[0]}.py"
    return f"{file} of {repository}" if separator else file


def _refuse_own_format_of_llava(
    source: str, unknown: list[str], config: Mapping[str, Any]
) -> None:
    """Refuse LLaVA's own format: by an unknown architecture, or by a key that only it has."""
    family = next((name for name in unknown if name.casefold().startswith("llava")), "")
    key = next((key for key in _LLAVA_KEYS if key in config), "")
    if not (family or key):
        return
    size = config.get("hidden_size")
    any_resolution = "anyres" in str(config.get("image_aspect_ratio"))
    sizes = _CONVERTED.get(family.casefold().removesuffix("forcausallm"), {})
    keys = ((size, _ANY_RESOLUTION), size) if any_resolution else (size,)
    converted = next((sizes[key] for key in keys if key in sizes), "those of llava-hf on the hub")
    names = f"names the architecture {family!r}" if family else f"has {key!r}"
    raise ModelError(
        f"{source!r} has LLaVA's own format, which transformers does not read: {_CONFIG} {names}.",
        hint=f"Use a converted checkpoint, such as {converted}.",
    )
