"""Recovery through the command line: on whose samples, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from effllava_optuna import load_pruned
from effllava_optuna.errors import LeakError, SpecError
from effllava_optuna.study import read_spec
from effllava_optuna.study.recovery import Course, lessons_of, refuse_shared
from effllava_optuna.tasks import Digits, Split
from effllava_optuna.tasks.digits import TrainingDigits
from tests.study.conftest import SMOKE, Ran, cli

TRAINING = "effllava_optuna.tasks.digits:TrainingDigits"


def test_the_proxy_of_the_study_teaches_if_nothing_is_said() -> None:
    spec = read_spec(SMOKE)
    expected = Digits(seed=spec.task_seed).samples(Split.PROXY)
    assert [s.id for s in lessons_of(spec, Course())] == [s.id for s in expected]


def test_another_task_may_teach_in_the_seed_of_the_study() -> None:
    spec = read_spec(SMOKE, ("study.seed=7",))
    found = lessons_of(spec, Course(data=TRAINING, samples=100))
    expected = TrainingDigits(seed=7, proxy=100).samples(Split.PROXY)
    assert [s.picture() for s in found] == [s.picture() for s in expected]


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_a_picture_that_is_reported_on_does_not_teach(split: Split) -> None:
    task = Digits()
    leaked = replace(task.samples(split)[3], id="mine-3", split=Split.PROXY)
    message = f"given sample 'mine-3' with the picture of {split} sample '{split}-"
    with pytest.raises(LeakError, match=message):
        refuse_shared((*task.samples(Split.PROXY), leaked), task)


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(SpecError, match=r"task.name = 'no_such:task'"):
        lessons_of(read_spec(SMOKE), Course(data="no_such:task"))


def test_what_is_no_export_is_refused(smoke: Ran, tmp_path: Path) -> None:
    words = ("--checkpoint", tmp_path, "--out", tmp_path / "new")
    done = cli("recover", smoke.file, *words, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} holds no checkpoint that effllava_optuna wrote" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["projector", "lora"])
def test_a_checkpoint_is_recovered_and_verified(smoke: Ran, tmp_path: Path, part: str) -> None:
    words = ("--out", tmp_path / "new", "--part", part, "--steps", 50)
    told = cli("recover", smoke.file, *words, "--data", TRAINING, "--samples", 512).stdout
    assert "validation accuracy 0." in told
    assert "reloaded in a fresh process" in told
    old = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    new = load_pruned(tmp_path / "new", device="cpu")
    assert new.anatomy == old.anatomy
    assert new.model.state_dict().keys() == old.model.state_dict().keys()
