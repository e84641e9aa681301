"""Runs the studies that the evidence compares, in memory, and keeps their records.

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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

from _cases import DEFAULT, FIXED, KindDigits, study_id
from _evidence import SPEC, Form
from _fields import WIDTHS_BY_METHOD
from _outcome import outcome
from _records import RecordStore
from _results import provenance
from optuna.storages import InMemoryStorage

from effllava_optuna.objectives import (
    Stopwatch,
    Workload,
    ask,
    measure_table,
    origin_of,
    whole_ms,
)
from effllava_optuna.policy import Policy
from effllava_optuna.study import loop, read_spec, storage
from effllava_optuna.study.artifacts import Folder, Vault
from effllava_optuna.study.bundle import widths_of
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.evolution import silent
from effllava_optuna.study.tables import keep_table, known_table
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import arranged, load, rank_units, running
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from _cases import Case
    from _records import Record, RecordId
    from numpy.typing import NDArray

    from effllava_optuna.objectives import Asked
    from effllava_optuna.study.bundle import Bundle
    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.study.workbench import Measured
    from effllava_optuna.surgery import Basis, Loaded
    from effllava_optuna.tasks import Scores

# No comparison depends on seconds: finalists are raced shortly, the budget is a share of weights.
# Order taylor was the default when this was measured; LEARNED.md tells why it no longer is.
_SHORT = (
    "pruning.order='taylor'",
    "latency.warmup=0", "latency.repeats=2", "latency.seconds=0.0", "latency.checks=4",
    "task.test=1000",
)  # fmt: skip
_LONGER_TIMING = ("latency.seconds=20.0", "latency.checks=8")
_KEPT_CALIBRATIONS = 3


@cache
def once_loaded(path: str) -> Loaded:
    """Load a model once; a workbench restores it when it closes."""
    return load(path, device="cpu")


class CountingEvaluator(Workbench):
    """A workbench that counts what it measures, and can score without cross-fitting.

    Args:
        spec: The study file.
        case: The study that it serves.

    Attributes:
        evaluations: Number of policies measured.
        scored: Policies in the order in which they were measured, with their scores by sample.
    """

    def __init__(self, spec: StudySpec, case: Case) -> None:
        sizes = (spec.task.proxy, spec.task.validation, spec.task.test)
        loaded = once_loaded(spec.model.path)
        super().__init__(spec, loaded, KindDigits(spec.task_seed, *sizes, only=case.only))
        self.case = case
        self.evaluations = 0
        self.scored: list[tuple[Policy, Scores]] = []
        self._asked: dict[Split, tuple[Asked, ...]] = {}

    def __enter__(self) -> CountingEvaluator:
        return self

    def many(self, split: Split) -> tuple[Asked, ...]:
        """Return the samples of a split in large batches."""
        if split not in self._asked:
            self._asked[split] = ask(self.loaded, self.task.samples(split), batch_size=250)
        return self._asked[split]

    def measure(self, policy: Policy, basis: Basis) -> Measured:
        """Measure a policy, count it, and keep its scores by sample."""
        self.evaluations += 1
        measured = super().measure(policy, basis)
        self.scored.append((policy, self._scores))
        return measured

    def _chosen(self, scores: Scores) -> NDArray[np.float64]:
        self._scores = scores  # of the policy that `measure` measures, which does not return them
        return super()._chosen(scores)

    def _crossed(self, *, written: bool) -> tuple[Asked, ...]:
        if self.case.crossed:
            return super()._crossed(written=written)
        return ask(self.loaded, self.proxy, written=written)


def evaluator_of(epochs: Epochs) -> CountingEvaluator:
    """Return the evaluator of a study that `StudyRunner.opened` has opened."""
    if not isinstance(epochs.bench, CountingEvaluator):
        raise TypeError("This study was not opened by a StudyRunner.")
    return epochs.bench


@contextmanager
def only_damping(value: float | None) -> Iterator[None]:
    """Let least squares take one damping, which no study file can ask for."""
    if value is None:
        yield
        return
    with mock.patch("effllava_optuna.surgery.refit.DAMPINGS", (value,)):
        yield


class StudyRunner:
    """Runs the studies of one form, and keeps their records.

    Args:
        form: How much is run, and where the records are.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._store = RecordStore(form.folder)
        self._bundles: OrderedDict[str, Bundle] = OrderedDict()

    def record(self, place: RecordId, measure: Callable[[], Mapping[str, Any]]) -> Record:
        """Return a record: an existing one, or what ``measure`` returns, with its provenance.

        In a report nothing is measured: a record that does not exist is empty.
        """
        if self._store.get(place) is None and not self.form.report:
            print(f"{place} ...", flush=True)
            origin, started = provenance(), time.process_time()
            figures = dict(measure())
            cpu_s = round(time.process_time() - started, 1)
            self._store.add(place, figures | {"cpu_s": cpu_s, "provenance": origin})
        return self._store.get(place) or {}

    def missing(self, places: Iterable[RecordId]) -> int:
        """Count the records that do not exist."""
        return sum(self._store.get(place) is None for place in places)

    def spec(self, model: str, seed: int, case: Case = DEFAULT) -> StudySpec:
        """Return the study file of a case."""
        table = (self.form.folder / f"latency-{model}.tables").resolve()
        table.parent.mkdir(parents=True, exist_ok=True)
        own = (
            f"study.name={json.dumps(case.label)}",
            f"study.seed={seed}",
            f"model.path={json.dumps(self.form.models[model])}",
            f"latency.table={json.dumps(str(table))}",
        )
        changes = (*_SHORT, *self.form.changes, *own, *case.changes, *self.form.sizes)
        return read_spec(SPEC, changes)

    def bundle(self, spec: StudySpec, case: Case) -> Bundle:
        """Calibrate once for all studies with the same samples and the same pruning."""
        key = json.dumps(
            [
                spec.study.seed, spec.model.path, spec.pruning.model_dump(mode="json"),
                spec.quality.risk, spec.latency.model_dump(mode="json"), case.damping,
                case.only, spec.task.model_dump(mode="json"),
            ]
        )  # fmt: skip
        if key not in self._bundles:
            with CountingEvaluator(spec, case) as evaluator, only_damping(case.damping):
                self._ensure_latency_table(evaluator)
                self._bundles[key] = calibrate(evaluator, silent)
            while len(self._bundles) > _KEPT_CALIBRATIONS:
                self._bundles.popitem(last=False)
        self._bundles.move_to_end(key)
        return self._bundles[key]

    def _ensure_latency_table(self, evaluator: Workbench) -> None:
        """Time the widths of a model once, however long the prompts of a draw are."""
        spec = evaluator.spec
        widths, file = widths_of(evaluator.anatomy, spec), Path(str(spec.latency.table))
        origin = origin_of(evaluator.stopwatch, widths, spec.latency.checks)
        if known_table(file, origin, widths) is not None:
            return
        same = ("sites", "batch", "new_tokens", "model")
        tables = json.loads(file.read_text(encoding="utf-8"))["tables"] if file.is_file() else []
        for other in tables:
            if all(other["origin"][name] == origin[name] for name in same):
                table = known_table(file, other["origin"], widths)
                if table is not None:
                    keep_table(file, replace(table, origin=origin))
                    return
        longer = _LONGER_TIMING if self.form.name == "full" else ()
        timing = read_spec(SPEC, (*_SHORT, *self.form.changes, *longer)).latency
        workload = {"batch": spec.latency.batch, "new_tokens": spec.latency.new_tokens}
        timed = spec.model_copy(update={"latency": timing.model_copy(update=workload)})
        order = rank_units(evaluator.loaded)
        with arranged(evaluator.loaded, order) as ready:
            stopwatch = Workbench(timed, evaluator.loaded, evaluator.task).stopwatch
            stopwatch.loaded = ready
            table = measure_table(stopwatch, order, widths, checks=timed.latency.checks)
        keep_table(file, replace(table, origin=origin))

    @contextmanager
    def opened(self, model: str, seed: int, case: Case = DEFAULT) -> Iterator[Epochs]:
        """Open a study in memory, calibrated, before its first trial."""
        spec = self.spec(model, seed, case)
        bundle = self.bundle(spec, case)
        study = storage.create_study(InMemoryStorage(), spec)
        with TemporaryDirectory() as folder, CountingEvaluator(spec, case) as evaluator:
            epochs = case.epochs(study, evaluator, Vault(Folder(folder)))
            epochs.ledger.publish(0, lambda: epochs.publication(bundle))
            epochs.open()
            study.sampler = epochs.sampler
            yield epochs

    def study(self, model: str, seed: int, case: Case = DEFAULT) -> Record:
        """Return the record of a whole study."""

        def measure() -> dict[str, Any]:
            with self.opened(model, seed, case) as epochs:
                started = time.process_time()
                loop.search(epochs)
                search_cpu_s = round(time.process_time() - started, 1)
                evaluator = evaluator_of(epochs)
                evaluations = evaluator.evaluations
                extra = {} if case.after is None else case.after(epochs)
                return {
                    "model": model,
                    "seed": seed,
                    "label": case.label,
                    "changes": list(case.changes),
                    "evaluations": evaluations,
                    "search_cpu_s": search_cpu_s,
                    **outcome(epochs, evaluator),
                    **extra,
                }

        return self.record(study_id(model, seed, case), measure)

    def timed(
        self, place: RecordId, model: str, seed: int, widths: Mapping[str, Sequence[int]]
    ) -> Record:
        """Run whole networks in turn with the dense one; keep their shares of its time.

        Args:
            place: Of the record.
            model: The model that the networks are cut from.
            seed: Of the study that they come from.
            widths: Units kept of each component, by the method that chose them.
        """
        work = Workload(64, 1, 1, self.form.pick(9, 3, 1), 0.01, 0.0)

        def measure() -> dict[str, Any]:
            with self.opened(model, seed, FIXED) as epochs:
                evaluator, basis = evaluator_of(epochs), epochs.basis_of(0)
                stopwatch = Stopwatch(evaluator.loaded, evaluator.proxy, work)
                runs = {
                    "dense": _run_of(evaluator, basis, stopwatch, Policy.dense(evaluator.anatomy))
                } | {
                    name: _run_of(evaluator, basis, stopwatch, Policy.of(evaluator.anatomy, keep))
                    for name, keep in widths.items()
                }
                timings, table = stopwatch.race(runs, "dense"), evaluator.bundle.latency
            whole = {
                name: whole_ms(table, timings["dense"], timing) for name, timing in timings.items()
            }
            shares = {name: ms / whole["dense"] for name, ms in whole.items()}
            return {
                "model": model, "seed": seed, WIDTHS_BY_METHOD: dict(widths), "shares": shares
            }  # fmt: skip

        return self.record(place, measure)


def _run_of(
    evaluator: CountingEvaluator, basis: Basis, stopwatch: Stopwatch, policy: Policy
) -> Callable[[], dict[str, float]]:
    """Return a function that runs the network of ``policy`` once, and times its phases."""

    def run() -> dict[str, float]:
        with running(evaluator.loaded, basis, policy) as network:
            return stopwatch.decoder(network)

    return run
