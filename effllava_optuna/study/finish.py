"""After the search: finalists, the choice, and what only then may be looked at.

The order matters. Finalists come from the front, by proxy scores. Validation chooses among them,
and the choice is stored. Only then is the test split opened; it ranks nothing. The baselines are
chosen in the same way, under the basis of the choice: a whole grid by proxy scores, the best of
it by validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.baselines import one_number, two_numbers
from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import peak_memory_mb, samples_of, units_of, whole_ms
from effllava_optuna.policy import Policy, bootstrap_interval, finalists, front_of
from effllava_optuna.report import entry, marks
from effllava_optuna.study.grading import constant_of, numbered
from effllava_optuna.study.records import trials_of
from effllava_optuna.study.storage import CHOSEN, RESULTS, SCORES
from effllava_optuna.surgery import Basis, running
from effllava_optuna.tasks import Scores, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.objectives import Asked
    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.study.workbench import Measured

_DENSE = 0  # the place of the dense model among all that is measured


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy on its way to the report.

    Attributes:
        policy: The policy.
        basis: What turns it into a network.
        proxy: What it gave on the proxy.
        epoch: Whose basis it is.
        trial: The trial that found it; None for baselines.
    """

    policy: Policy
    basis: Basis
    proxy: Measured
    epoch: int
    trial: TrialRecord | None = None


class Finish:
    """The last stage of a study.

    Args:
        epochs: Of a study whose search is over.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.bench = epochs.bench
        self.count = epochs.spec.report.finalists
        self._known: dict[tuple[str, Policy, int], Scores] = {}

    def run(self) -> dict[str, Any]:
        """Choose, open the test split, time everything, and store what came out.

        Raises:
            StudyError: No trial of the study is feasible and complete.
        """
        front = front_of(trials_of(self.epochs.study))
        if not front:
            raise StudyError(
                f"Study {self.epochs.study.study_name!r} has no feasible trial that completed.",
                hint="Allow a larger budget, or run more trials.",
            )
        self.epochs.say("choosing by validation", 0.0)
        validation = self.bench.asked(Split.VALIDATION)
        candidates = [self._candidate(trial) for trial in finalists(front, self.count)]
        chosen = self._best(candidates, validation)
        if chosen.trial is not None:
            self.epochs.study.set_user_attr(CHOSEN, chosen.trial.number)
        baselines = {
            name: self._baseline(grid, chosen, validation)
            for name, grid in (
                ("uniform", one_number(self.bench.anatomy, self.bench.bundle.widths)),
                ("uniform2", two_numbers(self.bench.anatomy, self.bench.bundle.widths)),
            )
        }
        dense = self._dense()
        everyone = [dense, *(b for b in baselines.values() if b is not None), *candidates]
        test = self.bench.asked(Split.TEST)
        measured = self._timed(everyone)
        rows = []
        for number, candidate in enumerate(everyone):
            self.epochs.say("opening the test split", number / len(everyone))
            rows.append(self._entry(candidate, validation, test, measured, number))
        found = dict(zip([id(candidate) for candidate in everyone], rows, strict=True))
        names = {
            id(dense): "dense",
            **{id(baseline): name for name, baseline in baselines.items()},
            **{id(c): str(c.trial.number) for c in candidates if c.trial is not None},
        }
        named = {names[id(candidate)]: candidate for candidate in everyone}
        self.epochs.study.set_user_attr(
            SCORES,
            {
                "proxy": _answered(self.bench.graded, named, self._on_proxy),
                "validation": _answered(validation, named, self._on(validation)),
                "test": _answered(test, named, self._on(test)),
            },
        )
        results = {
            "constant": constant_of(samples_of(test)),
            "memory": self._memory(),
            "dense": found[id(dense)],
            **{name: found.get(id(baseline)) for name, baseline in baselines.items()},
            "front": [found[id(candidate)] for candidate in candidates],
            "chosen": found[id(chosen)],
        }
        self.epochs.study.set_user_attr(RESULTS, results)
        return results

    def _memory(self) -> dict[str, Any]:
        """Say what this process has held at most, and what of it is weights and tables."""
        model, device = self.bench.loaded.model, self.bench.loaded.device
        return {
            "device": device.type,
            "peak_mb": round(peak_memory_mb(device), 1),
            "dense_mb": round(sum(weight.nbytes for weight in model.parameters()) / 1e6, 1),
            "table_mb": round(self.bench.bundle.dense.memory_mb, 1),
        }

    def _candidate(self, trial: TrialRecord) -> Candidate:
        policy = Policy.of(self.bench.anatomy, trial.keep)
        basis = self.epochs.basis(trial.basis)
        epoch = trial.epoch or 0
        return Candidate(policy, basis, self.bench.measure(policy, basis), epoch, trial)

    def _dense(self) -> Candidate:
        basis = self.bench.basis()
        policy = Policy.dense(self.bench.anatomy)
        return Candidate(policy, basis, self.bench.measure(policy, basis), 0)

    def _baseline(
        self, grid: Sequence[Policy], chosen: Candidate, validation: Sequence[Asked]
    ) -> Candidate | None:
        """Choose from ``grid`` as the choice was made, under the same basis."""
        inside = [p for p in grid if self.epochs.budget.allows(self.bench.anatomy, p)]
        if not inside:
            return None
        tried = [
            Candidate(policy, chosen.basis, self.bench.measure(policy, chosen.basis), chosen.epoch)
            for policy in inside
        ]
        tried.sort(key=lambda candidate: -candidate.proxy.quality)
        return self._best(tried[: self.count], validation)

    def _best(self, candidates: Sequence[Candidate], validation: Sequence[Asked]) -> Candidate:
        """Choose by accuracy on validation; of equals, the better quality on the proxy."""

        def merit(candidate: Candidate) -> tuple[float, float]:
            scores = self._scores(candidate, validation)
            return float(scores.hit.mean()), candidate.proxy.quality

        return max(candidates, key=merit)

    def _scores(self, candidate: Candidate, asked: Sequence[Asked]) -> Scores:
        key = (candidate.basis.digest, candidate.policy, id(asked))
        if key not in self._known:
            self._known[key] = self.bench.final(candidate.policy, candidate.basis, asked)
        return self._known[key]

    def _on(self, asked: Sequence[Asked]) -> Callable[[Candidate], Sequence[float]]:
        return lambda candidate: self._scores(candidate, asked).hit.tolist()

    def _on_proxy(self, candidate: Candidate) -> Sequence[float]:
        """Give the proxy graded as the report grades, which is not always how it was searched."""
        if self.bench.graded is self.bench.crossed:
            return candidate.proxy.hits
        return self._on(self.bench.graded)(candidate)

    def _timed(self, everyone: Sequence[Candidate]) -> list[float]:
        """Time everyone's network in turn, the dense one first; give each one's milliseconds."""
        stopwatch, table = self.bench.stopwatch, self.bench.bundle.latency

        def runner(candidate: Candidate) -> Any:
            def run() -> dict[str, float]:
                with running(self.bench.loaded, candidate.basis, candidate.policy) as network:
                    return stopwatch.decoder(network)

            return run

        with self.bench.loaded.lock:
            timings = stopwatch.race(
                {number: runner(candidate) for number, candidate in enumerate(everyone)},
                _DENSE,
                progress=lambda share: self.epochs.say("timing the finalists", share),
            )
        return [whole_ms(table, timings[_DENSE], phases) for phases in timings.values()]

    def _entry(
        self,
        candidate: Candidate,
        validation: Sequence[Asked],
        test: Sequence[Asked],
        measured: Sequence[float],
        number: int,
    ) -> dict[str, Any]:
        bench, proxy = self.bench, candidate.proxy
        accuracies: dict[str, Any] = {}
        for split, asked in (("validation", validation), ("test", test)):
            scores = self._scores(candidate, asked)
            units = units_of(asked)
            accuracies[f"accuracy_{split}"] = float(scores.hit.mean())
            accuracies[f"accuracy_{split}_interval"] = bootstrap_interval(scores.hit, units)
            if split == Split.TEST:
                subsets = [sample.subsets for sample in samples_of(asked)]
                accuracies["subsets_test"] = marks(scores.hit.tolist(), units, subsets)
        hits = self._on_proxy(candidate)
        accuracies["accuracy_proxy"] = on_proxy = sum(hits) / len(hits)
        accuracies["accuracy_proxy_interval"] = bootstrap_interval(hits, units_of(bench.graded))
        parameters, gflops = bench.sizes(candidate.policy)
        return entry(
            policy=candidate.policy,
            anatomy=bench.anatomy,
            trial=candidate.trial.number if candidate.trial else None,
            epoch=candidate.epoch,
            quality=proxy.quality,
            gap=on_proxy - accuracies["accuracy_test"],
            risk=proxy.risk,
            latency_ms=proxy.latency_ms,
            latency_ms_measured=measured[number],
            speedup_predicted=bench.bundle.dense.latency_ms / proxy.latency_ms,
            speedup_measured=measured[_DENSE] / measured[number],
            parameters=parameters,
            gflops=gflops,
            **accuracies,
        )


def _answered(
    asked: Sequence[Asked],
    named: Mapping[str, Candidate],
    hits_of: Callable[[Candidate], Sequence[float]],
) -> dict[str, Any]:
    """Give what everybody scored on each sample, and which samples belong together."""
    hits = {
        name: [int(hit) if hit in (0, 1) else round(hit, 6) for hit in hits_of(candidate)]
        for name, candidate in named.items()
    }
    return {"units": numbered(units_of(asked)), "hits": hits}
