"""Study files: defaults, overrides, and one line for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from effllava_optuna.config.combinations import BUDGETS
from effllava_optuna.config.loading import load_config
from effllava_optuna.config.schema import ROWS, StudyConfig
from effllava_optuna.config.validation_messages import RENAMED_KEYS, RENAMED_VALUES
from effllava_optuna.errors import ConfigError
from effllava_optuna.tasks.schemas import SCHEMAS

QUICKSTART = Path(__file__).parents[2] / "studies" / "quickstart.toml"
GOOD = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'
OLD_VALUES = {"pruning.shares": "[0.5, 1.0]", "search.kept_share": "0.5"}  # others are texts


def message(tmp_path: Path, text: str) -> str:
    """Return the message about a faulty study file, without the name of the file."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{file}: ")


def test_the_tasks_that_read_rows_are_those_with_a_schema() -> None:
    """Both are named, because a study file is read without importing what reads rows."""
    assert set(ROWS) == set(SCHEMAS)


def test_a_study_is_named_after_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    assert load_config(file).study.name == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[search]\nepochs = 2", "model is missing. (1 more fault.) Add it."),
        (
            GOOD + "[search]\nepoch = 3",
            "search.epoch = 3 is not a known key. Did you mean epochs?",
        ),
        (
            GOOD + "[serch]\nepochs = 3",
            "serch = {'epochs': 3} is not a known key. Did you mean search?",
        ),
        (GOOD + "[report]\nx = 1", "report.x = 1 is not a known key. Known keys: finalists."),
        (
            GOOD + "[search]\nepochs = 0",
            "search.epochs = 0: Input should be greater than or equal to 1. Change the value.",
        ),
        (
            GOOD + '[search]\nepochs = "3"',
            "search.epochs = '3': Input should be a valid integer. Change the value.",
        ),
        (
            GOOD + "[quality]\neta = nan",
            "quality.eta = nan: Input should be a finite number. Change the value.",
        ),
        (
            GOOD.replace('"digits"', '"digits"\nmeasure = "generation"')
            + '[quality]\nmeasure = "agreement"',
            "task.measure is 'generation', which grades answers by labels, but quality.measure is "
            "'agreement'; use task.measure = 'likelihood'. Fix the study file.",
        ),
        (
            GOOD + '[quality]\nmeasure = "labels"',
            "quality.measure = 'labels': Input should be 'accuracy' or 'agreement'. Change the "
            "value.",
        ),
        (
            GOOD + "[projector]\nparts = 3",
            "projector.parts is 3; use a multiple of pruning.folds (2). Fix the study file.",
        ),
        (
            GOOD + "[pruning]\nwidth_ratios = [0.5]",
            "pruning.width_ratios must contain 1.0, the dense width. Fix the study file.",
        ),
        (
            GOOD + '[pruning]\nin_context = true\n[quality]\nrisk = "compensated"',
            "quality.risk is 'compensated', which is computed once, but pruning.in_context fits "
            "the output matrices again; use 'paper'. Fix the study file.",
        ),
        (
            GOOD + '[pruning]\nin_context = true\ncompensation = "none"',
            "pruning.in_context needs pruning.compensation = 'least-squares', which is 'none'; "
            "set pruning.in_context = false. Fix the study file.",
        ),
        ('model = "digits-vlm"', "model = 'digits-vlm': Input should be an object."),
        (GOOD + "[study]\nseed = 2026-11-22", "study.seed = "),
    ],
)
def test_a_fault_is_one_line_with_key_value_and_cure(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert message(tmp_path, text).startswith(expected)


def test_invalid_toml_is_named_with_its_line(tmp_path: Path) -> None:
    text = message(tmp_path, "[model\n")
    assert text.startswith("is not valid TOML: ")
    assert "line 1" in text
    assert text.endswith(". Fix that line.")


@pytest.mark.parametrize("key", RENAMED_KEYS)
def test_a_key_of_an_older_version_is_answered_with_the_new_one(tmp_path: Path, key: str) -> None:
    table, _, leaf = key.partition(".")
    value = OLD_VALUES.get(key, '"obs"')
    text = message(tmp_path, f"{GOOD}[{table}]\n{leaf} = {value}")
    assert text.startswith(f"{key} = ")
    assert text.endswith(f" is not a known key. It is called {RENAMED_KEYS[key]} now.")
    new_table, _, new_leaf = RENAMED_KEYS[key].partition(".")
    settings = StudyConfig.model_fields[new_table].annotation
    assert isinstance(settings, type)
    assert issubclass(settings, BaseModel)
    assert new_leaf in settings.model_fields


@pytest.mark.parametrize(("key", "value"), RENAMED_VALUES)
def test_a_value_of_an_older_version_is_answered_with_the_new_one(
    tmp_path: Path, key: str, value: str
) -> None:
    table, _, leaf = key.partition(".")
    new_value = RENAMED_VALUES[key, value]
    text = message(tmp_path, f'{GOOD}[{table}]\n{leaf} = "{value}"')
    assert text.startswith(f"{key} = {value!r}: ")
    assert text.endswith(f" It is called {new_value!r} now.")
    file = tmp_path / "new.toml"
    file.write_text(f'{GOOD}[{table}]\n{leaf} = "{new_value}"')
    assert load_config(file).document()[table][leaf] == new_value


@pytest.mark.parametrize("key", ['system = "be short"', 'splits = { test = "val" }'])
def test_a_key_of_rows_is_refused_if_the_task_reads_none(tmp_path: Path, key: str) -> None:
    text = message(tmp_path, f"{GOOD}{key}")
    assert text.startswith(f"task.{key.split()[0]} is set, but task 'digits' does not read rows")


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read"):
        load_config(tmp_path / "binary.toml")


def test_set_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    config = load_config(file, ("search.epochs=5", "study.name=other", "latency.batch = 2"))
    assert (config.search.epochs, config.study.name, config.latency.batch) == (5, "other", 2)
    with pytest.raises(ConfigError, match=r"Use table\.key=value"):
        load_config(file, ("epochs=5",))


def test_a_config_is_restored_from_its_document(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD + "[search]\nkeep_ratio = 0.3")
    config = load_config(file)
    assert StudyConfig.of(config.document()) == config


@pytest.mark.parametrize("change", ["search.speedup=1.5", "search.latency_ms = 9.0"])
def test_a_budget_on_the_command_line_replaces_that_of_the_file(change: str) -> None:
    search = load_config(QUICKSTART, (change,)).search
    given = {name: getattr(search, name) for name in BUDGETS if getattr(search, name) is not None}
    assert given == {change.partition("=")[0].strip().partition(".")[2]: float(change[-3:])}


def test_two_budgets_on_the_command_line_are_refused() -> None:
    with pytest.raises(ConfigError, match="are both set; use one budget"):
        load_config(QUICKSTART, ("search.speedup=1.5", "search.keep_ratio=0.5"))
