"""Run a study from its current state to its end."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optuna.study import delete_study
from optuna.trial import TrialState

from effllava_optuna.calibration.calibration import allowed_widths
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.latency_file import check_file
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.errors import ConfigError, ModelError, StudyError
from effllava_optuna.files import expand_home
from effllava_optuna.samplers import fail_lost_trials, is_enqueued_by_user, slot_of
from effllava_optuna.search.budget import weight_budget
from effllava_optuna.search.epochs.schedule import SearchOver
from effllava_optuna.search.final_selection import FinalSelection
from effllava_optuna.search.objective import PruningObjective, run_trial
from effllava_optuna.search.session import open_session
from effllava_optuna.search.study_answers import published_answers
from effllava_optuna.storage.artifact_store import ArtifactStore, artifact_backend_of
from effllava_optuna.storage.connection import is_being_created, open_storage
from effllava_optuna.storage.control_study import EpochPublication, load_control_study
from effllava_optuna.storage.names import RESULTS
from effllava_optuna.storage.storage_internals import storage_of
from effllava_optuna.storage.studies import (
    config_of,
    create_study,
    refuse_existing,
)
from effllava_optuna.storage.trial_records import failure_counts, record_of
from effllava_optuna.storage.urls import file_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

_FEWEST_FAILURES = 4  # below, the share of failures is not checked
_NEAR_END = 8  # slots of a generation; more workers than this would idle before it
_REDRAW_SECONDS = 30.0  # between two drawings of the dashboard's pages within an epoch
_POLL_SECONDS = 0.2  # between two looks at what other processes do


@dataclass(frozen=True)
class Callbacks:
    """What a runner calls while it works; all of it is optional.

    Attributes:
        on_trial: Called after each trial of this process.
        draw_pages: Draws the pages of the dashboard.
        attach_results: Attaches files to the finalists' trials.
    """

    on_trial: Callable[[SearchSession, TrialRecord], None] = lambda *_: None
    draw_pages: Callable[[SearchSession], None] = lambda _: None
    attach_results: Callable[[SearchSession], None] = lambda _: None


@contextmanager
def begin(
    config: StudyConfig,
    url: str,
    report_stage: StageCallback = silent,
    *,
    device: str | None = None,
    sized_for: Callable[[StudyConfig, LoadedModel], StudyConfig] | None = None,
) -> Iterator[SearchSession]:
    """Create a study and open it; nothing is written before its model and samples are loaded.

    Args:
        config: The study file.
        url: URL of the storage, created if necessary; artifacts are stored beside it.
        report_stage: Called with the current stage and its finished share.
        device: Device of this process; None: as the study file says.
        sized_for: Returns the study file that is stored, with the sizes of a search that depend
            on the model; None: ``config``.

    Raises:
        StudyError: A study of that name exists, or ``latency.table`` cannot be used.
        ConfigError: No policy is within the budget; the study is not kept.
        ModelError: The model cannot be calibrated; the study is not kept.
    """
    file = file_of(url)
    if file is None or (file.is_file() and not is_being_created(file)):
        refuse_existing(open_storage(url), config.study.name)
    if config.latency.table is not None:
        check_file(expand_home(config.latency.table))
    report_stage("loading the model", 0.0)
    with study_inputs(config, device=device, report_stage=report_stage) as inputs:
        if sized_for is not None:
            inputs = replace(inputs, config=sized_for(inputs.config, inputs.loaded))
        if config.search.keep_ratio is not None:
            weight_budget(config, inputs.structure, allowed_widths(inputs.loaded, config))
        inputs.check_final_samples(report_stage)
        study = create_study(open_storage(url, create=True), inputs.config)
        artifact_store = ArtifactStore(artifact_backend_of(url, config))
        try:
            session = open_session(study, inputs, artifact_store, report_stage)
        except (ConfigError, ModelError):
            _delete_unused(study)
            raise
        with session:
            yield session


def _delete_unused(study: Study) -> None:
    """Delete a study that cannot begin, so that a corrected study file may use its name."""
    if study.get_trials(deepcopy=False):
        return
    for unused in (study, load_control_study(study)):
        if unused is not None:
            delete_study(study_name=unused.study_name, storage=storage_of(study))


@contextmanager
def resume(
    study: Study,
    url: str,
    report_stage: StageCallback = silent,
    *,
    config: StudyConfig | None = None,
    device: str | None = None,
    force: bool = False,
) -> Iterator[SearchSession]:
    """Open a study that exists, with its published calibration.

    Args:
        study: The study.
        url: URL of its storage.
        report_stage: Called with the current stage and its finished share.
        config: The config of the study if its paths differ from the stored ones.
        device: Device of this process; None: as the study file says.
        force: Whether to continue although versions, machine, weights or samples have changed.

    Raises:
        StudyError: What the study depends on has changed.
    """
    report_stage("loading the model", 0.0)
    config = config or config_of(study)
    artifact_store = ArtifactStore(artifact_backend_of(url, config))
    with (
        study_inputs(
            config, device=device, answers=published_answers(study), report_stage=report_stage
        ) as inputs,
        open_session(study, inputs, artifact_store, report_stage, force=force) as session,
    ):
        yield session


class EpochCallback:
    """Opens epochs during ``study.optimize(objective, callbacks=[EpochCallback(session)])``.

    After the last trial of an epoch it trains the projector and opens the next epoch; after the
    last trial of the study it stops the study.

    Args:
        session: The open study.
    """

    def __init__(self, session: SearchSession) -> None:
        self.session = session

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Check whether an epoch is finished: never before a trial of its last generation is."""
        _advance_after(self.session, trial)
        if self.session.schedule.finished:
            study.stop()


def _advance_after(session: SearchSession, trial: FrozenTrial) -> None:
    """Open the next epoch if a trial was the last one of its epoch."""
    slot = slot_of(trial)
    if slot is not None:
        if slot.generation < session.config.search.generations - 1:
            return
        if not session.schedule.is_finished(slot.epoch):
            return
    session.schedule.advance()


def search(session: SearchSession, callbacks: Callbacks | None = None) -> None:
    """Measure what is left to measure, epoch by epoch.

    Args:
        session: The open study.
        callbacks: Called while the search runs.

    Raises:
        StudyError: Too many trials fail.
    """
    study, schedule = session.study, session.schedule
    fail_lost_trials(study)
    objective, after_trial = PruningObjective(session), _AfterTrial(session, callbacks)
    schedule.advance()
    while not schedule.finished:
        with suppress(SearchOver):  # another process may finish the last slot at any moment
            session.epochs.control_study.check_study(study)
            written = session.sampler.queue_due_trials(study)
            if not written and not _waiting(study):
                time.sleep(_POLL_SECONDS)
                schedule.advance()
                continue
            while after_trial(run_trial(study, objective)):
                pass
    while _user_waits(study):
        with suppress(SearchOver):  # another process may take it at any moment
            after_trial(run_trial(study, objective))
    _fail_superseded_trials(study)
    storage_of(study).remove_session()


def _fail_superseded_trials(study: Study) -> None:
    """Fail the trials of killed processes whose slots others have finished.

    No later trial does it. There is no grace for a trial without an owner: a process that takes
    one from the queue now would find its slot finished.
    """
    trials = study.get_trials(deepcopy=False)
    fail_lost_trials(study, [t for t in trials if slot_of(t) is not None], grace_seconds=0)


class _AfterTrial:
    """All that follows a trial of this process."""

    def __init__(self, session: SearchSession, callbacks: Callbacks | None) -> None:
        self.session = session
        self.callbacks = callbacks or Callbacks()
        self.drawn = time.monotonic()

    def __call__(self, trial: FrozenTrial | None) -> bool:
        """Open the next epoch if it is due, and show a trial.

        Returns:
            Whether another trial may be waiting.
        """
        if trial is None:
            return False
        _advance_after(self.session, trial)
        if trial.state == TrialState.FAIL:
            _check_failures(self.session.study, self.session.config.search.failures)
        self.callbacks.on_trial(self.session, record_of(trial))
        self._draw(trial)
        return self._may_continue(trial)

    def _draw(self, trial: FrozenTrial) -> None:
        """Draw the pages in one process: the one that measures the first slot of a generation."""
        slot = slot_of(trial)
        if slot is None or slot.index != 0:
            return
        if slot.generation == 0 or time.monotonic() - self.drawn > _REDRAW_SECONDS:
            self.callbacks.draw_pages(self.session)
            self.drawn = time.monotonic()

    def _may_continue(self, trial: FrozenTrial) -> bool:
        """Return whether to ask for a trial: if none is queued, Optuna creates one of its own.

        Such a trial is stored gene by gene, and at the end of the study it is one too many.
        """
        slot, population = slot_of(trial), self.session.config.search.population
        if slot is not None and slot.index < population - _NEAR_END:
            return True
        return _waiting(self.session.study)


def _waiting(study: Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _user_waits(study: Study) -> bool:
    """Return whether a trial waits that a user enqueued: there is no slot left at the end."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return any(map(is_enqueued_by_user, waiting))


def _check_failures(study: Study, allowed: float) -> None:
    """Stop a study in which too many trials fail.

    Raises:
        StudyError: With the reasons, counted.
    """
    reasons = failure_counts(study)
    trials = study.get_trials(deepcopy=False)
    failed, finished = reasons.total(), sum(trial.state.is_finished() for trial in trials)
    if failed >= _FEWEST_FAILURES and failed > allowed * finished:
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise StudyError(
            f"{failed} of {finished} trials failed: {listed}.",
            hint="Fix the cause, then continue with `resume`; search.failures sets the limit.",
        )


def conclude(session: SearchSession, callbacks: Callbacks | None = None) -> None:
    """Choose and measure the finalists, unless that is done; one of several processes does it.

    Args:
        session: A study whose search is over.
        callbacks: Draw the pages of the dashboard.
    """
    callbacks = callbacks or Callbacks()
    session.epochs.check_artifacts()
    if RESULTS not in session.study.user_attrs:

        def publication() -> EpochPublication:
            callbacks.draw_pages(session)
            results = FinalSelection(session).run()
            _show(session, callbacks)
            return EpochPublication(float(results["chosen"]["accuracy_proxy"]), {}, None)

        # An attempt of the control study, numbered so that no epoch directly precedes it.
        session.epochs.control_study.publish_once(session.config.search.epochs + 1, publication)
        return
    _show(session, callbacks)  # the process that measured them may have been killed before this


def _show(session: SearchSession, callbacks: Callbacks) -> None:
    callbacks.attach_results(session)
    callbacks.draw_pages(session)
