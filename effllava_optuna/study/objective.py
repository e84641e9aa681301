"""One trial: a policy becomes a network for a moment, and answers the proxy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optuna.logging import get_logger

from effllava_optuna.samplers import duplicate_of, give_back

if TYPE_CHECKING:
    from optuna import Trial

    from effllava_optuna.study.evolution import Epochs

_logger = get_logger(__name__)


class PruningObjective:
    """The objective of a study: ``(quality, latency_ms)``, to be maximized and minimized.

    It measures under the space and the basis that the trial carries, not under the current ones.
    Threads (``n_jobs > 1``) take turns at the model.

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
        self._wait_for_turn()
        try:
            with bench.loaded.lock:
                measured = bench.measure(decoded.policy, self.epochs.basis(attrs["basis"]))
        except KeyboardInterrupt:
            give_back(study, trial._trial_id)
            raise
        if "keep" not in attrs:
            for name, value in view.known(decoded.policy).items():
                trial.set_user_attr(name, value)
        if decoded.snapped:
            trial.set_user_attr("snapped", ", ".join(decoded.snapped))
        trial.set_user_attr("accuracy", round(measured.accuracy, 6))
        trial.set_user_attr("expected", round(measured.expected, 6))
        trial.set_user_attr("log_probability", round(measured.log_probability, 6))
        trial.set_user_attr("hits", measured.hits)
        return measured.quality, measured.latency_ms

    def _wait_for_turn(self) -> None:
        """Say once that trials of this process wait for each other."""
        lock = self.epochs.bench.loaded.lock
        if self._told or lock.acquire(blocking=False):
            if not self._told:
                lock.release()
            return
        self._told = True
        _logger.warning("Trials of one process share one model: n_jobs > 1 measures in turn.")
