"""The end of a study: finalists, the choice among them, and the report on test data.

The order matters. Finalists come from the Pareto front, by proxy scores, and are stored.
Validation chooses among them, and the choice is stored. If several are equally accurate and the
study limits latency, they are timed first, and those that meet the limit are preferred. Only then
is the test split opened; it ranks nothing. The baselines are chosen in the same way but for the
timing, under the weight state of the choice: a grid by proxy scores (without the policies that
another feasible one contains), the best of it by validation.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.allocation import uniform_by_kind, uniform_policies
from effllava_optuna.calibration.stage_callback import StepCounter
from effllava_optuna.errors import StudyError, UserFunctionError
from effllava_optuna.objectives import (
    constant_of,
    groups_of,
    measure_of,
    number_groups,
    peak_memory_mb,
)
from effllava_optuna.policy import (
    Policy,
    best_and_spread,
    bootstrap_interval,
    finalist_merit,
    front_of,
    meets_budget,
    select_finalists,
    with_latest_correction,
    within_limit,
)
from effllava_optuna.report import accuracy_by_subset, result_row, smoothed_qualities
from effllava_optuna.search.study_answers import final_samples
from effllava_optuna.storage.names import CHOSEN, FINALISTS, RESULTS, SCORES, TASK
from effllava_optuna.storage.trial_records import compact_scores, effective_records
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.objectives import Measure, ScoredSplit
    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.search.evaluator import Evaluator, Measurement
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import WeightState
    from effllava_optuna.tasks import Scores


@dataclass(frozen=True, slots=True)
class Finalist:
    """A policy that is measured on validation and test.

    Attributes:
        name: Name in the stored results: ``dense``, a baseline, or the number of a trial.
        policy: The policy.
        weight_state: Ranking, compensation tables and projector that it runs with.
        measured: Its values on the proxy set.
        epoch: The epoch of the weight state.
        trial: Number of its trial; None for the dense model and the baselines.
    """

    name: str
    policy: Policy
    weight_state: WeightState
    measured: Measurement
    epoch: int
    trial: int | None = None


class _ScoreCache:
    """Scores of finalists; each policy is scored once on each split."""

    def __init__(self, session: SearchSession) -> None:
        self.session = session
        self.evaluator = session.evaluator
        self.splits: dict[Split, ScoredSplit] = {}
        self._scores: dict[tuple[str, Policy, Split], Scores] = {}

    def open(self, split: Split) -> None:
        """Open a split; before that, nothing can be scored on it."""
        self.splits[split] = self.evaluator.split(final_samples(self.session, split))

    def scores(self, finalist: Finalist, split: Split) -> Scores:
        key = (finalist.weight_state.digest, finalist.policy, split)
        if key not in self._scores:
            proxy = self.evaluator.proxy
            batches = proxy.graded if split is Split.PROXY else self.splits[split]
            self._scores[key] = self.evaluator.score(
                finalist.policy, finalist.weight_state, batches
            )
        return self._scores[key]

    def hits(self, finalist: Finalist, split: Split) -> list[float]:
        """Return the score of each sample; on the proxy as the report grades, cross-fitted."""
        proxy = self.evaluator.proxy
        if split is not Split.PROXY:
            return [float(hit) for hit in self.scores(finalist, split).hit]
        if proxy.graded is proxy.scored:
            return list(finalist.measured.hits)
        return [float(hit) for hit in self.scores(finalist, split).hit]

    def measure(self, split: Split) -> Measure:
        """Return whether the scores on a split are an accuracy or an agreement."""
        measure = self.evaluator.config.quality.measure
        if split is Split.PROXY:
            return measure
        return measure_of(self.evaluator.inputs.task.samples(split), measure)

    def groups(self, split: Split) -> list[str]:
        if split is Split.PROXY:
            return groups_of(self.evaluator.proxy.graded)
        return self.splits[split].groups


def study_finalists(session: SearchSession, front: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Select the finalists of a study from a front, see `effllava_optuna.policy`."""
    return select_finalists(
        front,
        session.config.report.finalists,
        session.evaluator.structure,
        session.study.user_attrs[TASK].get("groups") or (),
        has_budget=session.costs.limit is not None,
    )


def _finalists_once(
    session: SearchSession, records: Sequence[TrialRecord], front: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """Return the stored finalists; if there are none, select them from the front and store them.

    A study that is resumed here, or by a version that selects others, keeps its finalists.
    """
    study = session.study
    stored = study.user_attrs.get(FINALISTS)
    if stored is not None:
        by_number = {record.number: record for record in records}
        return [by_number[number] for number in stored]
    if CHOSEN in study.user_attrs:  # by an older version, which had stored the choice only
        selected = best_and_spread(front, session.config.report.finalists)
    else:
        selected = study_finalists(session, front)
    study.set_user_attr(FINALISTS, [trial.number for trial in selected])
    return selected


class _Choice:
    """The choice by validation, and the timing that decides between equals."""

    def __init__(self, cache: _ScoreCache, progress: StepCounter) -> None:
        self.cache, self.progress, self.session = cache, progress, cache.session
        search = self.session.config.search
        self.budget = {"latency_ms": search.latency_ms, "speedup": search.speedup}
        self.latencies: dict[str, tuple[float, float]] = {}  # ms, and those of the dense model

    def once(self, candidates: Sequence[Finalist], dense: Finalist) -> Finalist:
        """Return the stored choice; if there is none, choose and store it.

        Finalists that tie on validation are timed before the choice if the study limits latency.
        """
        best, study = self.best(candidates), self.session.study
        for finalist in candidates:  # a study that is resumed keeps its choice
            if finalist.trial == study.user_attrs.get(CHOSEN):
                return finalist
        tied = [each for each in candidates if self._merit(each)[0] == self._merit(best)[0]]
        if len(tied) > 1 and any(self.budget.values()):
            self.time([dense, *tied])
            best = max(tied, key=self._merit)
        study.set_user_attr(CHOSEN, best.trial)
        return best

    def best(self, candidates: Sequence[Finalist]) -> Finalist:
        """Choose by accuracy on validation; among equals, by quality on the proxy."""
        for finalist in candidates:
            self.cache.scores(finalist, Split.VALIDATION)
            self.progress.step()
        return max(candidates, key=self._merit)

    def _merit(self, finalist: Finalist) -> tuple[float, bool, float]:
        """Return the sort key of a finalist; one that is not timed yet counts as fast enough."""
        timed = self.latencies.get(finalist.name)
        within = timed is None or meets_budget(self.budget, timed[0], timed[1] / timed[0])
        accuracy = float(self.cache.scores(finalist, Split.VALIDATION).hit.mean())
        return finalist_merit(accuracy, finalist.measured.quality, within_budget=within)

    def time(self, finalists: Sequence[Finalist]) -> None:
        """Time those that were not timed before, in turn with the dense model, the first one."""
        dense, *others = finalists
        networks = [dense, *(each for each in others if each.name not in self.latencies)]
        if len(networks) == 1 and dense.name in self.latencies:
            return
        evaluator = self.session.evaluator
        latencies = evaluator.time_networks(
            [(each.weight_state, each.policy) for each in networks],
            evaluator.config.latency.seconds,
            lambda share: self.session.report_stage("timing the finalists", share),
        )
        for network, latency_ms in zip(networks, latencies, strict=True):
            self.latencies.setdefault(network.name, (latency_ms, latencies[0]))


class FinalSelection:
    """Chooses a finalist by validation, and measures all of them on test.

    Args:
        session: A study whose search is over.
    """

    def __init__(self, session: SearchSession) -> None:
        self.session, self.evaluator = session, session.evaluator
        self.count = session.config.report.finalists
        self.latest = session.epochs.latest
        self.costs = session.schedule.view_of(self.latest).cost_model
        self.progress = StepCounter(session.report_stage)
        self.cache = _ScoreCache(session)
        self.choice = _Choice(self.cache, self.progress)

    def run(self) -> dict[str, Any]:
        """Choose, open the test split, time all finalists, and store the results.

        Raises:
            StudyError: No trial of the study is feasible and complete.
        """
        study = self.session.study
        records = self._comparable_records()
        front = front_of(records)
        if not front:
            raise StudyError(
                f"Study {study.study_name!r} has no feasible trial that completed.",
                hint="Allow a larger budget, or run more trials.",
            )
        selected = _finalists_once(self.session, records, front)
        structure, widths = self.evaluator.structure, self.evaluator.calibration.widths
        grids = {
            "uniform": self.costs.maximal(uniform_policies(structure, widths)),
            "uniform_by_kind": self.costs.maximal(uniform_by_kind(structure, widths)),
        }
        # Finalists and grids are measured on the proxy, and the best of them on validation.
        sizes = [len(selected), *map(len, grids.values())]
        steps = sum(size + min(self.count, size) for size in sizes) + 1  # and the dense model
        self.progress.begin("choosing by validation", steps)
        self.cache.open(Split.VALIDATION)
        candidates = [self._from_trial(trial) for trial in selected]
        dense = self._dense()
        chosen = self.choice.once(candidates, dense)
        baselines = [self._baseline(name, grid, chosen) for name, grid in grids.items()]
        everyone = [dense, *(b for b in baselines if b is not None), *candidates]
        self.choice.time(everyone)
        self.cache.open(Split.TEST)
        rows = {}
        for number, finalist in enumerate(everyone):
            self.session.report_stage("opening the test split", number / len(everyone))
            rows[finalist.name] = _row(self.cache, finalist, *self.choice.latencies[finalist.name])
        self.session.report_stage("smoothing the quality of the finalists", 0.0)
        for trial, quality in smoothed_qualities(selected, records, structure).items():
            rows[str(trial)]["quality_smoothed"] = quality
        study.set_user_attr(SCORES, _scores_by_sample(self.cache, everyone))
        results = {
            "constant": constant_of(self.cache.splits[Split.TEST].samples),
            "memory": _memory(self.evaluator),
            "dense": rows[dense.name],
            "uniform": rows.get("uniform"),
            "uniform_by_kind": rows.get("uniform_by_kind"),
            "front": [rows[candidate.name] for candidate in candidates],
            "chosen": rows[chosen.name],
        }
        study.set_user_attr(RESULTS, results)
        return results

    def _comparable_records(self) -> list[TrialRecord]:
        """Return all trials as the latest epoch sees them: its latencies, and its budget."""
        session, search = self.session, self.session.config.search
        dense_ms = self.evaluator.calibration.dense.latency_ms
        records = with_latest_correction(
            effective_records(session.study),
            [session.epochs.epoch(number).latency_factor for number in range(self.latest + 1)],
            dense_ms,
        )
        return within_limit(records, dense_ms, search.latency_ms, search.speedup)

    def _measure(self, policy: Policy, weight_state: WeightState) -> Measurement:
        factor = self.session.epochs.epoch(self.latest).latency_factor
        measured = self.evaluator.measure(policy, weight_state, factor)
        self.progress.step()
        return measured

    def _from_trial(self, trial: TrialRecord) -> Finalist:
        policy = Policy.of(self.evaluator.structure, trial.widths)
        weight_state = self.session.epochs.weight_state(trial.weight_state)
        return Finalist(
            name=str(trial.number),
            policy=policy,
            weight_state=weight_state,
            measured=self._measure(policy, weight_state),
            epoch=trial.epoch or 0,
            trial=trial.number,
        )

    def _dense(self) -> Finalist:
        policy = Policy.dense(self.evaluator.structure)
        weight_state = self.session.epochs.epoch(0).weight_state
        return Finalist(
            name="dense",
            policy=policy,
            weight_state=weight_state,
            measured=self._measure(policy, weight_state),
            epoch=0,
        )

    def _baseline(self, name: str, grid: Sequence[Policy], chosen: Finalist) -> Finalist | None:
        """Choose from a feasible grid as the choice was made, under the same weight state."""
        tried = []
        for policy in grid:
            with suppress(UserFunctionError):  # no trial has shown that it has a quality
                measured = self._measure(policy, chosen.weight_state)
                tried.append(
                    Finalist(
                        name=name,
                        policy=policy,
                        weight_state=chosen.weight_state,
                        measured=measured,
                        epoch=chosen.epoch,
                    )
                )
        tried.sort(key=lambda finalist: -finalist.measured.quality)
        return self.choice.best(tried[: self.count]) if tried else None


def _memory(evaluator: Evaluator) -> dict[str, Any]:
    """Return the peak memory of this process, and what weights and tables take of it."""
    loaded = evaluator.loaded
    dense = sum(weight.nbytes for weight in loaded.model.parameters())
    return {
        "device": loaded.device.type,
        "peak_mb": round(peak_memory_mb(loaded.device), 1),
        "dense_mb": round(dense / 1e6, 1),
        "table_mb": round(evaluator.calibration.dense.memory_mb, 1),
    }


def _row(
    cache: _ScoreCache, finalist: Finalist, latency_ms: float, dense_ms: float
) -> dict[str, Any]:
    """Return what the report says of a finalist."""
    evaluator, measured = cache.evaluator, finalist.measured
    accuracies: dict[str, Any] = {}
    for split in (Split.VALIDATION, Split.TEST):
        scores, groups = cache.scores(finalist, split), cache.groups(split)
        accuracies[f"accuracy_{split}"] = float(scores.hit.mean())
        accuracies[f"accuracy_{split}_interval"] = bootstrap_interval(scores.hit, groups)
    measures = [cache.measure(split) for split in (Split.PROXY, Split.TEST)]
    comparable = measures[0] == measures[1]
    subsets = [sample.subsets for sample in cache.splits[Split.TEST].samples]
    accuracies["subsets_test"] = accuracy_by_subset(
        cache.hits(finalist, Split.TEST), cache.groups(Split.TEST), subsets
    )
    hits = cache.hits(finalist, Split.PROXY)
    accuracies["accuracy_proxy"] = sum(hits) / len(hits)
    accuracies["accuracy_proxy_interval"] = bootstrap_interval(hits, cache.groups(Split.PROXY))
    size, gflops = evaluator.size(finalist.policy)
    return result_row(
        policy=finalist.policy,
        trial=finalist.trial,
        epoch=finalist.epoch,
        quality=measured.quality,
        gap=accuracies["accuracy_proxy"] - accuracies["accuracy_test"] if comparable else None,
        risk=measured.risk,
        latency_ms=measured.latency_ms,
        latency_ms_measured=latency_ms,
        speedup_predicted=evaluator.calibration.dense.latency_ms / measured.latency_ms,
        speedup_measured=dense_ms / latency_ms,
        speedup_parts=evaluator.calibration.latency.speedup_parts(finalist.policy),
        parameters=size,
        gflops=gflops,
        **accuracies,
    )


def _scores_by_sample(cache: _ScoreCache, everyone: Sequence[Finalist]) -> dict[str, Any]:
    """Return the score of each finalist on each sample, and which samples form a group."""
    scores: dict[str, Any] = {
        str(split): {
            "groups": number_groups(cache.groups(split)),
            "hits": {
                finalist.name: compact_scores(cache.hits(finalist, split)) for finalist in everyone
            },
        }
        for split in (Split.PROXY, Split.VALIDATION, Split.TEST)
    }
    scores[str(Split.PROXY)]["quality_scores"] = {
        finalist.name: compact_scores(finalist.measured.quality_scores) for finalist in everyone
    }
    return scores
