"""Calibrate a study: measure what is published once, before trial 0."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effllava_optuna.calibration.calibration import Calibration, Dense, TimedWidths, widths_of
from effllava_optuna.calibration.latency_file import find_table, store_table
from effllava_optuna.calibration.token_residuals import token_residuals
from effllava_optuna.errors import StudyError, UnreachableError
from effllava_optuna.files import expand_home
from effllava_optuna.logging import get_logger
from effllava_optuna.objectives import (
    flops,
    measure_table,
    measure_token_ratios,
    origin_of,
    parameters,
    risk_table,
    samples_of,
    score_policy,
    tracked,
)
from effllava_optuna.policy import IMAGE_TOKENS, Policy
from effllava_optuna.surgery import (
    FULL_FIT,
    CalibrationBatch,
    PruningOptions,
    WeightState,
    arranged,
    estimate_residuals,
    rank_and_compensate,
    rank_units,
    reduced_tokens,
    samples_per_backward,
    split_by_memory,
)
from effllava_optuna.tasks import encode_with_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.objectives import LatencyTable, Stopwatch
    from effllava_optuna.policy import ComponentId, Costs
    from effllava_optuna.surgery import CompensatedRanking, LoadedModel
    from effllava_optuna.tasks import Batch

_logger = get_logger(__name__)
_HEADROOM = 1.05  # reference latency of the hypervolume, as a multiple of the dense latency


def calibrate(
    inputs: StudyInputs,
    stopwatch: Stopwatch,
    report_stage: StageCallback,
    check_budget: Callable[[TimedWidths], object] = lambda _: None,
) -> Calibration:
    """Measure latency, rank the units, fit the output matrices, and score the dense model.

    Args:
        inputs: The model, the task and the encoded proxy set.
        stopwatch: Runs and times the workload.
        report_stage: Called with the current stage and its finished share.
        check_budget: Called when all widths are timed; raises if no policy is within the budget.

    Raises:
        ModelError: The dense model answers a sample with NaN or inf, or the compensation tables
            do not fit into ``pruning.table_gb``.
        UnreachableError: No policy is fast enough, although the widths were timed twice.
    """
    config, loaded, structure = inputs.config, inputs.loaded, inputs.structure
    inputs.proxy.require_finite_answers(loaded)
    # Before the widths are timed, which may take long; some of them may be left out then.
    split_by_memory(
        loaded.handles, config.pruning.folds, widths_of(loaded, config), pruning_options(config)
    )
    timed = _timed_widths(inputs, stopwatch, report_stage, check_budget)
    widths, latency = timed.widths, timed.latency
    if loaded.parts.tokens is not None:
        report_stage("measuring the dense model with fewer image tokens", 0.0)
    of_tokens = token_residuals(loaded, inputs.proxy.likelihood)
    ranked = _rank_and_fit(inputs, widths, report_stage)
    reduced = _reduced_residuals(inputs, widths, ranked, report_stage)
    report_stage("measuring the dense model", 0.0)
    unfitted = (None,) * (config.pruning.folds + 1)
    plain = WeightState("dense", ranked.ranking, unfitted, unfitted)
    scored = inputs.proxy.scored
    batches = tracked(
        scored,
        len(samples_of(scored)),
        lambda share: report_stage("measuring the dense model", share),
    )
    scores = score_policy(loaded, plain, Policy.dense(structure), batches)
    return Calibration(
        structure=structure,
        ranking=ranked.ranking,
        compensations=ranked.compensations,
        widths=widths,
        risk=risk_table(
            loaded,
            ranked.ranking,
            widths,
            form=config.quality.risk,
            compensation=ranked.compensations[FULL_FIT],
        ),
        latency=latency,
        damping=ranked.damping,
        effective_tokens=ranked.effective_tokens,
        residuals=dict(ranked.residuals) | of_tokens,
        reduced_residuals=reduced,
        dense=Dense(
            accuracy=float(scores.hit.mean()),
            expected=float(scores.probability.mean()),
            latency_ms=latency.dense_total_ms,
            parameters=parameters(loaded),
            gflops=flops(loaded, stopwatch.seen) / 1e9,
            memory_mb=ranked.nbytes / 1e6,
        ),
        reference=(inputs.task.chance, _HEADROOM * latency.dense_total_ms),
        answers=inputs.answers,
    )


def _timed_widths(
    inputs: StudyInputs,
    stopwatch: Stopwatch,
    report_stage: StageCallback,
    check_budget: Callable[[TimedWidths], object],
) -> TimedWidths:
    """Time every width; once more if no policy seems to be within the budget.

    A program that runs beside it can disturb one timing so much that narrow widths seem slow.
    """
    first = _time_widths(inputs, stopwatch, report_stage)
    try:
        check_budget(first)
    except UnreachableError:
        if inputs.config.latency.table is not None:  # it is read again, not timed
            raise
    else:
        return first
    report_stage("timing widths again, because none is fast enough", 0.0)
    second = _time_widths(inputs, stopwatch, report_stage)
    try:
        check_budget(second)
    except UnreachableError as error:
        reaches = " and ".join(
            f"{timed.reach:.2f} times (mean error of the table: {timed.latency.error:.0%})"
            for timed in (first, second)
        )
        raise UnreachableError(
            f"{error.message} All widths were timed twice: {reaches}.",
            hint=f"{error.hint} If another program was running, try again without it.",
        ) from error
    return second


def _time_widths(
    inputs: StudyInputs, stopwatch: Stopwatch, report_stage: StageCallback
) -> TimedWidths:
    """Time every width that the study allows."""
    loaded = inputs.loaded
    latency = _latency_tables(inputs, stopwatch, widths_of(loaded, inputs.config), report_stage)
    widths = {component: tuple(friendly) for component, friendly in latency.friendly.items()}
    choice = loaded.parts.tokens
    if choice is not None:
        widths[IMAGE_TOKENS.id] = choice.widths
    return TimedWidths(inputs.structure, widths, latency)


def _latency_tables(
    inputs: StudyInputs,
    stopwatch: Stopwatch,
    widths: Mapping[ComponentId, Sequence[int]],
    report_stage: StageCallback,
) -> LatencyTable:
    """Time every width, for each number of image tokens that policies may keep."""
    choice = inputs.loaded.parts.tokens
    if choice is None:
        return _latency_table(inputs, stopwatch, widths, report_stage)
    parts = len(choice.widths) + 1
    origin = origin_of(stopwatch, widths, inputs.config.latency.checks)
    origin["token_choice"] = {"widths": [*choice.widths], "selection": choice.selection}

    def part(number: int) -> StageCallback:
        return lambda stage, share: report_stage(stage, (number + share) / parts)

    def measure() -> LatencyTable:
        whole = stopwatch.on(inputs.loaded, 1 / parts)
        table = _latency_table(inputs, whole, widths, part(0))
        ratios = measure_token_ratios(whole, lambda share: part(1)("timing widths", share))
        fewer = {}
        for number, (percent, ratio) in enumerate(zip(choice.widths, choice.ratios, strict=False)):
            with reduced_tokens(inputs.loaded, ratio, selection=choice.selection) as reduced:
                own = replace(inputs, loaded=reduced)
                alone = _latency_table(own, whole.on(reduced), widths, part(2 + number))
            fewer[percent] = alone.relative_to(table, ratios[percent])
        return replace(table, origin=origin, fewer=fewer)

    return _stored_or_measured(inputs, origin, widths, report_stage, measure)


def _latency_table(
    inputs: StudyInputs,
    stopwatch: Stopwatch,
    widths: Mapping[ComponentId, Sequence[int]],
    report_stage: StageCallback,
) -> LatencyTable:
    """Time every width of a model."""
    config = inputs.config

    def measure() -> LatencyTable:
        report_stage("timing widths", 0.0)
        # The latency of a width does not depend on which units are kept: any ranking will do.
        ranking = rank_units(inputs.loaded)
        with arranged(inputs.loaded, ranking) as loaded:
            return measure_table(
                stopwatch.on(loaded),
                ranking,
                widths,
                checks=config.latency.checks,
                seed=config.study.seed,
                progress=lambda share: report_stage("timing widths", share),
            )

    origin = origin_of(stopwatch, widths, config.latency.checks)
    return _stored_or_measured(inputs, origin, widths, report_stage, measure)


def _stored_or_measured(
    inputs: StudyInputs,
    origin: Mapping[str, Any],
    widths: Mapping[ComponentId, Sequence[int]],
    report_stage: StageCallback,
    measure: Callable[[], LatencyTable],
) -> LatencyTable:
    """Return the table of an origin from ``latency.table``, or measure it and store it there."""
    if inputs.config.latency.table is None:
        return measure()
    file = expand_home(inputs.config.latency.table)
    stored = find_table(file, origin, widths)
    if stored is not None:
        report_stage("reading latencies from latency.table", 1.0)
        return stored
    table = measure()
    try:
        store_table(file, table)
    except StudyError as error:  # the study has its table nevertheless
        _logger.warning(str(error))
    return table


def _rank_and_fit(
    inputs: StudyInputs,
    widths: Mapping[ComponentId, Sequence[int]],
    report_stage: StageCallback,
) -> CompensatedRanking:
    """Rank the units and fit the output matrices, on the whole proxy and without each fold."""
    report_stage("ranking and fitting", 0.0)
    return rank_and_compensate(
        inputs.loaded,
        calibration_folds(inputs),
        widths,
        pruning_options(inputs.config),
        lambda share: report_stage("ranking and fitting", share),
    )


def _reduced_residuals(
    inputs: StudyInputs,
    widths: Mapping[ComponentId, Sequence[int]],
    ranked: CompensatedRanking,
    report_stage: StageCallback,
) -> Mapping[int, Costs]:
    """Estimate what each width costs a network that reads a share of the image tokens.

    Nothing without a budget of latency: then costs do not depend on the image tokens.
    """
    loaded, choice, search = inputs.loaded, inputs.loaded.parts.tokens, inputs.config.search
    if choice is None or not ranked.residuals or not (search.speedup or search.latency_ms):
        return {}
    stage, options = "estimating residuals with fewer image tokens", pruning_options(inputs.config)
    residuals: dict[int, Costs] = {}
    for width, ratio in zip(choice.widths, choice.ratios, strict=False):
        report_stage(stage, len(residuals) / len(choice.ratios))
        with reduced_tokens(loaded, ratio, selection=choice.selection) as reduced:
            residuals[width] = estimate_residuals(
                reduced,
                _batches_of(inputs, reduced),
                widths,
                ranked,
                options,
                lambda share: report_stage(stage, (len(residuals) + share) / len(choice.ratios)),
            )
    return residuals


def _batches_of(inputs: StudyInputs, reduced: LoadedModel) -> list[CalibrationBatch]:
    """Return the proxy set as a model reads it that reads fewer image tokens."""
    return [
        calibration_batch(batch)
        for encoded in inputs.proxy.likelihood
        for batch in encode_with_answers(
            reduced.processor,
            encoded.batch.samples,
            batch_size=_rows(inputs.loaded, encoded.batch),
            context=reduced.context,
        )
    ]


def pruning_options(config: StudyConfig) -> PruningOptions:
    """Return how the study file ranks units and fits output matrices."""
    table = config.pruning
    return PruningOptions(
        importance=table.importance,
        compensation=table.compensation,
        tokens=table.tokens,
        seed=config.study.seed,
        table_gb=table.table_gb,
        table_sets=config.table_sets,
    )


def calibration_folds(inputs: StudyInputs) -> list[list[CalibrationBatch]]:
    """Return the proxy set, fold by fold, in the form that ranking and fitting expect."""
    return [
        [
            calibration_batch(batch)
            for encoded in batches
            for batch in _divided(inputs.loaded, encoded.batch)
        ]
        for batches in inputs.proxy.folds
    ]


def _divided(loaded: LoadedModel, batch: Batch) -> Sequence[Batch]:
    """Divide a batch if its backward pass would take too much memory."""
    rows = _rows(loaded, batch)
    if len(batch) <= rows:
        return (batch,)
    return encode_with_answers(
        loaded.processor, batch.samples, batch_size=rows, context=loaded.context
    )


def _rows(loaded: LoadedModel, batch: Batch) -> int:
    return samples_per_backward(loaded, batch.inputs["input_ids"].shape[1])


def calibration_batch(batch: Batch) -> CalibrationBatch:
    """Return a batch of samples in the form that ranking and fitting expect."""
    return CalibrationBatch(batch.inputs, batch.targets, batch.answers)
