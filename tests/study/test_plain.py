"""The search inside a plain Optuna script, as the docs show it."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.errors import SpecError, StudyError
from effllava_optuna.study import prepare, read_spec
from tests.study.conftest import ROOT, SMOKE, forked, write_tiny

SAMPLER = optuna.samplers.RandomSampler()


def script() -> str:
    """The example of docs/script.md that is no file, and optimizes a study."""
    page = (ROOT / "docs" / "script.md").read_text()
    found = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (mine,) = [text for text in found if "study.optimize(" in text]
    return str(mine)


def test_the_documented_script_runs_with_two_threads(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = script()
    assert len(text.strip().splitlines()) <= 15
    assert "n_jobs=2" in text
    assert 'storage="sqlite:///' in text
    (tmp_path / "studies").mkdir()
    # As many trials as the script asks for, of a model that takes less time.
    file = write_tiny(checkpoint, tmp_path / "studies").rename(tmp_path / "studies" / "smoke.toml")
    file.write_text(file.read_text().replace("population = 6", "population = 12"))
    monkeypatch.chdir(tmp_path)
    process = forked(exec, text, {}, output=tmp_path / "output")
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
    assert len({trial.user_attrs["basis"] for trial in trials}) == 2


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


def test_a_study_goes_on_only_with_its_own_spec(tmp_path: Path) -> None:
    from effllava_optuna.study import storage

    opened = storage.open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    study = storage.create_study(opened, read_spec(SMOKE))
    with pytest.raises(SpecError, match=r"search\.epochs is 7 in the file and 2 in the study"):
        prepare(read_spec(SMOKE, ("search.epochs=7",)), study)


@pytest.mark.parametrize(("told", "expected"), [('"auto"', 1), ("2", 2)])
def test_a_small_model_runs_on_one_thread_unless_told_otherwise(told: str, expected: int) -> None:
    import torch

    from effllava_optuna.study.workbench import Workbench

    before = torch.get_num_threads()
    with Workbench(read_spec(SMOKE, (f"model.threads={told}", "model.device=cpu"))):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == before
