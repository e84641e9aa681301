"""Read study files."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError
from effllava_optuna.files import expand_home


def load_config(path: str | Path, changes: tuple[str, ...] = ()) -> StudyConfig:
    """Read and validate a study file.

    Args:
        path: A TOML file. ``latency.table`` and ``task.data`` are relative to its directory.
        changes: Overrides of the file, each ``table.key=value`` with a TOML value.

    Raises:
        ConfigError: The file cannot be read, is not valid TOML, or is not a valid study file.
    """
    file = expand_home(path)
    document = _read_toml(file)
    for change in changes:
        _apply_change(document, change)
    document.setdefault("study", {})
    if isinstance(document["study"], dict):
        document["study"].setdefault("name", file.stem)
    _resolve_paths(document, file.parent)
    return StudyConfig.of(document, source=str(file))


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file}: there is no such file.", hint="Use the path of a study file."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}.", hint="Fix that line.") from error
    except (OSError, ValueError, RecursionError) as error:
        # ValueError: another encoding, a path with a null byte, or a number that is too long.
        raise ConfigError(f"{file}: cannot be read: {error}.", hint="Use a TOML file.") from error


def _resolve_paths(document: dict[str, Any], directory: Path) -> None:
    """Resolve the paths in a document that are relative to its file."""
    latency, task = document.get("latency"), document.get("task")
    if isinstance(latency, dict) and isinstance(latency.get("table"), str) and latency["table"]:
        latency["table"] = str(directory.resolve() / expand_home(latency["table"]))
    if isinstance(task, dict) and isinstance(task.get("data"), str):
        data = directory / expand_home(task["data"])
        with suppress(OSError):  # a name that is too long for a file
            if data.exists():  # otherwise it is a hub id
                task["data"] = str(data.resolve())


def _apply_change(document: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"--set {change!r} is not understood.", hint="Use table.key=value.")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):  # a bare word, or a number that is too long
        value = text.strip()
    if not isinstance(document.setdefault(table, {}), dict):
        raise ConfigError(
            f"--set {change!r}: {table} is not a table.", hint="Use table.key=value."
        )
    document[table][key] = value
