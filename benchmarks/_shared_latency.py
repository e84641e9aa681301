"""One latency table for all studies of a model.

No comparison depends on seconds: all studies of one model share a table, which is timed once for
prompts of any length, and the budget is a share of the weights.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.calibration.calibration import widths_of
from effllava_optuna.calibration.latency_file import find_table, store_table
from effllava_optuna.objectives import measure_table, origin_of
from effllava_optuna.study import load_config
from effllava_optuna.surgery import arranged, rank_units, reduced_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form

    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import ComponentId

    Widths = Mapping[ComponentId, Sequence[int]]

# Studies time as little as possible: of the finalists' latencies nothing is reported.
SHORT_TIMING = (
    "latency.warmup=0", "latency.repeats=2", "latency.seconds=0.0", "latency.checks=4",
)  # fmt: skip
_LONGER_TIMING = ("latency.seconds=20.0", "latency.checks=8")  # of the table, in the full form


def ensure_latency_tables(inputs: StudyInputs, form: Form) -> None:
    """Write the latency tables of a model to the file of the study, unless it has them.

    Args:
        inputs: The study file, which names the file, and the model.
        form: How much is measured.
    """
    _ensure(inputs, form)
    loaded, choice = inputs.loaded, inputs.loaded.parts.tokens
    if choice is None:
        return
    for ratio in choice.ratios:
        with reduced_tokens(loaded, ratio, selection=choice.selection) as reduced:
            _ensure(replace(inputs, loaded=reduced), form)


def _ensure(inputs: StudyInputs, form: Form) -> None:
    config = inputs.config
    widths, file = widths_of(inputs.loaded, config), Path(str(config.latency.table))
    origin = origin_of(inputs.stopwatch(), widths, config.latency.checks)
    if find_table(file, origin, widths) is None:
        table = _table_of_other_prompts(file, origin, widths) or _measured(inputs, form, widths)
        store_table(file, replace(table, origin=origin))


def _table_of_other_prompts(
    file: Path, origin: Mapping[str, Any], widths: Widths
) -> LatencyTable | None:
    """Return a table that differs in the length of the prompts and in the machine only."""
    same = ("components", "batch", "new_tokens", "model", "visual_tokens")
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"] if file.is_file() else []
    for other in tables:
        if all(other["origin"].get(name) == origin.get(name) for name in same):
            table = find_table(file, other["origin"], widths)
            if table is not None:
                return table
    return None


def _measured(inputs: StudyInputs, form: Form, widths: Widths) -> LatencyTable:
    """Time all widths, in the full form for longer than a study does."""
    timed = replace(inputs, config=_timing_config(inputs.config, form))
    ranking = rank_units(inputs.loaded)
    with arranged(inputs.loaded, ranking) as loaded:
        stopwatch = timed.stopwatch().on(loaded)
        return measure_table(stopwatch, ranking, widths, checks=timed.config.latency.checks)


def _timing_config(config: StudyConfig, form: Form) -> StudyConfig:
    """Return ``config`` with the timing of the table and the workload of the study."""
    longer = _LONGER_TIMING if form.name == "full" else ()
    timing = load_config(form.config, (*SHORT_TIMING, *form.changes, *longer)).latency
    workload = {"batch": config.latency.batch, "new_tokens": config.latency.new_tokens}
    return config.model_copy(update={"latency": timing.model_copy(update=workload)})
