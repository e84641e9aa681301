"""Read study files, and resolve the paths in them.

A path in a study file is relative to the file, wherever a command is run, as one of a compiler's
or container's project file is (optuna issue 2972 is about the contrary). A config that was read
from a file has absolute paths only.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.checkpoint_format import EMBEDDED
from effllava_optuna.config.combinations import BUDGETS
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError, shorten
from effllava_optuna.files import expand_home, read_text
from effllava_optuna.passwords import hide_in_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PATHS = (("study", "artifacts"), ("latency", "table"), ("export", "directory"))
_PATHS_OR_IDS = (("model", "path"), ("task", "data"))


def load_config(path: str | Path, changes: tuple[str, ...] = ()) -> StudyConfig:
    """Read and validate a study file.

    Args:
        path: A TOML file. Paths in it are relative to its directory, and absolute in the config.
        changes: Overrides of the file, each ``table.key=value`` with a TOML value. A budget
            replaces that of the file, whichever of `BUDGETS` that is.

    Raises:
        ConfigError: The file cannot be read, is not valid TOML, or is not a valid study file; or
            a path in it is relative to the current directory instead of the file.
    """
    file = expand_home(path)
    document = _read_toml(file)
    _drop_replaced_budget(document, changes)
    for change in changes:
        _apply_change(document, change)
    document.setdefault("study", {})
    if isinstance(document["study"], dict):
        document["study"].setdefault("name", file.stem)
    _resolve_paths(document, file)
    return StudyConfig.of(document, source=str(file))


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(file))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file}: there is no such file.", hint="Use the path of a study file."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}.", hint="Fix that line.") from error
    except (OSError, ValueError, RecursionError) as error:
        # ValueError: another encoding, a path with a null byte, or a number that is too long.
        hint = "Use a TOML file in UTF-8."
        raise ConfigError(f"{file}: cannot be read: {error}.", hint=hint) from error


def _resolve_paths(document: dict[str, Any], file: Path) -> None:
    """Make the paths in the document of a study file absolute; hub ids and URLs do not change.

    Raises:
        ConfigError: A path is relative to the current directory.
    """
    directory = file.parent.resolve()
    if isinstance(document["study"], dict):
        document["study"].setdefault("modules", ".")
    for table, key, path in _texts(document, (*_PATHS, ("study", "modules"))):
        if path and "://" not in path:
            table[key] = os.path.normpath(directory / expand_home(path))
    for name, key in _PATHS_OR_IDS:
        for table, _, text in _texts(document, ((name, key),)):
            if text:
                table[key] = _resolved(text, directory, f"{file}: {name}.{key} = {text!r}")


def _resolved(text: str, directory: Path, place: str) -> str:
    """Return the absolute path that a text names, or the text itself if it is a hub id.

    Raises:
        ConfigError: It names nothing relative to ``directory``, but something relative to the
            current directory, which would be taken for it.
    """
    path = directory / expand_home(text)
    if _exists(path):
        return str(path.resolve())
    if text[:1] in {".", "~", "/"}:
        return os.path.normpath(path)
    if "/" not in text and _exists(EMBEDDED / text):
        return text
    if _exists(Path(text)):
        raise ConfigError(
            f"{place} is relative to the study file, and {path} does not exist, but there is a "
            f"{text} in the current directory.",
            hint=f"Use {os.path.relpath(text, directory)!r}.",
        )
    return text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        return False


def relative_document(config: StudyConfig) -> dict[str, Any]:
    """Return a config as JSON values, with the paths as a study file beside its modules has them.

    Reports and comparisons then do not depend on where a study is stored. URLs have no passwords.
    """
    document: dict[str, Any] = hide_in_document(config.document())
    directory = document["study"].pop("modules")
    if directory is None:
        return document
    for table, key, path in _texts(document, (*_PATHS, *_PATHS_OR_IDS)):
        if Path(path).is_absolute() and Path(path).is_relative_to(directory):
            table[key] = f"./{Path(path).relative_to(directory)}"
    return document


def _texts(
    document: dict[str, Any], keys: tuple[tuple[str, str], ...]
) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield table, key and value of all keys that a document has, and whose value is a text."""
    for name, key in keys:
        table = document.get(name)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            yield table, key, table[key]


def _drop_replaced_budget(document: dict[str, Any], changes: Iterable[str]) -> None:
    """Remove the budget of a study file if a change sets one: a study has one budget."""
    changed = {change.partition("=")[0].strip() for change in changes}
    search = document.get("search")
    if isinstance(search, dict) and any(f"search.{name}" in changed for name in BUDGETS):
        for name in BUDGETS:
            search.pop(name, None)


def _apply_change(document: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(
            f"--set {shorten(change)} is not understood.", hint="Use table.key=value."
        )
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):  # a bare word, or a number that is too long
        value = text.strip()
    if not isinstance(document.setdefault(table, {}), dict):
        raise ConfigError(
            f"--set {shorten(change)}: {table} is not a table.", hint="Use table.key=value."
        )
    document[table][key] = value
