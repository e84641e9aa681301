"""Write a study file as TOML, with a comment at its keys."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COMMENT_COLUMN = 26  # a longer line has its comment above
_LINE_WIDTH = 95
_COMMENTS = {
    ("model", "path"): "a directory or a hub id",
    ("model", "dtype"): "auto: that of the checkpoint; on a CPU float32, but for the export",
    ("task", "data"): "a file or directory, relative to this file, or a hub id",
    ("task", "proxy"): "samples for calibration, search and projector training",
    ("task", "validation"): "maximum; validation chooses among the finalists",
    ("task", "test"): "maximum; test is only reported",
    ("pruning", "importance"): "the time of obs, the default, grows with the cube of a width",
    ("pruning", "width_ratios"): "widths that are timed and fitted, relative to the dense width",
    ("pruning", "multiple_of"): "MLP widths that suit matrix kernels",
    ("pruning", "in_context"): "fit the compensation again between epochs, keep it if it pays",
    ("pruning", "table_gb"): "memory of the compensation tables and their computation",
    ("quality", "measure"): "agreement with the dense model's own answers: no labels are needed",
    ("latency", "batch"): "prompts whose prefill is timed at once",
    ("search", "population"): "epochs x generations x population policies in total",
    ("search", "keep_ratio"): "a policy keeps at most this share of the prunable weights",
    ("search", "speedup"): "minimum, relative to the dense model, by the latency table",
    ("search", "latency_ms"): "maximum, of the workload of [latency], by the latency table",
    ("projector", "elites"): "policies of an epoch that the projector is trained for",
    ("projector", "steps"): "of each training at most; 0: no projector is trained",
    ("report", "finalists"): "policies of the front that are measured on validation and test",
    ("export", "directory"): "of the chosen checkpoint, relative to this file",
}


def format_study_file(header: Sequence[str], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of a study file.

    Args:
        header: Lines of the comment at its beginning; they are wrapped.
        tables: The keys and values of each table.
    """
    lines = [
        f"# {line}"
        for text in header
        for line in textwrap.wrap(re.sub(r"[\x00-\x1f\x7f]", " ", text), _LINE_WIDTH)
    ]
    lines.append("# Other keys have defaults; `check` validates this file.")
    for table, keys in tables.items():
        lines += ["", f"[{table}]"]
        for key, value in keys.items():
            lines += _format_key(key, value, _COMMENTS.get((table, key)))
    return "\n".join(lines) + "\n"


def parse_study_file(text: str) -> dict[str, Any]:
    """Parse the text of `format_study_file`; the study is named after its export directory.

    Raises:
        ConfigError: A value cannot be written as TOML.
    """
    try:
        text.encode()
        document = tomllib.loads(text)
    except (UnicodeEncodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            "A name cannot be written into a study file.", hint="Use names in Unicode."
        ) from error
    document.setdefault("study", {"name": Path(str(document["export"]["directory"])).stem})
    return document


def _format_key(key: str, value: Any, comment: str | None) -> list[str]:
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    line = f"{key} = {text}"
    if comment is None:
        return [line]
    if len(line) > _COMMENT_COLUMN:
        return [f"# {comment}", line]
    return [f"{line:<{_COMMENT_COLUMN}} # {comment}"]
