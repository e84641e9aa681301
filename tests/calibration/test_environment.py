from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch

from effllava_optuna.calibration.environment import check_environment
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.names import CHANGES, MANIFEST
from effllava_optuna.surgery import LoadedModel, fingerprint, reduced_tokens


@pytest.fixture
def inputs(tiny: LoadedModel) -> Any:
    task, functions = SimpleNamespace(digest="of the samples"), SimpleNamespace(digests={})
    return SimpleNamespace(loaded=tiny, task=task, functions=functions)


def test_the_same_environment_goes_on(inputs: Any) -> None:
    study = optuna.create_study(study_name="s")
    check_environment(study, inputs)
    check_environment(study, inputs)
    stored = study.user_attrs[MANIFEST]
    assert stored["torch"] == torch.__version__
    assert stored["device"] == "cpu"
    assert stored["task"] == "of the samples"
    assert CHANGES not in study.user_attrs


def test_all_that_has_changed_is_named_and_recorded_when_forced(inputs: Any) -> None:
    study = optuna.create_study(study_name="s")
    check_environment(study, inputs)
    older = study.user_attrs[MANIFEST] | {"torch": "2.0.0", "task": "others"}
    study.set_user_attr(MANIFEST, older)
    with pytest.raises(StudyError) as caught:
        check_environment(study, inputs)
    assert f"torch was 2.0.0 and is {torch.__version__}" in str(caught.value)
    assert "task was others and is of the samples" in str(caught.value)
    assert "--force" in str(caught.value)
    check_environment(study, inputs, force=True)
    check_environment(study, inputs, force=True)
    first, second = study.user_attrs[CHANGES]
    assert first["torch"] == second["torch"] == ["2.0.0", torch.__version__]
    assert study.user_attrs[MANIFEST] == older


def test_what_an_older_version_did_not_record_has_not_changed(inputs: Any) -> None:
    study = optuna.create_study(study_name="s")
    study.set_user_attr(MANIFEST, {"task": "of the samples"})
    check_environment(study, inputs)
    assert study.user_attrs[MANIFEST] == {"task": "of the samples"}
    assert CHANGES not in study.user_attrs


def test_any_training_changes_the_fingerprint(tiny: LoadedModel) -> None:
    before = fingerprint(tiny)
    weight = next(tiny.model.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.001)
    try:
        assert fingerprint(tiny) != before
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert fingerprint(tiny) == before


def test_fewer_image_tokens_have_a_fingerprint_of_their_own(tiny: LoadedModel) -> None:
    """Weights are the same; stored answers of one are not those of another."""
    found = {fingerprint(tiny)}
    for ratio, selection in ((0.5, "diversity"), (0.25, "diversity"), (0.25, "random")):
        with reduced_tokens(tiny, ratio, selection=selection) as reduced:
            found.add(fingerprint(reduced))
    assert len(found) == 4
