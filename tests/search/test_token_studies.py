"""Studies whose policies decide how many image tokens are read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from effllava_optuna import load_pruned
from effllava_optuna.policy import IMAGE_TOKENS
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.trial_records import effective_records
from tests.cli.commands.test_study_commands import wait_for_trials
from tests.study_fixtures import (
    FinishedStudy,
    begin_study,
    copy_study,
    invoke,
    start_command,
    url_of_study,
    write_tiny,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.studies


def write_study(checkpoint: Path, directory: Path, pruning: str) -> Path:
    """Write a study file with a latency budget and further keys of ``[pruning]``."""
    file = write_tiny(checkpoint, directory)
    text = file.read_text().replace("keep_ratio = 0.5", "speedup = 1.8")
    file.write_text(text.replace("[pruning]", f"[pruning]\n{pruning}"))
    return file


@pytest.fixture(scope="module")
def begun(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a latency budget, whose calibration is published."""
    folder = tmp_path_factory.mktemp("tokens")
    file = write_study(checkpoint, folder, "visual_tokens = [0.25, 0.5]")
    file.write_text(f'{file.read_text()}\n[export]\ndirectory = "tiny.pruned"\n')
    return begin_study(file)


@pytest.fixture(scope="module")
def finished(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    file = copy_study(begun, tmp_path_factory.mktemp("finished") / "study")
    return FinishedStudy(file, invoke("resume", file).stdout)


def test_trials_read_different_numbers_of_image_tokens(finished: FinishedStudy) -> None:
    study = open_study(open_storage(finished.url), "tiny")
    records = effective_records(study)
    tokens = {record.widths[0] for record in records}
    assert len(tokens) > 1
    assert tokens <= {25, 50, 100}
    chosen = finished.document("status")["chosen"]
    assert chosen["policy"][IMAGE_TOKENS.id] in tokens
    by_tokens, by_widths = chosen["speedup_parts"]["prefill"]
    assert by_tokens * by_widths >= 1.8
    assert "What the speed-up is made of" in finished.output
    assert f"{chosen['policy'][IMAGE_TOKENS.id]} % of the image tokens" in finished.output


def test_every_trial_can_be_exported_and_evaluated(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    study = open_study(open_storage(finished.url), "tiny")
    by_tokens = {record.widths[0]: record for record in effective_records(study)}
    for tokens, record in by_tokens.items():
        out = tmp_path / str(tokens)
        done = invoke("export", finished.file, "--trial", record.number, "--out", out)
        assert "same generation: yes" in done.stdout
        reduction = load_pruned(out, device="cpu").visual_tokens
        assert (1.0 if reduction is None else reduction.ratio) == tokens / 100
        graded = [
            json.loads(
                invoke(
                    "evaluate", finished.file, "--split", "validation", "--model", model,
                    "-f", "json",
                ).stdout
            )["all"]
            for model in (record.number, out)
        ]  # fmt: skip
        assert graded[0] == graded[1]


@pytest.mark.kill
def test_kills_among_three_workers_change_nothing(
    begun: Path, finished: FinishedStudy, tmp_path: Path
) -> None:
    file = copy_study(begun, tmp_path / "workers")
    arguments = ("worker", "--storage", url_of_study(file), "--study-name", "tiny")
    workers = [start_command(*arguments) for _ in range(3)]
    for done in (4, 13, 20):  # the second one is near the training of the projector
        wait_for_trials(file.with_suffix(".db"), done)
        workers.pop(0).kill()
        workers.append(start_command(*arguments))
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    invoke("resume", file)
    resumed, expected = FinishedStudy(file, "").document("status"), finished.document("status")
    assert resumed["digest"] == expected["digest"]
    assert resumed["chosen"]["policy"] == expected["chosen"]["policy"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("visual_tokens = []", "pruning.visual_tokens"),
        ("visual_tokens = [0.0]", "pruning.visual_tokens"),
        ("visual_tokens = [1.5]", "pruning.visual_tokens"),
        ('token_selection = "attention"', "pruning.token_selection"),
        ('visual_tokens = [0.5]\nmode = "vllm-safe"', "no stock configuration describes"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    checkpoint: Path, tmp_path: Path, text: str, message: str
) -> None:
    file = write_study(checkpoint, tmp_path, text)
    refused = invoke("check", file, check=False)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert url_of_study(file)
