from __future__ import annotations

from pathlib import Path

import pytest

from effllava_optuna.errors import SpecError
from effllava_optuna.study.spec import ROWS, StudySpec, read_spec
from effllava_optuna.tasks.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]
GOOD = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'


def fault(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_spec(file)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.toml")), ids=lambda f: f.stem)
def test_every_committed_study_is_valid(file: Path) -> None:
    assert read_spec(file).search.trials > 0


def test_the_tasks_that_read_rows_are_those_with_a_schema() -> None:
    """A spec is read without importing what reads rows, so that both name them."""
    assert set(ROWS) == set(SCHEMAS)


def test_a_study_without_a_name_is_called_like_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    assert read_spec(file).study.name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[search]\nepochs = 2", "model is missing. (1 more faults.) Add it."),
        (GOOD + "[search]\nepoch = 3", "search.epoch = 3 is no known key. Did you mean epochs?"),
        (
            GOOD + "[serch]\nepochs = 3",
            "serch = {'epochs': 3} is no known key. Did you mean search?",
        ),
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
            GOOD + "[projector]\nparts = 3",
            "projector.parts is 3; use a multiple of pruning.folds (2). Mend the study file.",
        ),
        (
            GOOD + "[pruning]\nshares = [0.5]",
            "pruning.shares must contain 1.0, the dense width. Mend the study file.",
        ),
        ("[model", "is no TOML: "),
        ('model = "digits-vlm"', "model = 'digits-vlm': Input should be an object."),
        (GOOD + "[study]\nseed = 2026-11-22", "study.seed = "),
    ],
)
def test_a_fault_is_one_line_with_key_value_and_cure(
    tmp_path: Path, text: str, message: str
) -> None:
    assert fault(tmp_path, text).startswith(message)


@pytest.mark.parametrize("key", ['system = "be short"', 'splits = { test = "val" }'])
def test_what_is_about_rows_is_refused_of_a_task_without(tmp_path: Path, key: str) -> None:
    told = fault(tmp_path, f"{GOOD}{key}")
    assert told.startswith(f"task.{key.split()[0]} is given, but task 'digits' does not read rows")


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml: there is no such file"):
        read_spec(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.toml: cannot be read"):
        read_spec(tmp_path / "binary.toml")


def test_set_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    spec = read_spec(file, ("search.epochs=5", "study.name=other", "latency.batch = 2"))
    assert (spec.search.epochs, spec.study.name, spec.latency.batch) == (5, "other", 2)
    with pytest.raises(SpecError, match=r"Use table\.key=value"):
        read_spec(file, ("epochs=5",))


def test_a_spec_survives_the_database(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD + "[search]\nkept_share = 0.3")
    spec = read_spec(file)
    assert StudySpec.of(spec.document()) == spec
