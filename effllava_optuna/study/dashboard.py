"""optuna-dashboard over a study's database and artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna_dashboard
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty

from effllava_optuna.study.artifacts import store_for
from effllava_optuna.study.storage import spec_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def application(study: Study, url: str) -> Any:
    """Give the dashboard of a study, as a WSGI application.

    Args:
        study: The study.
        url: Of its storage.
    """
    store = store_for(url, spec_of(study))
    served = optuna_dashboard.wsgi(study._storage, artifact_store=store)
    cache = getattr(served, "_inmemory_cache", None)
    known = getattr(cache, "_cached_extra_study_property_cache", None)
    if isinstance(known, dict):  # so it is in version 0.21
        known[study._study_id] = _Genes()
    return served


class _Genes(_CachedExtraStudyProperty):  # type: ignore[misc]  # optuna-dashboard has no types
    """What the genes and attributes of all trials have in common, each trial looked at once.

    The dashboard compares every gene of every trial with every other at each poll. Our genes have
    one distribution for the life of a study, and a trial that has ended stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended: set[int] = set()
        self._last: Mapping[str, BaseDistribution] = {}

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Look at trials that had not ended at the last look."""
        fresh = [trial for trial in trials if trial.number not in self._ended]
        self._cursor = -1
        super().update(fresh)
        self._ended |= {trial.number for trial in fresh if trial.state.is_finished()}

    def _update_search_space(self, trial: FrozenTrial) -> None:
        if trial.distributions != self._last:
            super()._update_search_space(trial)
            self._last = trial.distributions
