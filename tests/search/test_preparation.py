"""The search inside a plain Optuna script, as the docs show it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.errors import ConfigError, StudyError
from effllava_optuna.study import load_config, prepare
from tests.page_blocks import blocks_of, commands_of, program_arguments
from tests.study_fixtures import ROOT, SMOKE, invoke, start_process, write_tiny

SAMPLER = optuna.samplers.RandomSampler()


def documented_blocks() -> tuple[str, list[list[str]]]:
    """Return the script of docs/script.md that is not a file, and the commands that follow it."""
    blocks = [block for block in blocks_of(ROOT / "docs" / "script.md") if block.not_run]
    script, shell = (block.text for block in blocks)
    return script, [program_arguments(words) or [] for _, words in commands_of(shell)]


@pytest.mark.docs
def test_the_documented_script_runs_with_two_threads_and_the_commands_continue_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, commands = documented_blocks()
    assert len(script.strip().splitlines()) <= 15
    assert "n_jobs=2" in script
    assert 'storage="sqlite:///' in script
    (tmp_path / "studies").mkdir()
    # As many trials as the script asks for, of a model that takes less time.
    file = write_tiny(checkpoint, tmp_path / "studies").rename(tmp_path / "studies" / "smoke.toml")
    file.write_text(file.read_text().replace("population = 6", "population = 12"))
    monkeypatch.chdir(tmp_path)
    process = start_process(exec, script, {}, output=tmp_path / "output")
    process.join(600)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 0, output
    assert output.count("n_jobs > 1 measures in turn") == 1
    (database,) = tmp_path.glob("*.db")
    study = _only_study(database)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    slots = {
        tuple(trial.user_attrs[name] for name in ("epoch", "generation", "index"))
        for trial in trials
    }
    assert len(trials) == len(slots) == 48
    assert {slot[0] for slot in slots} == {0, 1}
    assert len({trial.user_attrs["weight_state"] for trial in trials}) == 2
    assert [arguments[0] for arguments in commands] == ["status", "resume", "report"]
    printed = [invoke(*arguments).stdout for arguments in commands]
    assert "48 complete" in printed[0]
    assert "chosen" in printed[2]


def _only_study(database: Path) -> optuna.Study:
    url = f"sqlite:///{database}"
    (name,) = [n for n in optuna.get_all_study_names(url) if not n.endswith("/projector")]
    return optuna.load_study(study_name=name, storage=url, sampler=SAMPLER)


def test_other_directions_are_refused(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SAMPLER)
    with pytest.raises(StudyError, match="Create it with directions="):
        prepare(SMOKE, study)


def test_a_study_in_memory_needs_a_place_for_artifacts() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SAMPLER)
    with pytest.raises(StudyError, match=r"Set study\.artifacts"):
        prepare(SMOKE, study)


def test_a_study_goes_on_only_with_its_own_config(tmp_path: Path) -> None:
    from effllava_optuna.storage.connection import open_storage
    from effllava_optuna.storage.studies import create_study

    opened = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    study = create_study(opened, load_config(SMOKE))
    with pytest.raises(ConfigError, match=r"search\.epochs is 7 in the file and 2 in the study"):
        prepare(load_config(SMOKE, ("search.epochs=7",)), study)


@pytest.mark.parametrize(("threads", "expected"), [('"auto"', 1), ("2", 2)])
def test_a_small_model_runs_on_one_thread_unless_told_otherwise(
    threads: str, expected: int
) -> None:
    import torch

    from effllava_optuna.calibration.inputs import study_inputs

    before = torch.get_num_threads()
    config = load_config(SMOKE, (f"model.threads={threads}", "model.device=cpu"))
    with study_inputs(config):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == before
