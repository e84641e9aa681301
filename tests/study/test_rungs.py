"""Policies that are beaten are stopped; whatever is reported stays what it was."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from effllava_optuna.policy import Policy
from effllava_optuna.report import document, summary
from effllava_optuna.samplers import slot_of
from effllava_optuna.study import storage
from effllava_optuna.study.board import note
from effllava_optuna.study.evolution import ProjectorEvolution
from effllava_optuna.study.facts import facts_of
from effllava_optuna.study.loop import continued, search
from effllava_optuna.study.objective import PruningObjective
from effllava_optuna.study.records import digest_of, trials_of
from effllava_optuna.study.rivals import rival_of
from effllava_optuna.study.screen import Screen
from effllava_optuna.study.workbench import Beaten, Workbench
from effllava_optuna.tasks import Digits, Scores
from tests.study.conftest import SMOKE, Opener, clone, started
from tests.study.conftest import calibrate as calibrate_file
from tests.study.test_cli import wait_for_trials

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from effllava_optuna.objectives import Asked
    from effllava_optuna.surgery import Basis, Loaded


TASK = Digits(proxy=64, validation=8, test=8)
RUNGS = [16, 32]


@pytest.fixture(scope="module")
def opened(tiny: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    place = tmp_path_factory.mktemp("artifacts")
    return Opener(tiny, TASK, place, epochs=2, generations=3, population=6, rungs=RUNGS)


@pytest.fixture
def talented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let policies differ: the tiny model guesses, whatever is left of it."""

    def invented(_: Loaded, basis: Basis, policy: Policy, asked: Iterable[Asked]) -> Scores:
        told = f"{policy.keep} {basis.digest}".encode()
        talent = zlib.crc32(told) / 2**32
        parts = []
        for item in asked:
            ids = [zlib.crc32(told + sample.id.encode()) for sample in item.batch.samples]
            luck = np.array([np.random.default_rng(seed).random() for seed in ids])
            right = luck ** (1 / (20 * talent + 0.1))
            parts.append(Scores((right > 0.5).astype(float), np.log(right)))
        return Scores.joined(parts)

    monkeypatch.setattr("effllava_optuna.study.workbench.answers", invented)


def test_rungs_ask_everything_once_of_the_fit_that_did_not_see_it(
    opened: Opener,
) -> None:
    epochs, plain = opened(), opened(rungs=[])
    with plain.bench as bench:
        fit = {sample.id: item.fit for item in bench.crossed for sample in item.batch.samples}
        assert len(bench.rungs) == 1
    with epochs.bench as bench:
        found = [[s for item in rung for s in item.batch.samples] for rung in bench.rungs]
        assert [len(samples) for samples in found] == [16, 16, 32]
        for item in bench.crossed:
            assert {fit.pop(sample.id) for sample in item.batch.samples} == {item.fit}
        assert not fit
        units = [{sample.unit for sample in samples} for samples in found]
        assert sum(map(len, units)) == len(set.union(*units))


@pytest.mark.usefixtures("talented")
@pytest.mark.parametrize("sampler", ["nsga2", "cma", "tpe"])
def test_whoever_is_stopped_is_beaten_and_all_others_are_measured_in_full(
    opened: Opener, sampler: str
) -> None:
    epochs = opened(sampler=sampler, failures=0.01)
    with epochs.bench as bench:
        search(epochs)
        trials = epochs.study.get_trials(deepcopy=False)
        assert len(trials) == 36
        stopped = [trial for trial in trials if trial.state == TrialState.PRUNED]
        assert len(stopped) > 6
        for trial in trials:
            policy = Policy.of(bench.anatomy, trial.user_attrs["keep"])
            full = bench.measure(policy, epochs.basis(trial.user_attrs["basis"]))
            if trial.state == TrialState.COMPLETE:
                assert trial.values == [full.quality, full.latency_ms]
                assert len(trial.user_attrs["hits"]) == 64
                continue
            assert trial.values is None
            assert not trial.intermediate_values
            assert not {"accuracy", "expected", "hits", "reason"} & set(trial.user_attrs)
            assert trial.user_attrs["rung"] in RUNGS
            rival = trials[trial.user_attrs["rival"]]
            assert rival.values[0] > full.quality
            assert rival.values[1] <= full.latency_ms
            told = (
                f"trial {rival.number} is no slower and has quality {rival.values[0]:.4f}: after"
            )
            assert trial.user_attrs["stopped"].startswith(told)


@pytest.mark.usefixtures("talented")
def test_rivals_are_the_best_of_earlier_generations_that_are_no_slower(
    opened: Opener,
) -> None:
    epochs = opened()
    with epochs.bench as bench:
        epochs.study.enqueue_trial(epochs.bench.wide.encode(Policy.dense(epochs.bench.anatomy)))
        search(epochs)
        trials = epochs.study.get_trials(deepcopy=False)
        for trial in trials:
            slot = slot_of(trial)
            policy = Policy.of(bench.anatomy, trial.user_attrs["keep"])
            rival = rival_of(trials, trial, bench.latency_ms(policy))
            if slot is None or slot.generation == 0:
                assert trial.state == TrialState.COMPLETE
                assert rival is None
                continue
            able = [
                other
                for other in trials
                if (place := slot_of(other)) is not None
                and place.epoch == slot.epoch
                and place.generation < slot.generation
                and other.values
                and other.values[1] <= bench.latency_ms(policy)
            ]
            best = max((other.values[0] for other in able), default=None)
            assert (rival and rival.quality) == best
            if trial.state == TrialState.PRUNED:
                assert rival is not None
                assert rival.number == trial.user_attrs["rival"]
        assert trials[0].user_attrs["kind"] == "foreign"


@pytest.mark.usefixtures("talented")
def test_who_is_stopped_does_not_depend_on_who_is_faster(opened: Opener) -> None:
    digests = set()
    for seed in range(3):
        epochs = opened()
        study, rng = epochs.study, np.random.default_rng(seed)
        with epochs.bench:
            while not epochs.finished:
                epochs.advance()
                count = epochs.sampler.write_due(study)
                asked = [study.ask() for _ in range(count)]
                for place in rng.permutation(count):
                    try:
                        study.tell(asked[place], PruningObjective(epochs)(asked[place]))
                    except optuna.TrialPruned:
                        study.tell(asked[place], state=TrialState.PRUNED)
        digests.add(digest_of(study))
    threads = opened()
    with threads.bench:
        threads.study.optimize(
            PruningObjective(threads), n_trials=36, n_jobs=2,
            callbacks=[ProjectorEvolution(threads)],
        )  # fmt: skip
    digests.add(digest_of(threads.study))
    assert len(digests) == 1


@pytest.mark.usefixtures("talented")
def test_a_generation_that_is_stopped_as_a_whole_does_not_end_the_search(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Workbench.measure

    def measured(self: Workbench, policy: Policy, basis: Basis, bar: float | None = None) -> Any:
        if bar is not None:
            raise Beaten(16, 1e3)
        return measure(self, policy, basis)

    monkeypatch.setattr(Workbench, "measure", measured)
    epochs = opened()
    with epochs.bench:
        search(epochs)
        trials = trials_of(epochs.study)
        assert epochs.finished
    assert sum(trial.measured for trial in trials) >= 12
    assert sum(trial.stopped for trial in trials) == 36 - sum(trial.measured for trial in trials)


@pytest.mark.usefixtures("talented")
def test_the_digest_tells_at_which_rung_somebody_was_stopped(
    opened: Opener,
) -> None:
    epochs = opened()
    with epochs.bench:
        search(epochs)
    before = digest_of(epochs.study)
    trials = epochs.study.get_trials(deepcopy=False)
    stopped = next(trial for trial in trials if trial.state == TrialState.PRUNED)
    stopped.user_attrs["rung"] += 1
    assert digest_of(epochs.study) != before


@pytest.mark.usefixtures("talented")
def test_everybody_is_told_how_many_were_stopped(
    opened: Opener, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = opened()
    with epochs.bench:
        search(epochs, Screen("tiny").watch)
        count = sum(trial.stopped for trial in trials_of(epochs.study))
        assert f"36/36 trials, {count} of them stopped early, 0 failed, best quality" in (
            " ".join(capsys.readouterr().out.split())
        )
        found = document(facts_of(epochs.study))
        assert f"{count} policies were stopped before they had answered" in note(
            epochs.study, found
        )
    assert found["trials"]["pruned"] == count
    assert found["trials"]["complete"] == 36 - count
    page = Console(width=200, record=True, file=io.StringIO())
    page.print(summary(found))
    assert f"({36 - count} complete, {count} stopped early)" in page.export_text()
    page.file.close()


@pytest.mark.slow
def test_workers_that_die_stop_whom_one_process_stops(tmp_path: Path) -> None:
    file = tmp_path / "alone.toml"
    told = SMOKE.read_text().replace("[search]", "[search]\nrungs = [16, 32, 48]")
    file.write_text(f'[study]\nname = "same"\n{told}')
    crowd = clone(calibrate_file(file), tmp_path / "crowd")
    url = f"sqlite:///{file.with_suffix('.db')}"
    study = storage.open_study(storage.open_storage(url), "same")
    with continued(study, url) as epochs:
        search(epochs)
    assert any(trial.stopped for trial in trials_of(study))
    shared = f"sqlite:///{crowd.with_suffix('.db')}"
    worker = ("worker", "--storage", shared, "--study-name", "same")
    first, second = started(*worker), started(*worker)
    wait_for_trials(crowd.with_suffix(".db"), 15)
    first.kill()
    third = started(*worker)
    for process in (second, third):
        process.join(600)
        assert process.exitcode == 0
    assert digest_of(storage.open_study(storage.open_storage(shared), "same")) == digest_of(study)
