"""Recovery: its training samples, leaks, and the recovered checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from effllava_optuna import load_pruned
from effllava_optuna.errors import ConfigError, LeakError, TaskError
from effllava_optuna.evaluation.checkpoint_recovery import (
    RecoveryOptions,
    recovery_samples,
    refuse_leaks,
)
from effllava_optuna.study import load_config
from effllava_optuna.tasks import Digits, Split
from effllava_optuna.tasks.data.digits import TrainingDigits
from tests.study_fixtures import ROWS_STUDY, SMOKE, FinishedStudy, invoke
from tests.tasks.row_tasks import rows_with_images, write_rows

TRAINING = "effllava_optuna.tasks.data.digits:TrainingDigits"


def test_the_training_samples_are_the_proxy_set_by_default() -> None:
    config = load_config(SMOKE)
    expected = Digits(seed=config.task_seed).samples(Split.PROXY)
    assert [s.id for s in recovery_samples(config, RecoveryOptions())] == [s.id for s in expected]


def test_another_task_is_drawn_with_the_seed_of_the_study() -> None:
    config = load_config(SMOKE, ("study.seed=7",))
    samples = recovery_samples(config, RecoveryOptions(data=TRAINING, samples=100))
    expected = TrainingDigits(seed=7, proxy=100).samples(Split.PROXY)
    assert [s.load_image() for s in samples] == [s.load_image() for s in expected]


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_a_training_sample_with_a_held_out_picture_is_refused(split: Split) -> None:
    task = Digits()
    leaked = replace(task.samples(split)[3], id="mine-3", split=Split.PROXY)
    message = f"Training sample 'mine-3' has the picture of {split} sample '{split}-"
    with pytest.raises(LeakError, match=message):
        refuse_leaks((*task.samples(Split.PROXY), leaked), task)


def test_a_missing_task_is_named() -> None:
    with pytest.raises(ConfigError, match=r"task.name = 'no_such:task'"):
        recovery_samples(load_config(SMOKE), RecoveryOptions(data="no_such:task"))


def test_rows_of_a_file_are_training_samples(tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 20)
    for row in rows[:5]:
        del row["answer"]  # the dense model answers
    data = write_rows(tmp_path, rows)
    config = load_config(SMOKE)
    samples = recovery_samples(config, RecoveryOptions(data=data))
    assert {sample.split for sample in samples} == {Split.PROXY}
    assert {sample.question for sample in samples} == {row["question"] for row in rows}
    assert len(recovery_samples(config, RecoveryOptions(data=data, samples=12))) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "gone.png"}, r"mine\.jsonl, line 4: image 'gone\.png' is not a file"),
        ({"question": ""}, r"mine\.jsonl, line 4: question is empty"),
        (None, r"mine\.jsonl has 3 rows: a recovery needs at least 8"),
    ],
)
def test_training_rows_that_cannot_be_used_are_named(
    change: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    rows = rows_with_images(tmp_path, 20)
    if change is None:
        rows = rows[:3]
    else:
        rows[3] |= change
    with pytest.raises(TaskError, match=message):
        recovery_samples(load_config(SMOKE), RecoveryOptions(data=write_rows(tmp_path, rows)))


def test_a_training_row_with_a_held_out_picture_is_refused(tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 20)
    held_out = Digits().samples(Split.TEST)[5].load_image()
    assert held_out is not None
    held_out.save(tmp_path / "3.png")
    options = RecoveryOptions(data=write_rows(tmp_path, rows))
    with pytest.raises(LeakError, match=r"\(.*mine\.jsonl, line 4\) has the picture of test"):
        recovery_samples(load_config(SMOKE), options)


def test_a_study_of_rows_is_recovered_on_rows_with_its_columns(tmp_path: Path) -> None:
    rows = [{"ask": f"what is {number}?", "answer": "a"} for number in range(30)]
    write_rows(tmp_path, rows, "mine.jsonl")
    more = [{"ask": f"and {number}?", "answer": "b"} for number in range(9)]
    study = ROWS_STUDY + 'columns = { question = "ask" }\n'
    (tmp_path / "own.toml").write_text(study)
    options = RecoveryOptions(data=write_rows(tmp_path, more, "more.jsonl"))
    samples = recovery_samples(load_config(tmp_path / "own.toml"), options)
    assert sorted(sample.question for sample in samples) == sorted(row["ask"] for row in more)


@pytest.mark.exports
def test_a_checkpoint_is_recovered_on_rows(smoke: FinishedStudy, tmp_path: Path) -> None:
    data = write_rows(tmp_path, rows_with_images(tmp_path, 20), "more.jsonl")
    words = ("--out", tmp_path / "new", "--part", "projector", "--steps", 2, "--data", data)
    printed = invoke("recover", smoke.file, *words).stdout
    assert " steps on 16 samples" in printed  # a fifth of the 20 is held out
    assert "reloaded in a fresh process" in printed


@pytest.mark.exports
def test_a_checkpoint_that_reads_fewer_image_tokens_is_recovered(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    invoke("export", "digits-vlm", "--visual-tokens", 0.5, "--out", tmp_path / "reduced")
    data = write_rows(tmp_path, rows_with_images(tmp_path, 20), "more.jsonl")
    words = ("--checkpoint", tmp_path / "reduced", "--out", tmp_path / "new", "--steps", 2)
    printed = invoke("recover", smoke.file, *words, "--data", data).stdout
    assert "reloaded in a fresh process" in printed
    old, new = (load_pruned(tmp_path / name, device="cpu") for name in ("reduced", "new"))
    assert new.visual_tokens == old.visual_tokens
    assert new.visual_tokens is not None
    assert new.visual_tokens.ratio == 0.5


def test_a_directory_without_an_export_is_refused(smoke: FinishedStudy, tmp_path: Path) -> None:
    words = ("--checkpoint", tmp_path, "--out", tmp_path / "new")
    done = invoke("recover", smoke.file, *words, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} holds no checkpoint that effllava_optuna wrote" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.families
@pytest.mark.parametrize("part", ["projector", "lora", "both"])
def test_a_checkpoint_is_recovered_and_verified(
    smoke: FinishedStudy, tmp_path: Path, part: str
) -> None:
    words = ("--out", tmp_path / "new", "--part", part, "--steps", 50)
    printed = invoke("recover", smoke.file, *words, "--data", TRAINING, "--samples", 512).stdout
    assert "validation accuracy 0." in printed
    assert "reloaded in a fresh process" in printed
    old = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    new = load_pruned(tmp_path / "new", device="cpu")
    assert new.structure == old.structure
    assert new.model.state_dict().keys() == old.model.state_dict().keys()
