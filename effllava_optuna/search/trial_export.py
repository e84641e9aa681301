"""Export the policy of a trial as a checkpoint, under its own weight state."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from effllava_optuna.calibration.calibration_run import calibration_folds
from effllava_optuna.objectives import LIKELIEST, describe_task
from effllava_optuna.policy import Policy
from effllava_optuna.search.study_answers import final_samples
from effllava_optuna.storage.names import EXPORTED, RESULTS, TASK
from effllava_optuna.storage.storage_internals import storage_is_read_only, storage_of
from effllava_optuna.storage.trial_records import measured_record
from effllava_optuna.surgery import (
    FULL_FIT,
    CardMetric,
    ModelCard,
    SequentialOptions,
    Verification,
    WeightState,
    compensate_in_sequence,
    export_any_form,
    sliced,
    use_projector,
)
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from effllava_optuna.export_target import ExportForm
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import VerifiedAnyForm

_AGREEMENT = "agreement with the dense model"  # in a model card


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How the policy of a trial is exported.

    Attributes:
        form: ``native``, ``portable``, ``onnx``: the language part alone, or ``gguf``: files for
            llama.cpp, with the type of their matrices unless it is float16.
        overwrite: Whether an earlier export is replaced.
        sequential: Whether to fit the output matrices again, layer after layer on the proxy, and
            to measure the policy before and after.
        engine: An engine to verify a checkpoint in; None: transformers alone.
    """

    form: ExportForm
    overwrite: bool
    sequential: bool = False
    engine: Literal["vllm"] | None = None


@dataclass(frozen=True, slots=True)
class FitAccuracy:
    """Accuracies of one network.

    Attributes:
        proxy: On the samples that it was fitted to.
        validation: On samples that neither the fit nor the search has seen.
    """

    proxy: float
    validation: float


@dataclass(frozen=True, slots=True)
class ExportedTrial:
    """An export, and the effect of fitting it in sequence.

    Attributes:
        trial: Number of the trial.
        verified: What the verification in a fresh process measured.
        before: Accuracies under the weight state of the trial; None: not fitted again.
        after: Accuracies as exported.
        measures: Whether these are an accuracy or an agreement, by split.
    """

    trial: int
    verified: VerifiedAnyForm
    before: FitAccuracy | None = None
    after: FitAccuracy | None = None
    measures: Mapping[str, str] = field(default_factory=dict)


def export_trial(
    session: SearchSession, number: int, path: str | Path, options: ExportOptions
) -> ExportedTrial:
    """Export the policy of a trial under its own weight state, and verify it.

    Args:
        session: The open study.
        number: Number of the trial.
        path: The directory; for ``onnx`` and ``gguf`` the file.
        options: The form of the export, and how it is verified.

    Raises:
        StudyError: There is no such trial, or it was not measured.
        ExportError: The directory or the engine cannot be used, or the checkpoint does not reload.
    """
    trial = measured_record(session.study, number)
    policy = Policy.of(session.evaluator.structure, trial.widths)
    own = session.epochs.weight_state(trial.weight_state)
    weight_state = _in_sequence(session, policy, own) if options.sequential else own
    with use_projector(session.evaluator.loaded, weight_state.projectors[FULL_FIT]) as loaded:
        pruned = sliced(loaded, policy, weight_state.ranking, weight_state.compensations[FULL_FIT])
    verified = export_any_form(
        pruned,
        path,
        options.form,
        card=_card(session, number, sequential=options.sequential),
        verification=Verification(engine=options.engine),
        overwrite=options.overwrite,
    )
    exported = ExportedTrial(number, verified)
    if options.sequential:
        before, after = (_accuracy(session, policy, each) for each in (own, weight_state))
        task, measure = session.evaluator.inputs.task, session.config.quality.measure
        measures = describe_task(task, measure, generate=False)["measures"]
        exported = replace(exported, before=before, after=after, measures=measures)
    facts = {"trial": number, "directory": str(path), "form": options.form}
    if exported.before is not None and exported.after is not None:
        facts |= {"before": asdict(exported.before), "after": asdict(exported.after)}
    if not storage_is_read_only(storage_of(session.study)):
        session.study.set_user_attr(EXPORTED, facts)
    return exported


def _card(session: SearchSession, number: int, *, sequential: bool) -> ModelCard:
    """Return what the model card says; measurements only if the export is what was measured."""
    config, task = session.config, session.evaluator.inputs.task
    labels = ""
    if config.quality.measure == "agreement":
        labels = " without labels: the answers of the dense model took their place"
    data = (
        f"Calibration, search and projector training used {config.task.proxy} samples of "
        f"{task.name} ({task.digest[:16]}){labels}. Validation chose the policy; test was only "
        "measured."
    )
    results = session.study.user_attrs.get(RESULTS)
    rows = [row for row in (results or {}).get("front", ()) if row["trial"] == number]
    if not rows or sequential:
        return ModelCard(data)
    described = session.study.user_attrs.get(TASK)
    names = {split: _metric_name(described or {}, split) for split in ("validation", "test")}
    metrics = [
        CardMetric(f"{name}, {split}", rows[0][f"accuracy_{split}"], *_interval(rows[0], split))
        for split, name in names.items()
    ]
    dense = (results or {})["dense"]
    if names["test"] != _AGREEMENT:  # that of the dense model is 1
        of_dense = f"{names['test']} of the dense model, test"
        metrics.append(CardMetric(of_dense, dense["accuracy_test"], *_interval(dense, "test")))
    metrics += [
        CardMetric("speed-up, measured", rows[0]["speedup_measured"]),
        CardMetric("share of the prunable weights kept", rows[0]["keep_ratio"]),
    ]
    return ModelCard(data, metrics)


def _metric_name(described: Mapping[str, Any], split: str) -> str:
    """Return the name of the score on a split."""
    if described.get("measures", {}).get(split) == "agreement":
        return _AGREEMENT
    rule: str = described.get("metric", {}).get("report", LIKELIEST)
    return "accuracy" if rule == LIKELIEST else rule


def _interval(row: Mapping[str, Any], split: str) -> tuple[float, float]:
    low, high = row[f"accuracy_{split}_interval"]
    return low, high


def _in_sequence(session: SearchSession, policy: Policy, own: WeightState) -> WeightState:
    """Fit ``policy`` alone, layer after layer on the whole proxy set."""
    evaluator = session.evaluator
    with use_projector(evaluator.loaded, own.projectors[FULL_FIT]) as loaded:
        compensation = compensate_in_sequence(
            loaded,
            policy.with_all_tokens(),  # as the samples are encoded
            own.ranking,
            [batch for fold in calibration_folds(evaluator.inputs) for batch in fold],
            options=SequentialOptions(
                tokens=session.config.pruning.tokens, damping=evaluator.calibration.damping
            ),
            progress=lambda share: session.report_stage("fitting in sequence", share),
        )
    return WeightState(
        digest=f"{own.digest}-sequential",
        ranking=own.ranking,
        compensations=(compensation,),
        projectors=(own.projectors[FULL_FIT],),
    )


def _accuracy(session: SearchSession, policy: Policy, weight_state: WeightState) -> FitAccuracy:
    evaluator = session.evaluator
    graded = [replace(encoded, fit=FULL_FIT) for encoded in evaluator.proxy.graded]
    proxy, validation = (
        float(evaluator.score(policy, weight_state, batches).hit.mean())
        for batches in (graded, evaluator.split(final_samples(session, Split.VALIDATION)))
    )
    return FitAccuracy(proxy, validation)
