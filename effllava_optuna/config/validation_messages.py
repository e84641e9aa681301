"""Convert a validation error of pydantic to one line that names key, value and cure."""

from __future__ import annotations

import difflib
import shlex
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ConfigError, shorten
from effllava_optuna.passwords import shown_url

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

RENAMED_KEYS = {  # of study files of older versions
    "pruning.order": "pruning.importance",
    "pruning.refit": "pruning.compensation",
    "pruning.shares": "pruning.width_ratios",
    "search.kept_share": "search.keep_ratio",
}
RENAMED_VALUES = {("quality.risk", "refit"): "compensated"}


def config_error(error: ValidationError, source: str, model: type[BaseModel]) -> ConfigError:
    """Return the error about the first fault of ``source``, which was validated by ``model``."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    value = shorten(fault.get("input"))
    others = error.error_count() - 1
    more = f" ({others} more fault{'s' if others > 1 else ''}.)" if others else ""
    if fault["type"] == "extra_forbidden":
        return ConfigError(
            f"{source}: {key} = {value} is not a known key.{more}",
            hint=_key_hint(key, _keys_of(model, fault["loc"][:-1])),
        )
    if fault["type"] == "missing":
        return ConfigError(f"{source}: {key} is missing.{more}", hint="Add it.")
    if fault["type"] == "value_error":
        return ConfigError(f"{source}: {fault['ctx']['error']}.{more}", hint="Fix the study file.")
    if not key:
        return ConfigError(f"{source}: {fault['msg']}.", hint="Use text in Unicode.")
    return ConfigError(
        f"{source}: {key} = {value}: {fault['msg']}.{more}", hint=_value_hint(key, fault["input"])
    )


def _key_hint(key: str, known_keys: list[str]) -> str:
    if key in RENAMED_KEYS:
        return f"It is called {RENAMED_KEYS[key]} now."
    close = difflib.get_close_matches(key.rpartition(".")[2], known_keys, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known keys: {', '.join(sorted(known_keys))}."


def _value_hint(key: str, value: Any) -> str:
    renamed = RENAMED_VALUES.get((key, value)) if isinstance(value, str) else None
    return "Change the value." if renamed is None else f"It is called {renamed!r} now."


def _keys_of(model: Any, path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def cure_of_difference(url: str, name: str) -> str:
    """Return what to do about a study file that differs from the stored settings of its study.

    Args:
        url: Storage of the study.
        name: Name of the study.
    """
    words = shlex.join(["--storage", shown_url(url), "--study-name", name])
    return (
        f"Restore the file; if the study began with --set, use {words} instead of it; for a new "
        "study use another study.name."
    )
