"""What the scripts of evidence share: studies in memory, units of work, intervals, tables.

A unit of work leaves a file; what has one is not done again. Studies of one model, seed and
pruning share a calibration, and all of one model share a latency table, so that neither the
clock nor a draw of widths decides who is better.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

import optuna
from _results import HERE, RESULTS, provenance, put_section, told
from optuna.storages import InMemoryStorage

from effllava_optuna.objectives import (
    Stopwatch,
    Workload,
    ask,
    measure_table,
    origin_of,
    samples_of,
    whole_ms,
)
from effllava_optuna.policy import Policy, finalists, front_of, hypervolume
from effllava_optuna.study import loop, read_spec, storage
from effllava_optuna.study.artifacts import Folder, Vault
from effllava_optuna.study.bundle import widths_of
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.evolution import Epochs, silent
from effllava_optuna.study.records import trials_of
from effllava_optuna.study.tables import keep_table, known_table
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import arranged, load, rank_units, running
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.objectives import Asked
    from effllava_optuna.study.bundle import Bundle
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.surgery import Basis, Loaded
    from effllava_optuna.tasks import Sample, Scores

SPEC = HERE.parent / "studies" / "quickstart.toml"
SEEDS = 10
EMBEDDED = "digits-vlm"
SECOND = str(HERE / "digits-vlm-1")  # `train_digits_vlm.py --seed 1`: other weights, other draws
CAVEAT = (
    "Small models that answer four kinds of question about digits support no claim about "
    "LLaVA-7B, nor about any other large model."
)
# Nothing here hangs on seconds: finalists are raced shortly, the budget is a share of weights.
# Order taylor was the default when this was measured; what was found is why it is no more.
_SHORT = (
    "pruning.order='taylor'",
    "latency.warmup=0", "latency.repeats=2", "latency.seconds=0.0", "latency.checks=4",
    "task.test=1000", "search.rungs=[]",
)  # fmt: skip
_TIMING = ("latency.seconds=20.0", "latency.checks=8")
_TINY = (
    "projector.steps=4", "projector.elites=1", "latency.repeats=1", "latency.batch=4",
    "task.proxy=16", "task.validation=40", "task.test=40", "report.finalists=2",
    "pruning.shares=[0.05, 0.2, 0.5, 1.0]", "search.kept_share=0.3",
)  # fmt: skip
_SMALL = (
    "projector.steps=8", "projector.elites=1", "task.proxy=32", "task.validation=60",
    "task.test=120", "report.finalists=3",
)  # fmt: skip
# Whatever a case says of them.
_SIZES = {
    "full": (),
    "small": ("search.epochs=2", "search.generations=2", "search.population=10"),
    "tiny": ("search.epochs=2", "search.generations=1", "search.population=6"),
}
_KNOWN = 3  # calibrations that are kept


@dataclass(frozen=True, slots=True)
class Form:
    """How much is run.

    Attributes:
        name: ``full``, ``small`` or ``tiny``.
        changes: To the quickstart study.
        seeds: How many draws and searches of each model.
        models: Paths by name.
        folder: Where the units of work lie.
        published: Whether the section goes to ``RESULTS.md``.
        report: Nothing is run: what has no file is left out.
    """

    name: str
    changes: tuple[str, ...]
    seeds: int
    models: Mapping[str, str]
    folder: Path
    published: bool
    report: bool = False

    def pick(self, full: int, small: int, tiny: int) -> int:
        """Choose a number by how much is run."""
        return {"full": full, "small": small, "tiny": tiny}[self.name]


@dataclass(frozen=True, slots=True)
class Case:
    """A study that differs from the quickstart study.

    Attributes:
        label: Names it, also in file names.
        changes: Of its spec.
        crossed: Whether a sample is scored by a fit that did not see it.
        damping: The only one that refits may take; None: folds choose.
        only: The kind of question that it is calibrated, searched and chosen on; empty: all.
        after: Measures more at the end, under a name.
        epochs: How an epoch follows another one.
    """

    label: str
    changes: tuple[str, ...] = ()
    crossed: bool = True
    damping: float | None = None
    only: str = ""
    after: Callable[[Epochs], Mapping[str, Any]] | None = None
    epochs: type[Epochs] = Epochs


DEFAULT = Case("default")
# The projector as it was loaded: all that is searched has one basis.
FIXED = Case("nsga2", ("projector.steps=0",))

KINDS = {
    "one digit": "what digit is at",
    "sum": "what is the sum",
    "extreme": "what is the",
    "count": "how many digits",
}


def kind_of(sample: Sample) -> str:
    """Name the kind of question that a sample asks."""
    return next(kind for kind, begins in KINDS.items() if sample.question.startswith(begins))


@dataclass(frozen=True)
class KindDigits(Digits):
    """The digits task, its samples labelled by kind of question.

    Args:
        only: The kind that proxy and validation are made of; empty: all of them.
    """

    only: str = ""

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of ``split``."""
        if not self.only or split == Split.TEST:
            return tuple(
                replace(sample, subsets=(kind_of(sample),)) for sample in super().samples(split)
            )
        more = Digits(self.seed, 16 * self.proxy, 16 * self.validation, self.test)
        size = {Split.PROXY: self.proxy, Split.VALIDATION: self.validation}[split]
        mine = [sample for sample in more.samples(split) if kind_of(sample) == self.only]
        return tuple(replace(sample, subsets=(self.only,)) for sample in mine[:size])


@cache
def once_loaded(path: str) -> Loaded:
    """Load a model; a workbench puts it back as it was."""
    return load(path, device="cpu")


class Bench(Workbench):
    """A workbench that counts, and can score without cross-fitting.

    Args:
        spec: The study's.
        case: Says how.
    """

    def __init__(self, spec: StudySpec, case: Case) -> None:
        sizes = (spec.task.proxy, spec.task.validation, spec.task.test)
        loaded = once_loaded(spec.model.path)
        super().__init__(spec, loaded, KindDigits(spec.task_seed, *sizes, only=case.only))
        self.case = case
        self.evaluations = 0
        self._many: dict[Split, tuple[Asked, ...]] = {}
        self.scored: list[tuple[Policy, Scores]] = []

    def _crossed(self, **told: Any) -> tuple[Asked, ...]:
        if self.case.crossed:
            return super()._crossed(**told)
        return ask(self.loaded, self.proxy, written=told["written"])

    def __enter__(self) -> Bench:
        return self

    def many(self, split: Split) -> tuple[Asked, ...]:
        """Ask the samples of a split, many at once."""
        if split not in self._many:
            self._many[split] = ask(self.loaded, self.task.samples(split), batch_size=250)
        return self._many[split]

    def measure(self, *told: Any, **named: Any) -> Any:
        """Measure a policy, and count it."""
        self.evaluations += 1
        return super().measure(*told, **named)

    def _answers(self, policy: Policy, basis: Basis, needed: float | None) -> Scores:
        found = super()._answers(policy, basis, needed)
        self.scored.append((policy, found))
        return found


@contextmanager
def only_damping(value: float | None) -> Iterator[None]:
    """Let refits take one damping; no study file can say this."""
    if value is None:
        yield
        return
    with mock.patch("effllava_optuna.surgery.refit.DAMPINGS", (value,)):
        yield


@dataclass
class Lab:
    """Runs studies of one form, and keeps what came of them.

    Attributes:
        form: How much.
    """

    form: Form
    _bundles: OrderedDict[Any, Bundle] = field(default_factory=OrderedDict)

    def unit(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Give a unit of work: from its file, or made and kept; or nothing, in a report."""
        place = self.form.folder / f"{name}.json"
        if not place.is_file() and self.form.report:
            return {}
        if not place.is_file():
            print(f"{name} ...", flush=True)
            origin, began = provenance(), time.process_time()
            found = dict(make())
            found |= {"cpu_s": round(time.process_time() - began, 1), "provenance": origin}
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_suffix(".draft")
            draft.write_text(json.dumps(found) + "\n", encoding="utf-8")
            draft.replace(place)
        known: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return known

    def missing(self, names: Sequence[str]) -> int:
        """Count the units of work that have no file."""
        return sum(not (self.form.folder / f"{name}.json").is_file() for name in names)

    def spec(self, model: str, seed: int, case: Case = DEFAULT) -> StudySpec:
        """Make the spec of a study."""
        place = self.form.folder / f"latency-{model}.tables"
        place.parent.mkdir(parents=True, exist_ok=True)
        path = json.dumps(self.form.models[model])
        named = (
            f"study.name={json.dumps(case.label)}",
            f"study.seed={seed}",
            f"model.path={path}",
        )
        table = (f"latency.table={json.dumps(str(place.resolve()))}",)
        sizes = _SIZES[self.form.name]
        return read_spec(
            SPEC, (*_SHORT, *self.form.changes, *named, *table, *case.changes, *sizes)
        )

    def bundle(self, spec: StudySpec, case: Case) -> Bundle:
        """Calibrate, once for all studies with the same draw and the same pruning."""
        key = json.dumps(
            [
                spec.study.seed, spec.model.path, spec.pruning.model_dump(mode="json"),
                spec.quality.risk, spec.latency.model_dump(mode="json"), case.damping,
                case.only, spec.task.model_dump(mode="json"),
            ]
        )  # fmt: skip
        if key not in self._bundles:
            with Bench(spec, case) as bench, only_damping(case.damping):
                self._time(bench)
                self._bundles[key] = calibrate(bench, silent)
            while len(self._bundles) > _KNOWN:
                self._bundles.popitem(last=False)
        self._bundles.move_to_end(key)
        return self._bundles[key]

    def _time(self, bench: Workbench) -> None:
        """Time the widths of a model once, however long the prompts of a draw are."""
        spec, watch = bench.spec, bench.stopwatch
        widths, place = widths_of(bench.anatomy, spec), Path(str(spec.latency.table))
        mine = origin_of(watch, widths, spec.latency.checks)
        if known_table(place, mine, widths) is not None:
            return
        keys = ("sites", "batch", "new_tokens", "model")
        tables = json.loads(place.read_text())["tables"] if place.is_file() else []
        for known in tables:
            if all(known["origin"][key] == mine[key] for key in keys):
                found = known_table(place, known["origin"], widths)
                if found is not None:
                    keep_table(place, replace(found, origin=mine))
                    return
        longer = _TIMING if self.form.name == "full" else ()
        changed = spec.model_copy(
            update={"latency": read_spec(SPEC, (*_SHORT, *self.form.changes, *longer)).latency}
        )
        work = changed.latency.model_copy(
            update={"batch": spec.latency.batch, "new_tokens": spec.latency.new_tokens}
        )
        changed = changed.model_copy(update={"latency": work})
        order = rank_units(bench.loaded)
        with arranged(bench.loaded, order) as ready:
            timed = Workbench(changed, bench.loaded, bench.task).stopwatch
            timed.loaded = ready
            table = measure_table(timed, order, widths, checks=changed.latency.checks)
        keep_table(place, replace(table, origin=mine))

    @contextmanager
    def opened(self, model: str, seed: int, case: Case = DEFAULT) -> Iterator[Epochs]:
        """Open a study in memory, calibrated, its search not begun."""
        spec = self.spec(model, seed, case)
        bundle = self.bundle(spec, case)
        study = storage.create_study(InMemoryStorage(), spec)
        with TemporaryDirectory() as place, Bench(spec, case) as bench:
            epochs = case.epochs(study, bench, Vault(Folder(place)))
            epochs.ledger.publish(0, lambda: epochs.publication(bundle))
            epochs.open()
            study.sampler = epochs.sampler
            yield epochs

    def study(self, model: str, seed: int, case: Case = DEFAULT) -> dict[str, Any]:
        """Give what came of a whole study."""

        def make() -> dict[str, Any]:
            with self.opened(model, seed, case) as epochs:
                began = time.process_time()
                loop.search(epochs)
                spent = time.process_time() - began
                evaluations = bench_of(epochs).evaluations
                more = {} if case.after is None else case.after(epochs)
                return {
                    "model": model,
                    "seed": seed,
                    "label": case.label,
                    "changes": list(case.changes),
                    "evaluations": evaluations,
                    "search_cpu_s": round(spent, 1),
                    **outcome(epochs),
                    **more,
                }

        return self.unit(study_name(model, seed, case), make)

    def timed(
        self, name: str, model: str, seed: int, keeps: Mapping[str, Sequence[int]]
    ) -> dict[str, Any]:
        """Run networks whole, in turn with the dense one; give what share of its time each takes.

        Args:
            name: Of the unit of work.
            model: Of the networks.
            seed: Of the study that they come from.
            keeps: Units kept at each site, by what found them.
        """
        work = Workload(64, 1, 1, self.form.pick(9, 3, 1), 0.01, 0.0)

        def make() -> dict[str, Any]:
            with self.opened(model, seed, FIXED) as epochs:
                bench, basis = bench_of(epochs), epochs.basis_of(0)
                stopwatch = Stopwatch(bench.loaded, bench.proxy, work)

                def runner(policy: Policy) -> Callable[[], dict[str, float]]:
                    def run() -> dict[str, float]:
                        with running(bench.loaded, basis, policy) as network:
                            return stopwatch.decoder(network)

                    return run

                policies = {"dense": Policy.dense(bench.anatomy)} | {
                    name: Policy.of(bench.anatomy, keep) for name, keep in keeps.items()
                }
                runs = {name: runner(policy) for name, policy in policies.items()}
                timings, table = stopwatch.race(runs, "dense"), bench.bundle.latency
            whole = {n: whole_ms(table, timings["dense"], mine) for n, mine in timings.items()}
            shares = {name: ms / whole["dense"] for name, ms in whole.items()}
            return {"model": model, "seed": seed, "keeps": dict(keeps), "shares": shares}

        return self.unit(name, make)


def study_name(model: str, seed: int, case: Case = DEFAULT) -> str:
    """Name the unit of work that a study is."""
    return f"study-{model}-{seed}-{case.label}"


def bench_of(epochs: Epochs) -> Bench:
    """Give the workbench of a study that `Lab.opened` has opened."""
    if not isinstance(epochs.bench, Bench):
        raise TypeError("This study was not opened here.")
    return epochs.bench


def outcome(epochs: Epochs) -> dict[str, Any]:
    """Choose as a study does, by validation among finalists, and open the test split."""
    bench = bench_of(epochs)
    front = finalists(front_of(trials_of(epochs.study)), epochs.spec.report.finalists)
    found = [
        examined(bench, Policy.of(bench.anatomy, trial.keep), epochs.basis(trial.basis))
        | {"epoch": trial.epoch, "quality": trial.quality, "proxy": trial.accuracy}
        for trial in front
    ]
    eta = epochs.spec.quality.eta
    steps = [attempt.user_attrs for attempt in epochs.ledger.epochs()[1:]]
    return {
        "chosen": best(found),
        "front": found,
        "volume": volume(found, bench.bundle.reference),
        "projector_steps": [attrs["steps"] for attrs in steps],
        "projector_s": [attrs["seconds"] for attrs in steps],
        "eta": eta,
    }


def examined(bench: Bench, policy: Policy, basis: Basis) -> dict[str, Any]:
    """Give what a policy answers on validation and test, and what it costs."""
    found: dict[str, Any] = {
        "keep": list(policy.keep),
        "kept_share": policy.kept_share(bench.anatomy),
        "latency_ms": bench.latency_ms(policy),
        "risk": bench.risk(policy),
    }
    for split in (Split.VALIDATION, Split.TEST):
        asked = bench.many(split)
        scores = bench.final(policy, basis, asked)
        found[str(split)] = float(scores.hit.mean())
        if split == Split.TEST:
            found["expected"] = float(scores.probability.mean())
            kinds = [sample.subsets for sample in samples_of(asked)]
            found["kinds"] = {
                kind: float(scores.hit[[kind in mine for mine in kinds]].mean())
                for kind in sorted({kind for mine in kinds for kind in mine})
            }
    return found


def best(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Choose by accuracy on validation; of equals, the better quality on the proxy."""
    return max(found, key=lambda one: (one["validation"], one["quality"]))


def volume(points: Sequence[Mapping[str, Any]], reference: tuple[float, float]) -> float:
    """Give the share of (accuracy, latency) that points dominate, by test accuracy."""
    guessed, slowest = reference
    pairs = [(point["test"], point["latency_ms"]) for point in points]
    return hypervolume(pairs, reference) / ((1 - guessed) * slowest)


def pairs_of(form: Form) -> list[tuple[str, int]]:
    """Give models and seeds, all models of one seed first."""
    return [(model, seed) for seed in range(form.seeds) for model in form.models]


def begin(
    about: str | None,
    arguments: Sequence[str] | None,
    *,
    two: bool = False,
    draws: int = SEEDS,
) -> tuple[Form, argparse.Namespace]:
    """Read the command line of a script of evidence.

    Args:
        about: What the script says of itself.
        arguments: The command line; None: that of the process.
        two: Whether it is about two models.
        draws: How many draws and searches of each model the full form has.
    """
    parser = argparse.ArgumentParser(description=about)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    size.add_argument("--small", action="store_true", help="a minute or two; to --out only")
    parser.add_argument(
        "--report", action="store_true", help="run nothing; write the table of what is there"
    )
    parser.add_argument("--seeds", type=int, help=f"draws and searches; {draws}")
    parser.add_argument("--out", type=Path, help="where units of work lie")
    told = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    models = {"first": EMBEDDED}
    name = "tiny" if told.tiny else "small" if told.small else "full"
    if two and name == "full":
        models["second"] = SECOND
    changes = {"tiny": _TINY, "small": _SMALL, "full": ()}[name]
    seeds = told.seeds or {"tiny": 1, "small": 2, "full": draws}[name]
    if told.out is None and name != "full":
        told.out = Path(_scratch(name))
    folder = told.out or RESULTS / "evidence"
    published = name == "full" and told.out is None
    return Form(name, changes, seeds, models, folder, published, told.report), told


def _scratch(name: str) -> str:
    import atexit
    import shutil
    import tempfile

    place = tempfile.mkdtemp(prefix=f"evidence-{name}-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def announce(units: int, seconds: float) -> None:
    """Say before a run how long it will take."""
    print(f"About {units * seconds / 3600:.2f} hours of one core for {units} units.", flush=True)


def publish(form: Form, title: str, text: str, origins: Sequence[Mapping[str, Any]]) -> None:
    """Print a section, and write it where it belongs."""
    where = [dict(origin) for origin in origins]
    commits = ", ".join(dict.fromkeys(str(origin["commit"]) for origin in where))
    whole = f"{text.strip()}\n\n{CAVEAT}\n\n{told(where[-1])} Commits: {commits}."
    print(whole)
    if form.published:
        put_section(title, whole)
    elif form.name == "small":
        place = form.folder / "RESULTS.md"
        before = place.read_text(encoding="utf-8") if place.is_file() else ""
        place.write_text(f"{before}## {title}\n\n{whole}\n\n", encoding="utf-8")
