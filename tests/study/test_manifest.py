from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch

from effllava_optuna.errors import StudyError
from effllava_optuna.study.manifest import settle
from effllava_optuna.study.storage import CHANGES, MANIFEST
from effllava_optuna.surgery import Loaded, fingerprint


@pytest.fixture
def bench(tiny: Loaded) -> Any:
    task, own = SimpleNamespace(digest="of the samples"), SimpleNamespace(digests={})
    return SimpleNamespace(loaded=tiny, task=task, own=own)


def test_the_same_environment_goes_on(bench: Any) -> None:
    study = optuna.create_study(study_name="s")
    settle(study, bench)
    settle(study, bench)
    stored = study.user_attrs[MANIFEST]
    assert stored["torch"] == torch.__version__
    assert stored["device"] == "cpu"
    assert stored["task"] == "of the samples"
    assert CHANGES not in study.user_attrs


def test_all_that_has_changed_is_named_and_recorded_when_forced(bench: Any) -> None:
    study = optuna.create_study(study_name="s")
    settle(study, bench)
    older = study.user_attrs[MANIFEST] | {"torch": "2.0.0", "task": "others"}
    study.set_user_attr(MANIFEST, older)
    with pytest.raises(StudyError) as caught:
        settle(study, bench)
    assert f"torch was 2.0.0 and is {torch.__version__}" in str(caught.value)
    assert "task was others and is of the samples" in str(caught.value)
    assert "--force" in str(caught.value)
    settle(study, bench, force=True)
    settle(study, bench, force=True)
    first, second = study.user_attrs[CHANGES]
    assert first["torch"] == second["torch"] == ["2.0.0", torch.__version__]
    assert study.user_attrs[MANIFEST] == older


def test_what_an_older_version_did_not_record_has_not_changed(bench: Any) -> None:
    study = optuna.create_study(study_name="s")
    study.set_user_attr(MANIFEST, {"task": "of the samples"})
    settle(study, bench)
    assert study.user_attrs[MANIFEST] == {"task": "of the samples"}
    assert CHANGES not in study.user_attrs


def test_any_training_changes_the_fingerprint(tiny: Loaded) -> None:
    before = fingerprint(tiny.model)
    weight = next(tiny.model.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.001)
    try:
        assert fingerprint(tiny.model) != before
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert fingerprint(tiny.model) == before
