"""Malformed study files and overrides: one line that names the file or the key."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from effllava_optuna.config.loading import load_config
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError

GOOD = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'
MALFORMED: dict[str, bytes | str] = {
    "empty": "",
    "white": " \n\t\n",
    "comment": "# nothing else\n",
    "utf-16": GOOD.encode("utf-16"),
    "utf-16 without a mark": GOOD.encode("utf-16-le"),
    "utf-32": GOOD.encode("utf-32"),
    "latin-1": GOOD.encode() + "# \u00e9\n".encode("latin-1"),
    "binary": bytes(range(256)),
    "zip": b"PK\x03\x04" + bytes(100),
    "null": "\0",
    "json": '{"model": {"path": "digits-vlm"}}',
    "yaml": "model:\n  path: digits-vlm\n",
    "half a table": "[model",
    "half a string": '[model]\npath = "digits',
    "no value": "[model]\npath =\n",
    "duplicate key": GOOD + 'name = "digits"\n',
    "duplicate table": GOOD + '[model]\npath = "drawn-vlm"\n',
    "table and value": 'model = 1\n[model]\npath = "digits-vlm"\n',
    "table as a list": '[[model]]\npath = "digits-vlm"\n[task]\nname = "digits"\n',
    "deep": "a = " + "[" * 5000 + "]" * 5000,
    "deep keys": "[" + ".".join("a" * 2000) + "]\nb = 1\n",
    "digits": GOOD + f"[search]\nepochs = {'9' * 5000}\n",
    "huge": GOOD + f"[search]\nepochs = {10**300}\n",
    "more epochs than a study may have": GOOD + "[search]\nepochs = 1000001\n",
    "seed": GOOD + f"[study]\nseed = {2**63}\n",
    "negative seed": GOOD + "[study]\nseed = -1\n",
    "infinite": GOOD + "[latency]\nseconds = inf\n",
    "no number": GOOD + "[latency]\nseconds = nan\n",
    "date": GOOD + "[study]\nseed = 2026-11-22\n",
    "time": GOOD + "[study]\nseed = 07:32:00\n",
    "no model": '[task]\nname = "digits"\n',
    "no task": '[model]\npath = "digits-vlm"\n',
    "no path": '[model]\n[task]\nname = "digits"\n',
    "empty path": '[model]\npath = ""\n[task]\nname = "digits"\n',
    "unknown table": GOOD + "[serch]\nepochs = 2\n",
    "unknown key": GOOD + "[search]\nepoch = 2\n",
    "unknown key in other letters": GOOD + '[search]\n"épochs\\n\\u0007" = 2\n',
    "unknown emoji": GOOD + '["🦙"]\nx = 1\n',
    "unknown task": '[model]\npath = "digits-vlm"\n[task]\nname = "digit s"\n',
    "unknown sampler": GOOD + '[search]\nsampler = "bohb"\n',
    "unknown importance": GOOD + '[pruning]\nimportance = "chaos"\n',
    "capitals": GOOD + '[search]\nsampler = "NSGA2"\n',
    "two budgets": GOOD + "[search]\nkeep_ratio = 0.5\nspeedup = 2.0\n",
    "no budget": GOOD + '[search]\nsampler = "sep-cma"\n',
    "few": GOOD + '[search]\nsampler = "cma"\npopulation = 4\n',
    "slower": GOOD + "[search]\nspeedup = 0.5\n",
    "keep nothing": GOOD + "[search]\nkeep_ratio = 0.0\n",
    "keep more": GOOD + "[search]\nkeep_ratio = 1.01\n",
    "ratio as a string": GOOD + '[search]\nkeep_ratio = "0.5"\n',
    "true as a number": GOOD + "[search]\nepochs = true\n",
    "fraction": GOOD + "[search]\nepochs = 2.5\n",
    "no width ratios": GOOD + "[pruning]\nwidth_ratios = []\n",
    "no dense width": GOOD + "[pruning]\nwidth_ratios = [0.5]\n",
    "no towers": GOOD + "[pruning]\ntowers = []\n",
    "trained and cut": GOOD + '[pruning]\ntowers = ["language", "projector"]\n',
    "parts": GOOD + "[projector]\nparts = 3\n",
    "bias and portable": GOOD + '[pruning]\ncompensation = "bias"\n[export]\nform = "portable"\n',
    "rows of digits": GOOD + 'data = "rows.jsonl"\n',
    "few samples": GOOD + "proxy = 7\n",
    "slash": GOOD + '[study]\nname = "/x"\n',
    "name of two lines": GOOD + '[study]\nname = "a\\nb"\n',
    "no name": GOOD + '[study]\nname = ""\n',
    "long name": GOOD + f'[study]\nname = "{"x" * 201}"\n',
    "table with a null": GOOD + '[latency]\ntable = "a\\u0000b"\n',
}  # fmt: skip


def error_message(file: Path, changes: tuple[str, ...] = ()) -> str:
    """Return the message about a study file, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, changes)
    message = str(caught.value)
    assert caught.value.hint
    assert message.startswith((f"{file}: ", "--set "))
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_study_file_is_named_with_the_cure(name: str, tmp_path: Path) -> None:
    content = MALFORMED[name]
    file = tmp_path / "bad.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert len(error_message(file).split()) > 2


def wrong_overrides() -> list[str]:
    """Return overrides of every key of a study file with values that are never valid."""
    overrides = []
    for table, field in StudyConfig.model_fields.items():
        settings_class: Any = field.annotation
        for key, entry in settings_class.model_fields.items():
            values = ["nan", "[[1]]", "{ nonsense = [1] }"]
            if int in (entry.annotation, *typing.get_args(entry.annotation)):
                values += ["-1", str(10**40)]
            overrides += [f"{table}.{key}={value}" for value in values]
        overrides.append(f"{table}.no_such_key=1")
        overrides.append(f"{table}.{next(iter(settings_class.model_fields))}.below=1")
    return overrides


def test_a_wrong_value_of_any_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text(GOOD)
    overrides = wrong_overrides()
    assert len(overrides) > 200
    for override in overrides:
        assert override.partition(".")[0] in error_message(file, (override,))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode())))
@example(b"\r")
@example("a = '\u2028'".encode())
def test_noise_is_not_a_study_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "noise.toml").write_bytes(content)
    error_message(tmp_path / "noise.toml")
