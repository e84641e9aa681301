"""Keep what a base model has beside its weights: licences, tags, and files of older engines."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from huggingface_hub import metadata_load

from effllava_optuna.checkpoint_format import local_directory
from effllava_optuna.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_LICENCES = ("license*", "licence*", "notice*", "copying*", "*use_policy*")
_LICENCE_FORMATS = ("", ".txt", ".md", ".rst", ".html", ".pdf")
_OF_ENGINES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
               "preprocessor_config.json")  # fmt: skip
_SPECIAL_TOKENS = "special_tokens_map.json"
_TAGS = ("license", "license_name", "license_link", "language", "pipeline_tag")


def copy_base_files(source: str, processor: Any, directory: Path) -> None:
    """Copy the licences of a base model, and the files of its processor that older engines read.

    A file that is in ``directory`` already is kept. Weights and code are never copied.

    Args:
        source: Path or hub id of the base model; nothing is downloaded.
        processor: That of the export; None: only licences are copied.
        directory: The export.
    """
    base = _base_directory(source)
    for file in () if base is None else sorted(base.iterdir()):
        wanted = _is_licence(file) or (processor is not None and file.name in _OF_ENGINES)
        target = directory / file.name
        if wanted and file.is_file() and not target.exists():
            shutil.copyfile(file, target)
    special = directory / _SPECIAL_TOKENS
    has_special = base is not None and (base / _SPECIAL_TOKENS).is_file()
    if has_special and processor is not None and not special.exists():
        # transformers would read it: it must have the tokens of this processor.
        tokens = getattr(processor, "tokenizer", processor).special_tokens_map
        text = json.dumps(tokens, indent=2, ensure_ascii=False) + "\n"
        special.write_text(text, encoding="utf-8")


def base_tags(source: str) -> dict[str, str]:
    """Return the licence, the languages and the task of a base model, from its README.

    Returns:
        The value of each tag as JSON, which YAML can read; empty if there is no README.
    """
    base = _base_directory(source)
    try:
        tags = {} if base is None else metadata_load(base / "README.md") or {}
    except Exception:  # it is missing, or is not what the hub expects
        return {}
    return {
        name: json.dumps(tags[name], ensure_ascii=False, default=str)
        for name in _TAGS
        if tags.get(name)
    }


def _base_directory(source: str) -> Path | None:
    try:
        return local_directory(source)
    except ModelError:  # it was removed
        return None


def _is_licence(file: Path) -> bool:
    name = file.name.casefold()
    return file.suffix.casefold() in _LICENCE_FORMATS and any(
        fnmatchcase(name, pattern) for pattern in _LICENCES
    )
