from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from effllava_optuna.samplers import (
    EpochNSGAIISampler,
    Seed,
    duplicate_of,
    effective_trials,
    epoch_finished,
    fail_lost_trials,
    slot_of,
)
from tests.samplers.toy import (
    DIRECTIONS,
    ToySpace,
    digest,
    measure,
    objective_of,
    sampler_of,
    suggest,
    toy_space,
)

SPACE = toy_space(budget=40.0)


def study_of(sampler: EpochNSGAIISampler) -> optuna.Study:
    return optuna.create_study(directions=DIRECTIONS, sampler=sampler)


def run(n_trials: int, space: ToySpace = SPACE, **options: Any) -> optuna.Study:
    study = study_of(sampler_of(space, **options))
    study.optimize(objective_of(space), n_trials=n_trials)
    return study


def positions(study: optuna.Study) -> list[tuple[int, int]]:
    slots = [slot_of(trial) for trial in study.trials]
    return [(slot.generation, slot.index) for slot in slots if slot is not None]


def test_plain_optimize_fills_generations_in_order() -> None:
    study = run(18)
    assert positions(study) == [(g, i) for g in range(3) for i in range(6)]
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert [trial.user_attrs["kind"] for trial in study.trials] == ["random"] * 6 + ["child"] * 12


def test_every_slot_carries_its_attributes_from_the_start() -> None:
    for trial in run(8).trials:
        assert trial.user_attrs["space"] == "toy"
        assert trial.user_attrs["size"] == sum(trial.params.values())
        assert trial.user_attrs["epoch"] == trial.user_attrs["attempt"] == 0
        assert trial.constraints == {"0": sum(trial.params.values()) - 40.0}
        assert all(type(value) is int for value in trial.params.values())


def test_the_objective_sees_the_attributes_of_its_trial() -> None:
    seen = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        seen.append((trial.user_attrs["generation"], trial.user_attrs["index"]))
        return measure(suggest(trial, SPACE))

    study_of(sampler_of(SPACE)).optimize(objective, n_trials=7)
    assert seen == [(0, i) for i in range(6)] + [(1, 0)]


def test_same_seed_same_search() -> None:
    assert digest(run(18)) == digest(run(18))
    assert digest(run(18)) != digest(run(18, seed=1))


def test_a_queue_filled_ahead_or_on_demand_gives_the_same_search() -> None:
    sampler = sampler_of(SPACE)
    study = study_of(sampler)
    for _ in range(3):
        assert sampler.queue_due_trials(study) == 6
        assert sampler.queue_due_trials(study) == 0
        study.optimize(objective_of(SPACE), n_trials=6)
    assert digest(study) == digest(run(18))


def test_the_order_of_completion_does_not_matter() -> None:
    sampler = sampler_of(SPACE)
    study = study_of(sampler)
    for turn in range(3):
        sampler.queue_due_trials(study)
        trials = [study.ask() for _ in range(6)]
        for i in np.random.default_rng(turn).permutation(6):
            study.tell(trials[i], measure(suggest(trials[i], SPACE)))
    assert digest(study) == digest(run(18))


def test_a_failed_slot_is_tried_once_more_with_the_same_genome() -> None:
    study = study_of(sampler_of(SPACE))
    inner = objective_of(SPACE)

    def objective(trial: optuna.Trial) -> Any:
        once = trial.user_attrs["attempt"] == 0 and trial.user_attrs["index"] == 2
        always = trial.user_attrs["index"] == 4
        return float("nan") if once or always else inner(trial)

    study.optimize(objective, n_trials=9)
    attempts = [t for t in study.trials if t.user_attrs["generation"] == 0]
    by_index = {i: [t for t in attempts if t.user_attrs["index"] == i] for i in range(6)}
    assert {i: len(group) for i, group in by_index.items()} == {0: 1, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1}
    for group in by_index.values():
        assert len({tuple(sorted(trial.params.items())) for trial in group}) == 1
        assert [trial.user_attrs["attempt"] for trial in group] == list(range(len(group)))
    effective = effective_trials(study.trials)
    assert {s.index for s, t in effective.items() if t.state == TrialState.FAIL} == {4}
    assert max(effective).generation == 1  # the search continues after a slot that failed twice


def test_a_retried_failure_does_not_change_the_search() -> None:
    study, inner, failed = study_of(sampler_of(SPACE)), objective_of(SPACE), set()

    def objective(trial: optuna.Trial) -> Any:
        key = (trial.user_attrs["generation"], trial.user_attrs["index"])
        if key in {(0, 0), (1, 5)} and key not in failed:
            failed.add(key)
            return float("nan")
        return inner(trial)

    study.optimize(objective, n_trials=20)
    assert digest(study) == digest(run(18))


def test_pruned_trials_finish_their_slot_and_are_not_parents() -> None:
    study, inner = study_of(sampler_of(SPACE)), objective_of(SPACE)

    def objective(trial: optuna.Trial) -> Any:
        if trial.user_attrs["generation"] == 0 and trial.user_attrs["index"] > 0:
            raise optuna.TrialPruned
        return inner(trial)

    study.optimize(objective, n_trials=12)
    kinds = [trial.user_attrs["kind"] for trial in study.trials]
    assert kinds == ["random"] * 12  # one complete trial has no partner


def test_an_interrupted_wait_leaves_nothing_running() -> None:
    def broken(study: optuna.Study) -> ToySpace:
        raise KeyboardInterrupt

    study = study_of(EpochNSGAIISampler(broken, population_size=6))
    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective_of(SPACE), n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    study.sampler = sampler_of(SPACE)
    study.optimize(objective_of(SPACE), n_trials=6)
    assert digest(study) == digest(run(6))


def test_a_lost_trial_is_failed_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(sampler_of(SPACE))
    with monkeypatch.context() as patch:
        patch.setattr("effllava_optuna.samplers._sampler.write_owner", lambda study, trial: None)
        study.ask()  # asked by a process that dies before it is the owner
    assert fail_lost_trials(study, grace_seconds=0) == [0]
    study.optimize(objective_of(SPACE), n_trials=18)
    assert digest(study) == digest(run(18))


def test_enqueued_trials_are_measured_and_are_not_parents() -> None:
    study = study_of(sampler_of(SPACE))
    best = {"g0": 1, "g1": 1, "g2": 1, "g3": 1}
    study.enqueue_trial(best)
    study.enqueue_trial({"g1": 3}, user_attrs={"note": "own"})
    study.optimize(objective_of(SPACE), n_trials=14)
    first, second = study.trials[:2]
    assert first.params == best
    assert second.params["g1"] == 3
    assert second.user_attrs == {"note": "own", "space": "toy", "kind": "user", "epoch": 0}
    assert sum(second.params.values()) <= 40
    assert slot_of(first) is slot_of(second) is None
    assert digest(study) == digest(run(12))


def test_an_epoch_follows_when_the_space_changes() -> None:
    spaces = [SPACE]
    study = study_of(EpochNSGAIISampler(lambda study: spaces[-1], population_size=6))

    def hook(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        epoch = spaces[-1].epoch
        trials = study.get_trials(deepcopy=False)
        if epoch_finished(trials, epoch, population_size=6, generations=2):
            elites = [t for t in study.best_trials if t.user_attrs["epoch"] == epoch][:2]
            levels = dict.fromkeys(SPACE.levels, (2, 5, 9, 16))
            seeds = [Seed(elite.params, "reeval", elite.number) for elite in elites]
            spaces.append(replace(SPACE, levels=levels, epoch=epoch + 1, seeds=seeds))

    study.optimize(lambda trial: measure(suggest(trial, SPACE)), n_trials=36, callbacks=[hook])
    assert [trial.user_attrs["epoch"] for trial in study.trials] == [0] * 12 + [1] * 12 + [2] * 12
    later = [trial for trial in study.trials[12:] if trial.user_attrs["kind"] == "child"]
    assert len(later) == 20
    assert all(set(trial.params.values()) <= {2, 5, 9, 16} for trial in later)
    reeval = study.trials[12]
    assert reeval.user_attrs["kind"] == "reeval"
    assert reeval.params == study.trials[reeval.user_attrs["origin"]].params


def test_queued_trials_of_an_earlier_epoch_are_withdrawn() -> None:
    spaces = [SPACE]
    sampler = EpochNSGAIISampler(lambda study: spaces[-1], population_size=6)
    study = study_of(sampler)
    sampler.queue_due_trials(study)
    spaces.append(replace(SPACE, epoch=1))
    assert sampler.queue_due_trials(study) == 6
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 6 + ["WAITING"] * 6


def test_a_trial_without_a_slot_takes_over_a_queued_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(SPACE)
    study = study_of(sampler)
    with monkeypatch.context() as patch:
        # Another worker queues the generation after `ask` has read the queue.
        patch.setattr(
            study, "_pop_waiting_trial_id", lambda: sampler.queue_due_trials(study) and None
        )
        trial = study.ask()
    study.tell(trial, measure(suggest(trial, SPACE)))
    states = [t.state.name for t in study.trials]
    assert states == ["FAIL"] + ["WAITING"] * 5 + ["COMPLETE"]
    study.optimize(objective_of(SPACE), n_trials=17)
    assert digest(study) == digest(run(18))


def test_a_duplicate_is_known_before_it_is_evaluated() -> None:
    sampler = sampler_of(SPACE)
    study = study_of(sampler)
    sampler.queue_due_trials(study)
    study.add_trial(study.trials[2])
    assert [duplicate_of(study, number) for number in range(7)] == [None] * 6 + [2]
    study.optimize(objective_of(SPACE), n_trials=7, catch=(RuntimeError,))
    assert study.trials[6].state == TrialState.FAIL
    study.optimize(objective_of(SPACE), n_trials=12)
    assert digest(study) == digest(run(18))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 1}, "population_size must be at least 2, not 1."),
        ({"seed": -1}, "seed must not be negative, not -1."),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochNSGAIISampler(None, **options)


@pytest.mark.parametrize("value", ["12", None, [3], float("nan")])
def test_an_enqueued_value_that_is_not_a_number_fails_its_trial_alone(value: Any) -> None:
    study = study_of(sampler_of(SPACE))
    study.add_trial(
        create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"g1": value}})
    )
    with pytest.raises(UpdateFinishedTrialError, match=r"g1 = .* is not a number"):
        study.ask()
    assert study.trials[0].state == TrialState.FAIL
    study.optimize(objective_of(SPACE), n_trials=12)
    assert digest(study) == digest(run(12))


def test_a_trial_that_a_user_enqueues_has_a_space_after_the_last_slot() -> None:
    def over(_: object) -> ToySpace:
        raise RuntimeError("no slot is due")

    sampler = sampler_of(SPACE)
    study = study_of(sampler)
    study.optimize(objective_of(SPACE), n_trials=6)
    sampler.user_space, sampler._space = (lambda _: SPACE), over
    study.enqueue_trial({"g1": 3})
    study.optimize(objective_of(SPACE), n_trials=1)
    last = study.trials[-1]
    assert last.state == TrialState.COMPLETE
    assert last.params["g1"] == 3
    assert last.user_attrs["kind"] == "user"
