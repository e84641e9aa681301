"""The only module that uses private Python of optuna-dashboard, of version 0.21."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def use_incremental_properties(application: Any, study_id: int) -> None:
    """Replace the properties of a study that optuna-dashboard caches by `IncrementalProperties`.

    Another version of optuna-dashboard may have no such cache: then nothing is replaced, and the
    dashboard is slower.

    Args:
        application: The WSGI application of optuna-dashboard.
        study_id: The id of the study in its storage.
    """
    cache = getattr(application, "_inmemory_cache", None)
    properties = getattr(cache, "_cached_extra_study_property_cache", None)
    if isinstance(properties, dict):
        properties[study_id] = IncrementalProperties()


class IncrementalProperties(_CachedExtraStudyProperty):  # type: ignore[misc]  # it has no types
    """The union and the intersection of the parameters and attributes of all trials.

    optuna-dashboard compares each parameter of each trial with all others at each poll. This class
    reads a trial until it has ended, and skips parameters with the distributions of the trial
    before, because a parameter has one distribution for the life of a study.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finished_trials: set[int] = set()
        self._last_distributions: Mapping[str, BaseDistribution] = {}

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Read the trials that had not ended at the last call."""
        unread = [trial for trial in trials if trial.number not in self._finished_trials]
        self._cursor = -1  # the number at which the base class stops reading
        super().update(unread)
        self._finished_trials |= {trial.number for trial in unread if trial.state.is_finished()}

    def _update_search_space(self, trial: FrozenTrial) -> None:
        if trial.distributions != self._last_distributions:
            super()._update_search_space(trial)
            self._last_distributions = trial.distributions
