"""Reading everything that a report needs of a study, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.config.loading import relative_document
from effllava_optuna.policy import ModelStructure, with_latest_correction, within_limit
from effllava_optuna.report import StudyFacts
from effllava_optuna.storage.control_study import (
    latency_factor_of,
    load_control_study,
    published_epochs,
)
from effllava_optuna.storage.names import CHANGES, MANIFEST, RESULTS, SCORES, STRUCTURE, TASK
from effllava_optuna.storage.studies import config_of
from effllava_optuna.storage.trial_records import (
    effective_records,
    failure_counts,
    measured_curves,
    search_digest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial

_UPDATE_ATTRS = (  # of a published epoch, for the report; only steps if nothing was trained
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


def read_study_facts(study: Study) -> StudyFacts:
    """Read what a report needs of ``study``."""
    config = config_of(study)
    attrs, search = study.user_attrs, config.search
    trials = effective_records(study)  # before the epochs, which are published before their trials
    control = load_control_study(study)
    epochs = [] if control is None else published_epochs(control)
    calibration = epochs[0].user_attrs["calibration"] if epochs else None
    if calibration is not None:
        factors = [latency_factor_of(epoch) for epoch in epochs]
        dense_ms = calibration["dense"]["latency_ms"]
        trials = with_latest_correction(trials, factors, dense_ms)
        trials = within_limit(trials, dense_ms, search.latency_ms, search.speedup)
    structure = ModelStructure.from_json(attrs[STRUCTURE]) if STRUCTURE in attrs else None
    return StudyFacts(
        name=study.study_name,
        epochs=search.epochs,
        planned=search.trials,
        opened=len(epochs),
        finalists=config.report.finalists,
        accuracy=config.quality.accuracy,
        eta=config.quality.eta,
        population=search.population,
        trials=trials,
        digest=search_digest(study),
        structure=structure,
        calibration=calibration,
        sensitivity=_sensitivity(study, structure, calibration),
        updates=[_update(epoch) for epoch in epochs[1:]],
        metric=attrs.get(TASK, {}).get("metric"),
        measures=attrs.get(TASK, {}).get("measures", {}),
        groups=attrs.get(TASK, {}).get("groups"),
        results=attrs.get(RESULTS),
        scores=attrs.get(SCORES),
        has_budget=any((search.keep_ratio, search.speedup, search.latency_ms)),
        config=relative_document(config),
        manifest=attrs.get(MANIFEST, {}),
        changes=attrs.get(CHANGES, ()),
        times=_search_times(study),
        failures=dict(failure_counts(study).most_common()),
    )


def _update(epoch: FrozenTrial) -> dict[str, Any]:
    """Return what a report has of a projector update and of what was decided with it."""
    attrs = epoch.user_attrs
    optional = {  # older versions have not stored it
        "latency_factor": latency_factor_of(epoch),
        "latency_errors": attrs.get("latency_errors", []),
        "in_context": attrs.get("in_context"),
    }
    return optional | {name: attrs[name] for name in _UPDATE_ATTRS if name in attrs}


def _search_times(study: Study) -> tuple[str | None, str | None]:
    """Return the start of the first trial and the end of the last one, in ISO 8601."""
    trials = study.get_trials(deepcopy=False)
    starts = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return (
        min(starts).isoformat(timespec="seconds") if starts else None,
        max(ends).isoformat(timespec="seconds") if ends else None,
    )


def _sensitivity(
    study: Study, structure: ModelStructure | None, calibration: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return measured or estimated sensitivity curves; None: neither, as in older studies."""
    measured = {} if structure is None else measured_curves(study, structure)
    if measured:
        return {"source": "measured", "curves": measured}
    residuals = {} if calibration is None else calibration.get("residuals", {})
    curves = {
        component: {int(width): loss for width, loss in curve.items()}
        for component, curve in residuals.items()
    }
    return {"source": "residual", "curves": curves} if curves else None
