"""The objective: one trial measures one policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from effllava_optuna.errors import EffllavaError, UserFunctionError
from effllava_optuna.logging import get_logger
from effllava_optuna.samplers import duplicate_of, owns_trial, release_trial, write_user_attrs
from effllava_optuna.storage.control_study import study_was_deleted
from effllava_optuna.storage.names import REASON
from effllava_optuna.storage.storage_internals import set_constraint
from effllava_optuna.storage.trial_records import compact_scores

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from effllava_optuna.policy import Policy
    from effllava_optuna.search.evaluator import Measurement
    from effllava_optuna.search.session import SearchSession

_LONGEST_REASON = 300  # characters
_logger = get_logger(__name__)


class TrialFailed(RuntimeError):
    """A policy could not be measured; the attribute ``reason`` of its trial says why."""


class PruningObjective:
    """The objective of a study: ``(quality, latency_ms)``, to be maximized and minimized.

    A policy is measured in the space and under the weight state that its trial carries, not in
    the current ones. Threads (``n_jobs > 1``) take turns at the model. A policy that cannot be
    measured (out of memory, say) raises `TrialFailed`.

    Args:
        session: The open study.
    """

    def __init__(self, session: SearchSession) -> None:
        self.session = session
        self._warned = False

    def __call__(self, trial: Trial) -> tuple[float, float]:
        """Measure the policy of ``trial``.

        Returns:
            Quality and latency in ms; NaN, so that the trial fails, if another trial has its slot.

        Raises:
            TrialFailed: The policy cannot be measured.
        """
        session, attrs = self.session, trial.user_attrs
        twin = duplicate_of(trial.study, trial.number)
        if twin is not None:
            trial.set_user_attr("duplicate", twin)
            return math.nan, math.nan
        view = session.schedule.view_of(attrs["epoch"])
        params = {
            name: trial.suggest_int(name, distribution.low, distribution.high)
            for name, distribution in view.distributions.items()
        }
        decoded = view.space.decode(params)
        described = {} if "widths" in attrs else self._describe_enqueued(trial, decoded.policy)
        if decoded.snapped:
            described["snapped"] = ", ".join(decoded.snapped)
        measured = self._measure(trial, decoded.policy)
        if not owns_trial(trial):
            raise study_was_deleted(trial.study.study_name)
        write_user_attrs(
            trial.study,
            trial,
            described
            | {
                "accuracy": round(measured.accuracy, 6),
                "expected": round(measured.expected, 6),
                "log_probability": round(measured.log_probability, 6),
                "hits": compact_scores(measured.hits),
                "quality_scores": compact_scores(measured.quality_scores),
            },
        )
        return measured.quality, measured.latency_ms

    def _measure(self, trial: Trial, policy: Policy) -> Measurement:
        session = self.session
        self._warn_if_busy()
        try:
            with session.evaluator.loaded.lock:
                weight_state = session.epochs.weight_state(trial.user_attrs["weight_state"])
                factor = session.epochs.epoch(trial.user_attrs["epoch"]).latency_factor
                measured = session.evaluator.measure(
                    policy, weight_state, factor, session.config.search.timeout
                )
        except UserFunctionError as error:  # this policy alone may be the reason
            trial.set_user_attr(REASON, error.message[:_LONGEST_REASON])
            raise TrialFailed(error.message) from error
        except (KeyboardInterrupt, EffllavaError):
            release_trial(trial)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_REASON]}"
            trial.set_user_attr(REASON, reason)
            raise TrialFailed(reason) from error
        if not (math.isfinite(measured.quality) and math.isfinite(measured.latency_ms)):
            reason = f"quality is {measured.quality}, latency {measured.latency_ms} ms"
            trial.set_user_attr(REASON, reason)
            raise TrialFailed(reason)
        return measured

    def _describe_enqueued(self, trial: Trial, policy: Policy) -> dict[str, Any]:
        """Describe a policy that a user enqueued as the sampler describes its own."""
        schedule = self.session.schedule
        costs = schedule.view_of(trial.user_attrs["epoch"]).cost_model
        if costs.limit is not None:
            set_constraint(trial, [costs.excess(policy)])
        return schedule.describe(policy, costs)

    def _warn_if_busy(self) -> None:
        """Warn once that trials of this process wait for each other."""
        lock = self.session.evaluator.loaded.lock
        if self._warned:
            return
        if lock.acquire(blocking=False):
            lock.release()
            return
        self._warned = True
        _logger.warning("Trials of one process share one model: n_jobs > 1 measures in turn.")


def run_trial(study: Study, objective: PruningObjective) -> FrozenTrial | None:
    """Ask for a trial, measure it, and store its values or its failure.

    Unlike `Study.optimize`, this raises no error if somebody else ends the trial meanwhile: the
    dashboard, a script, or a process for which the lease of this one has run out (Optuna issues
    4234 and 5470). What they stored stays.

    Args:
        study: A study with queued trials.
        objective: Measures a trial.

    Returns:
        The trial as it is stored; None if somebody else has ended it.
    """
    try:
        trial = study.ask()
    except UpdateFinishedTrialError as error:  # after it was taken from the queue
        _logger.warning(str(error) or "A trial was ended before it was measured.")
        return None
    state, values = TrialState.FAIL, None
    try:
        measured = objective(trial)
        if not any(map(math.isnan, measured)):
            state, values = TrialState.COMPLETE, list(measured)
    except TrialFailed as error:
        _logger.warning(f"Trial {trial.number} failed: {error}")
    except UpdateFinishedTrialError:
        pass  # `tell` reads how it was ended
    except (Exception, KeyboardInterrupt):
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    try:
        stored = study.tell(trial, values, state, skip_if_finished=True)
    except UpdateFinishedTrialError:  # between the two steps of `tell`
        stored = None
    if stored is not None and (stored.state, stored.values) == (state, values):
        _logger.debug(f"Trial {trial.number} ended as {state.name} with values {values}.")
        return stored
    _logger.warning(
        f"Trial {trial.number} was ended by another process while this one measured it; the "
        "values of this process are not stored."
    )
    return None
