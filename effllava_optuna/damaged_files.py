"""Refuse a checkpoint whose files are damaged or missing, and name the file.

The errors of transformers and of its parsers do not name it, and transformers ignores a damaged
generation_config.json.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ModelError, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_DOCUMENTS = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", _INDEX,
)  # fmt: skip
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER = 100_000_000  # bytes, the limit of safetensors
_DOWNLOAD = "Download it again."


def refuse_damaged_documents(source: str, directory: Path) -> None:
    """Refuse a checkpoint with a JSON file or chat template that cannot be read.

    Args:
        source: Name of the checkpoint in messages.
        directory: Its files.

    Raises:
        ModelError: A file is damaged; the message names it.
    """
    templates = (file.name for file in sorted(directory.glob("*.jinja")))
    for name in (*_DOCUMENTS, *templates):
        file = directory / name
        if not file.is_file():
            continue
        try:
            content = file.read_bytes()
            _refuse_pointer(source, name, content)
            text = content.decode("utf-8")
            if not name.endswith(".json"):
                continue
            fault = "" if isinstance(json.loads(text), dict) else "it has no object at the top"
        except (OSError, ValueError, RecursionError) as error:
            fault = describe(error)
        if fault:
            kind = "valid JSON" if name.endswith(".json") else "text in UTF-8"
            raise ModelError(
                f"{source!r} does not load: {name} is no {kind} ({fault}).", hint=_DOWNLOAD
            )


def refuse_damaged_weights(source: str, directory: Path) -> None:
    """Refuse a checkpoint with a file of weights that is missing or not complete.

    Only the headers are read.

    Args:
        source: Name of the checkpoint in messages.
        directory: Its files.

    Raises:
        ModelError: A file is missing or damaged; the message names it.
    """
    for name in _weight_files(source, directory):
        file = directory / name
        if not file.is_file():
            raise ModelError(
                f"{source!r} does not load: {name}, which {_INDEX} names, is missing.",
                hint="Use a complete checkpoint.",
            )
        fault = _find_fault(source, file)
        if fault:
            raise ModelError(f"{source!r} does not load: {name} {fault}.", hint=_DOWNLOAD)


def read_header(file: Path) -> dict[str, Any]:
    """Return names, types and shapes in a safetensors file; empty if it is damaged."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size) if size < _MAX_HEADER else b"")
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _weight_files(source: str, directory: Path) -> Iterator[str]:
    """Yield the files that transformers reads: one, or those that the index names."""
    if (directory / _WEIGHTS).is_file():
        yield _WEIGHTS
    elif (directory / _INDEX).is_file():
        refuse_damaged_documents(source, directory)
        names = json.loads((directory / _INDEX).read_bytes()).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ModelError(
                f"{source!r} does not load: {_INDEX} has no weight_map.", hint=_DOWNLOAD
            )
        yield from sorted({str(name) for name in names.values()})


def _find_fault(source: str, file: Path) -> str:
    """Return what is wrong with a file of weights; empty if nothing is."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    _refuse_pointer(source, file.name, start)
    header = read_header(file)
    if not header:
        return "is no safetensors file"
    ends = [
        entry["data_offsets"][1]
        for name, entry in header.items()
        if name != "__metadata__" and isinstance(entry, dict) and entry.get("data_offsets")
    ]
    expected = 8 + int.from_bytes(start[:8], "little") + max(ends, default=0)
    return f"has {size} of {expected} bytes" if size < expected else ""


def _refuse_pointer(source: str, name: str, content: bytes) -> None:
    if content.startswith(_POINTER):
        raise ModelError(
            f"{source!r} does not load: {name} is a pointer of Git LFS instead of the file.",
            hint="Run `git lfs pull` there.",
        )
