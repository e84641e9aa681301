"""One trial: a policy becomes a network for a moment, and answers the proxy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import EffllavaError
from effllava_optuna.logging import get_logger
from effllava_optuna.samplers import duplicate_of, give_back, write_user_attrs
from effllava_optuna.study.storage import CONSTRAINTS, REASON

if TYPE_CHECKING:
    from optuna import Trial

    from effllava_optuna.policy import Policy
    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.study.view import EpochView

_logger = get_logger(__name__)


class TrialFailed(RuntimeError):
    """A policy could not be measured; the trial says why, and the study may go on."""


class PruningObjective:
    """The objective of a study: ``(quality, latency_ms)``, to be maximized and minimized.

    It measures under the space and the basis that the trial carries, not under the current ones.
    Threads (``n_jobs > 1``) take turns at the model. A policy that cannot be measured (out of
    memory, say) raises `TrialFailed`; the attribute ``reason`` of its trial says why.

    Args:
        epochs: Of the study.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self._told = False

    def __call__(self, trial: Trial) -> tuple[float, float]:
        """Measure the policy of ``trial``; NaN (it fails) where another trial has its slot."""
        study, bench = trial.study, self.epochs.bench
        attrs, twin = trial.user_attrs, duplicate_of(study, trial.number)
        if twin is not None:
            trial.set_user_attr("duplicate", twin)
            return math.nan, math.nan
        view = self.epochs.view_of(attrs["epoch"])
        params = {
            name: trial.suggest_int(name, distribution.low, distribution.high)
            for name, distribution in view.distributions.items()
        }
        decoded = view.space.decode(params, bench.anatomy)
        found = {} if "keep" in attrs else self._foreign(trial, view, decoded.policy)
        if decoded.snapped:
            found["snapped"] = ", ".join(decoded.snapped)
        self._wait_for_turn()
        try:
            with bench.loaded.lock:
                basis = self.epochs.basis(attrs["basis"])
                measured = bench.measure(decoded.policy, basis)
        except (KeyboardInterrupt, EffllavaError):
            give_back(study, trial._trial_id)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            trial.set_user_attr(REASON, reason)
            raise TrialFailed(reason) from error
        if math.isnan(measured.quality) or math.isnan(measured.latency_ms):
            reason = f"quality is {measured.quality}, latency {measured.latency_ms} ms"
            trial.set_user_attr(REASON, reason)
            raise TrialFailed(reason)
        found |= {
            "accuracy": round(measured.accuracy, 6),
            "expected": round(measured.expected, 6),
            "log_probability": round(measured.log_probability, 6),
            "hits": [int(hit) if hit in (0, 1) else hit for hit in measured.hits],
        }
        write_user_attrs(study, trial._trial_id, found)
        return measured.quality, measured.latency_ms

    def _foreign(self, trial: Trial, view: EpochView, policy: Policy) -> dict[str, Any]:
        """Say of a policy that somebody enqueued what the sampler says of its own."""
        if self.epochs.budget.bound is not None:
            excess = self.epochs.budget.excess(self.epochs.bench.anatomy, policy)
            storage = trial.study._storage
            storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, [excess])
        return dict(view.known(policy))

    def _wait_for_turn(self) -> None:
        """Say once that trials of this process wait for each other."""
        lock = self.epochs.bench.loaded.lock
        if self._told or lock.acquire(blocking=False):
            if not self._told:
                lock.release()
            return
        self._told = True
        _logger.warning("Trials of one process share one model: n_jobs > 1 measures in turn.")
