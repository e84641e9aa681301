"""Calibration: what a study publishes once, before trial 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import StudyError
from effllava_optuna.logging import get_logger
from effllava_optuna.objectives import (
    answers,
    flops,
    folds_of,
    measure_table,
    origin_of,
    parameters,
    risk_table,
)
from effllava_optuna.policy import Policy
from effllava_optuna.study.bundle import Bundle, Dense, widths_of
from effllava_optuna.study.tables import keep_table, known_table
from effllava_optuna.surgery import WHOLE, Basis, Probe, Recipe, arranged, compensate, rank_units
from effllava_optuna.tasks import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import SiteId
    from effllava_optuna.study.workbench import Say, Workbench
    from effllava_optuna.surgery import Compensation
    from effllava_optuna.tasks import Batch

_logger = get_logger(__name__)
_HEADROOM = 1.05  # of the dense latency: where the hypervolume begins


def calibrate(bench: Workbench, say: Say) -> Bundle:
    """Make the bundle: order, refits, latency and risk tables, dense values.

    Args:
        bench: The model and the samples.
        say: Is told what is being done, and which share of it is.
    """
    spec, loaded, anatomy, stopwatch = bench.spec, bench.loaded, bench.anatomy, bench.stopwatch
    latency = _timed(bench, widths_of(anatomy, spec), say)
    widths = {site: tuple(friendly) for site, friendly in latency.friendly.items()}
    found = _compensated(bench, widths, say)
    say("measuring the dense model", 0.0)
    unfitted = (None,) * (spec.pruning.folds + 1)
    plain = Basis("dense", found.order, unfitted, unfitted)
    scores = answers(loaded, plain, Policy.dense(anatomy), bench.crossed)
    dense_ms = latency.dense(anatomy)
    whole, form = found.refits[WHOLE], spec.quality.risk
    return Bundle(
        found.order,
        found.refits,
        widths,
        risk_table(loaded, found.order, widths, form=form, refit=whole),
        latency,
        found.damping,
        found.effective_tokens,
        Dense(
            float(scores.hit.mean()),
            float(scores.probability.mean()),
            dense_ms,
            parameters(loaded),
            flops(loaded, stopwatch.seen) / 1e9,
            found.nbytes / 1e6,
        ),
        (bench.task.chance, _HEADROOM * dense_ms),
    )


def _timed(bench: Workbench, widths: Mapping[SiteId, Sequence[int]], say: Say) -> LatencyTable:
    """Time every width, unless this was done before on the same machine."""
    spec, stopwatch = bench.spec, bench.stopwatch
    place = None if spec.latency.table is None else Path(spec.latency.table)
    if place is not None:
        found = known_table(place, origin_of(stopwatch, widths, spec.latency.checks), widths)
        if found is not None:
            say("taking latencies from latency.table", 1.0)
            return found
    say("timing widths", 0.0)
    # How long a width takes does not depend on which units stay: any order will do here.
    anyhow = rank_units(bench.loaded)
    with arranged(bench.loaded, anyhow) as ready:
        stopwatch.loaded = ready
        table = measure_table(
            stopwatch,
            anyhow,
            widths,
            checks=spec.latency.checks,
            seed=spec.study.seed,
            progress=lambda share: say("timing widths", share),
        )
    stopwatch.loaded = bench.loaded
    if place is not None:
        try:
            keep_table(place, table)
        except StudyError as error:  # the study has its table all the same
            _logger.warning(str(error))
    return table


def _compensated(
    bench: Workbench, widths: Mapping[SiteId, Sequence[int]], say: Say
) -> Compensation:
    """Rank the units and fit the output matrices, on the whole proxy and without each fold."""
    table, processor = bench.spec.pruning, bench.loaded.processor
    say("ranking and fitting", 0.0)
    return compensate(
        bench.loaded,
        [
            [probe(batch) for batch in encode(processor, samples)]
            for samples in folds_of(bench.proxy, table.folds)
        ],
        widths,
        Recipe(
            table.order,
            table.refit,
            table.tokens,
            bench.spec.study.seed,
            table.table_gb,
        ),
        lambda share: say("ranking and fitting", share),
    )


def probe(batch: Batch) -> Probe:
    """Make a calibration probe of a batch."""
    return Probe(batch.inputs, batch.targets, batch.answers)
