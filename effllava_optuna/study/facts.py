"""Read all that is stored of a study, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from effllava_optuna.policy import Anatomy
from effllava_optuna.report import StudyFacts
from effllava_optuna.study.ledger import published
from effllava_optuna.study.records import digest_of, failures_of, trials_of
from effllava_optuna.study.storage import (
    ANATOMY,
    CHANGES,
    MANIFEST,
    RESULTS,
    SCORES,
    TASK,
    control_name,
    spec_of,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_SHOWN = (
    "steps",
    "seconds",
    "proxy_accuracy_before",
    "proxy_accuracy_after",
    "proxy_loss_before",
    "proxy_loss_after",
    "crossfit_accuracy_before",
    "crossfit_accuracy_after",
    "crossfit_loss_before",
    "crossfit_loss_after",
    "crossfit_curve",
)


def facts_of(study: Study) -> StudyFacts:
    """Collect what a report needs of ``study``."""
    spec = spec_of(study)
    attrs = study.user_attrs
    published = _published(study)
    return StudyFacts(
        name=study.study_name,
        epochs=spec.search.epochs,
        planned=spec.search.trials,
        opened=len(published),
        finalists=spec.report.finalists,
        accuracy=spec.quality.accuracy,
        eta=spec.quality.eta,
        population=spec.search.population,
        trials=trials_of(study),
        digest=digest_of(study),
        anatomy=Anatomy.from_json(attrs[ANATOMY]) if ANATOMY in attrs else None,
        bundle=published[0].user_attrs["bundle"] if published else None,
        updates=[{name: attempt.user_attrs[name] for name in _SHOWN} for attempt in published[1:]],
        metric=attrs.get(TASK, {}).get("metric"),
        units=attrs.get(TASK, {}).get("units"),
        results=attrs.get(RESULTS),
        scores=attrs.get(SCORES),
        spec=spec.document(),
        manifest=attrs.get(MANIFEST, {}),
        changes=attrs.get(CHANGES, ()),
        times=_times(study),
        failures=dict(failures_of(study).most_common()),
    )


def _times(study: Study) -> tuple[str | None, str | None]:
    """Say when the first trial began and the last one ended."""
    trials = study.get_trials(deepcopy=False)
    began = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return (
        min(began).isoformat(timespec="seconds") if began else None,
        max(ended).isoformat(timespec="seconds") if ended else None,
    )


def _published(study: Study) -> list[FrozenTrial]:
    """Give the attempt that counts for each epoch, without making a control study."""
    try:
        control = optuna.load_study(
            storage=study._storage,
            study_name=control_name(study.study_name),
            sampler=optuna.samplers.RandomSampler(),
        )
    except KeyError:
        return []
    return published(control)
