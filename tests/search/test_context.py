"""Studies whose compensation tables are fitted again between epochs."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.errors import StudyError
from effllava_optuna.policy import Policy
from effllava_optuna.report import study_document
from effllava_optuna.search.epochs.context_round import ContextTrial, HeldOutScore, try_context
from effllava_optuna.search.epochs.epoch_registry import EpochRegistry
from effllava_optuna.search.runner import search
from effllava_optuna.search.trial_export import ExportOptions, export_trial
from effllava_optuna.storage.integrity.artifact_check import check_artifacts
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.storage.trial_records import measured_record
from effllava_optuna.surgery import (
    FULL_FIT,
    load_pruned,
    sliced,
    table_tensors,
    tables_of,
    use_projector,
)
from effllava_optuna.tasks import Digits
from tests.cli.commands.test_study_commands import wait_for_trials
from tests.study_fixtures import (
    TINY,
    FinishedStudy,
    StudyFactory,
    begin_study,
    copy_study,
    invoke,
    start_command,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

RATIOS = (0.1, 0.3, 0.6, 1.0)


class ContextFactory(StudyFactory):
    """Opens studies whose calibration has tables of zeros.

    Any other tables are better, so that those of the first epoch are kept.
    """

    def __init__(self, loaded: LoadedModel, directory: Path) -> None:
        sizes: dict[str, Any] = {"epochs": 3, "generations": 1, "population": 5, "keep_ratio": 0.5}
        super().__init__(loaded, Digits(proxy=16, validation=8, test=8), directory, **sizes)
        tensors = table_tensors(self.calibration.compensations)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self.calibration = replace(
            self.calibration, compensations=tables_of(zeros, (True, True, True))
        )

    def config(self, **search: Any) -> StudyConfig:
        """Return a study file with more keys of ``[search]``."""
        config = super().config(**search)
        pruning = {"in_context": True, "width_ratios": RATIOS}
        quality = {"measure": "agreement"}  # the answers of a random model are right
        return config.model_copy(
            update={
                "pruning": config.pruning.model_copy(update=pruning),
                "projector": config.projector.model_copy(update={"steps": 1, "every": 1}),
                "quality": config.quality.model_copy(update=quality),
            }
        )


@pytest.fixture(scope="module")
def factory(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ContextFactory:
    return ContextFactory(tiny, tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def searched(factory: ContextFactory) -> Iterator[SearchSession]:
    """A searched study; its session stays open during the tests of this module."""
    with factory() as session:
        search(session)
        yield session


def attempts(session: SearchSession) -> list[dict[str, Any]]:
    published = session.epochs.control_study.published_epochs()[: session.config.search.epochs]
    return [dict(attempt.user_attrs) for attempt in published]


def test_tables_are_kept_if_the_loss_is_lower_and_stay_for_the_next_epoch(
    searched: SearchSession,
) -> None:
    calibration, first, second = attempts(searched)
    assert "tables" not in calibration
    assert first["in_context"]["kept"]
    assert first["in_context"]["after"]["loss"] < first["in_context"]["before"]["loss"]
    compared = second["in_context"]
    assert compared["kept"] == (compared["after"]["loss"] < compared["before"]["loss"])
    assert compared["kept"] == (second["tables"] != first["tables"])
    # The projector is trained for the tables that are kept.
    assert first["in_context"]["after"]["loss"] == pytest.approx(first["crossfit_loss_before"])


def test_every_epoch_has_the_tables_that_it_published(searched: SearchSession) -> None:
    states = [searched.epochs.epoch(number).weight_state for number in range(3)]
    kept = attempts(searched)[2]["in_context"]["kept"]
    assert (states[2].compensations is states[1].compensations) == (not kept)
    assert states[1].compensations is not states[0].compensations
    for number, state in enumerate(states[1:], start=1):
        trials = [t for t in searched.study.trials if t.user_attrs["epoch"] == number]
        assert {trial.user_attrs["weight_state"] for trial in trials} == {state.digest}
        tensors = table_tensors(state.compensations)
        assert tensors.keys() == table_tensors(states[0].compensations).keys()
        assert all(bool(tensor.any()) for tensor in tensors.values())


def test_another_process_reads_the_same_weight_states(searched: SearchSession) -> None:
    epochs = searched.epochs
    read = EpochRegistry(epochs.control_study, epochs.artifact_store, epochs.epoch(0))
    for number in (2, 1, 0):
        digest = epochs.epoch(number).weight_state.digest
        assert read.epoch(number).weight_state.digest == digest
        assert read.weight_state(digest).digest == digest
    # Beside those of the calibration, the tables of one epoch are in memory.
    assert len({id(epoch.weight_state.compensations) for epoch in read._epochs.values()}) == 2


@pytest.mark.kill
def test_a_trial_is_exported_with_the_tables_of_its_weight_state(
    searched: SearchSession, tmp_path: Path
) -> None:
    number = next(t.number for t in searched.study.trials if t.user_attrs["epoch"] == 1)
    export_trial(searched, number, tmp_path / "pruned", ExportOptions("native", overwrite=False))
    record = measured_record(searched.study, number)
    policy = Policy.of(searched.evaluator.structure, record.widths)
    state = searched.epochs.weight_state(record.weight_state)
    loaded, projector = searched.evaluator.loaded, state.projectors[FULL_FIT]
    with use_projector(loaded, projector):
        expected = sliced(loaded, policy, state.ranking, state.compensations[FULL_FIT])
    exported = load_pruned(tmp_path / "pruned").model.state_dict()
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(exported[name], weight), name


def test_missing_tables_are_named(searched: SearchSession, factory: ContextFactory) -> None:
    backend, tables = searched.epochs.artifact_store.backend, attempts(searched)[1]["tables"]
    assert check_artifacts(searched.study, backend)[0].state == "ok"
    file = factory.directory / tables
    content = file.read_bytes()
    file.unlink()
    try:
        (fault, *_) = check_artifacts(searched.study, backend)
        assert fault.state == "fault"
        assert tables[:12] in fault.detail
        with pytest.raises(StudyError, match="the artifact is missing"):
            searched.epochs.check_artifacts()
    finally:
        file.write_bytes(content)


def test_the_report_has_both_losses_of_each_epoch(searched: SearchSession) -> None:
    updates = study_document(read_study_facts(searched.study))["projector"]
    published = [attempt["in_context"] for attempt in attempts(searched)[1:]]
    assert [update["in_context"] for update in updates] == published


def test_tables_that_do_not_pay_or_cannot_be_fitted_leave_the_weight_state(
    searched: SearchSession, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator, state = searched.evaluator, searched.epochs.epoch(0).weight_state
    dense = Policy.dense(evaluator.structure)
    stages: list[str] = []

    def report_stage(stage: str, share: float) -> None:
        stages.append(stage)

    tables = state.compensations
    assert try_context(evaluator, state, tables, [dense], report_stage) == (state, None)
    assert stages == []
    narrow = evaluator.calibration.narrowest
    component = evaluator.structure.components[0].id
    calibration = replace(evaluator.calibration, damping={component: -1.0})
    broken = replace(evaluator, calibration=calibration)
    assert try_context(broken, state, tables, [narrow], report_stage) == (state, None)
    assert f"pruning.in_context: The moments of {component} cannot be factored" in caplog.text
    fitted, compared = try_context(evaluator, state, tables, [narrow], report_stage)
    assert compared is not None
    assert compared.kept
    again, compared = try_context(evaluator, state, fitted.compensations, [narrow], report_stage)
    assert compared is not None
    assert compared.before.loss == compared.after.loss  # the same inputs give the same tables
    assert again.compensations is fitted.compensations
    assert again.digest == fitted.digest
    assert {*stages} == {"fitting in context", "comparing compensation tables"}


def test_the_digest_does_not_depend_on_tables_that_are_replaced(searched: SearchSession) -> None:
    evaluator, state = searched.evaluator, searched.epochs.epoch(0).weight_state
    narrow, zeros = evaluator.calibration.narrowest, state.compensations
    digests = []
    for value in (0.0, 1e-6):
        tensors = {name: zero + value for name, zero in table_tensors(zeros).items()}
        tables = tables_of(tensors, (True, True, True))
        fitted, compared = try_context(evaluator, state, tables, [narrow], silent)
        assert compared is not None
        assert compared.kept
        digests.append(fitted.digest)
    assert digests[0] == digests[1]


def test_equal_losses_and_losses_that_are_no_numbers_keep_the_old_tables() -> None:
    old = HeldOutScore(0.5, 0.75)
    for loss in (0.5, 0.6, float("nan")):
        assert not ContextTrial(old, HeldOutScore(loss, 1.0), 1.0).kept
    assert ContextTrial(old, HeldOutScore(0.4, 0.5), 1.0).kept


@pytest.mark.kill
def test_a_study_that_is_killed_while_it_fits_has_the_same_digest(
    checkpoint: Path, tmp_path: Path
) -> None:
    text = TINY.format(checkpoint=checkpoint).replace("[pruning]", "[pruning]\nin_context = true")
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    begin_study(file)
    killed = copy_study(file, tmp_path / "killed")
    invoke("resume", file)
    database = killed.with_suffix(".db")
    process = start_command("resume", killed)
    wait_for_trials(database, 12)  # the first epoch
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    invoke("resume", killed)
    expected, resumed = (FinishedStudy(one, "").document("status") for one in (file, killed))
    assert resumed["digest"] == expected["digest"]
    assert (
        resumed["projector"][0]["in_context"]["after"]
        == (expected["projector"][0]["in_context"]["after"])
    )
