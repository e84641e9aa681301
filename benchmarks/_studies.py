"""Run the studies that are compared, in memory, and keep their records.

A measurement that has a record is not repeated. Studies of one model, seed and pruning share a
calibration, and all studies of one model share a latency table, so that neither the clock nor a
draw of widths decides which of them is better.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from _cases import DEFAULT, KindDigits, study_id
from _counting import evaluator_of, with_counting
from _outcome import outcome
from _records import RecordStore
from _results import provenance
from _shared_latency import SHORT_TIMING, ensure_latency_tables
from optuna.storages import InMemoryStorage

from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.objectives import encode_samples
from effllava_optuna.search.runner import search
from effllava_optuna.search.session import calibration_publication, open_session
from effllava_optuna.storage.artifact_store import ArtifactStore, DirectoryArtifactStore
from effllava_optuna.storage.control_study import open_control_study
from effllava_optuna.storage.studies import create_study
from effllava_optuna.study import load_config
from effllava_optuna.surgery import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from _cases import Case
    from _evidence import Form
    from _records import Record, RecordId

    from effllava_optuna.calibration.calibration import Calibration
    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

_KEPT_CALIBRATIONS = 3


@cache
def load_once(path: str, device: str = "cpu") -> LoadedModel:
    """Load a model once; every study restores it at its end."""
    return load(path, device=device)


@contextmanager
def inputs_of(config: StudyConfig, case: Case) -> Iterator[StudyInputs]:
    """Load the model of a study, and encode its samples as the case says."""
    task = None
    if config.task.name == "digits":
        proxy, validation, test = config.task.sizes.values()
        sizes = (proxy, validation, test)
        task = KindDigits(config.task_seed, *sizes, only=case.only, labelled=case.labelled)
    with study_inputs(config, load_once(config.model.path, config.model.device), task) as inputs:
        if case.cross_fitted:
            yield inputs
        else:
            scored = encode_samples(inputs.loaded, inputs.proxy.samples)
            yield replace(inputs, proxy=replace(inputs.proxy, scored=scored, graded=scored))


class StudyRunner:
    """Runs the studies of one form, and keeps their records.

    Args:
        form: How much is measured, and where the records are.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._store = RecordStore(form.folder)
        self._calibrations: OrderedDict[str, Calibration] = OrderedDict()

    def record(self, record_id: RecordId, measure: Callable[[], Mapping[str, Any]]) -> Record:
        """Return a record; measure it and store it with its provenance if it does not exist.

        A report measures nothing: a record that does not exist is empty.
        """
        if self._store.get(record_id) is None and not self.form.report:
            print(f"{record_id} ...", flush=True)
            origin, started = provenance(self.form.device), time.process_time()
            figures = dict(measure())
            cpu_s = round(time.process_time() - started, 1)
            self._store.add(record_id, figures | {"cpu_s": cpu_s, "provenance": origin})
        return self._store.get(record_id) or {}

    def missing(self, record_ids: Iterable[RecordId]) -> int:
        """Count the records that do not exist."""
        return sum(self._store.get(record_id) is None for record_id in record_ids)

    def existing(self, record_ids: Iterable[RecordId]) -> dict[RecordId, Record]:
        """Return the records that exist."""
        records = {record_id: self._store.get(record_id) for record_id in record_ids}
        return {record_id: record for record_id, record in records.items() if record is not None}

    def config(self, model: str, seed: int, case: Case = DEFAULT) -> StudyConfig:
        """Return the study file of a case."""
        table = (self.form.folder / f"latency-{model}.tables").resolve()
        table.parent.mkdir(parents=True, exist_ok=True)
        own = (
            f"study.name={json.dumps(case.label)}",
            f"study.seed={seed}",
            f"model.path={json.dumps(self.form.models[model])}",
            f"model.device={json.dumps(self.form.device)}",
            f"latency.table={json.dumps(str(table))}",
        )
        changes = (
            *SHORT_TIMING, *self.form.common, *self.form.changes, *own, *case.changes,
            *self.form.sizes,
        )  # fmt: skip
        return load_config(self.form.config, changes)

    def calibration(self, config: StudyConfig, case: Case) -> Calibration:
        """Return the calibration of all studies with the same samples and the same pruning."""
        key = json.dumps(
            [
                config.study.seed, config.model.path, config.pruning.model_dump(mode="json"),
                config.quality.risk, config.latency.model_dump(mode="json"), case.only,
                case.labelled, config.quality.measure, config.task.model_dump(mode="json"),
            ]
        )  # fmt: skip
        if key not in self._calibrations:
            with inputs_of(config, case) as inputs:
                ensure_latency_tables(inputs, self.form)
                self._calibrations[key] = calibrate(inputs, inputs.stopwatch(), silent)
            while len(self._calibrations) > _KEPT_CALIBRATIONS:
                self._calibrations.popitem(last=False)
        self._calibrations.move_to_end(key)
        return self._calibrations[key]

    @contextmanager
    def open(self, model: str, seed: int, case: Case = DEFAULT) -> Iterator[SearchSession]:
        """Open a calibrated study in memory, before its first trial."""
        config = self.config(model, seed, case)
        calibration = self.calibration(config, case)
        storage = InMemoryStorage()
        study = create_study(storage, config)
        with TemporaryDirectory() as folder, inputs_of(config, case) as inputs:
            artifact_store = ArtifactStore(DirectoryArtifactStore(folder))
            open_control_study(study).publish_once(
                0, lambda: calibration_publication(calibration, artifact_store)
            )
            with open_session(study, inputs, artifact_store) as session:
                yield with_counting(session)

    def study(self, model: str, seed: int, case: Case = DEFAULT) -> Record:
        """Return the record of a whole study."""

        def measure() -> dict[str, Any]:
            with self.open(model, seed, case) as session:
                started = time.process_time()
                search(session)
                search_cpu_s = round(time.process_time() - started, 1)
                evaluations = evaluator_of(session).evaluations
                extra = {} if case.extra_figures is None else case.extra_figures(session)
                return {
                    "model": model,
                    "seed": seed,
                    "label": case.label,
                    "changes": list(case.changes),
                    "evaluations": evaluations,
                    "search_cpu_s": search_cpu_s,
                    **outcome(session),
                    **extra,
                }

        return self.record(study_id(model, seed, case), measure)
