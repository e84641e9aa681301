"""Studies without labels: answers are published once, and reports name what they show."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from optuna.storages import InMemoryStorage

from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.policy import Policy
from effllava_optuna.search.runner import conclude, search
from effllava_optuna.search.session import SearchSession, open_session
from effllava_optuna.search.study_answers import final_samples, published_answers, stored_answers
from effllava_optuna.search.trial_export import _card
from effllava_optuna.storage.artifact_store import ArtifactStore, DirectoryArtifactStore
from effllava_optuna.storage.names import RESULTS, TASK
from effllava_optuna.storage.studies import create_study
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.tasks import (
    UNLABELLED,
    DenseAnswer,
    Digits,
    GradingRule,
    Sample,
    Split,
)
from tests.study_fixtures import invoke, write_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Study

    from effllava_optuna.surgery import LoadedModel

RULE = GradingRule("none", lambda _sample, _text: 0.0, new_tokens=2)
SIZES = {"proxy": 8, "validation": 6, "test": 6}


class Unlabelled(Digits):
    """The digits task without labels; every other question is open-ended."""

    def samples(self, split: Split) -> tuple[Sample, ...]:
        return tuple(
            replace(sample, answer=None, targets=(), rule=RULE)
            if number % 2
            else replace(sample, answer=UNLABELLED)
            for number, sample in enumerate(super().samples(split))
        )


def config_of(**quality: Any) -> StudyConfig:
    return StudyConfig.of(
        {
            "study": {"name": "agreement"},
            "model": {"path": "tiny", "device": "cpu"},
            "task": {"name": "digits", **SIZES},
            "latency": {"batch": 8, "repeats": 3, "seconds": 0.0, "checks": 4},
            "quality": {"measure": "agreement"} | quality,
            "search": {"epochs": 2, "generations": 1, "population": 4, "keep_ratio": 0.8},
            "projector": {"parts": 2, "steps": 1, "every": 1},
            "report": {"finalists": 2},
        }
    )


@pytest.fixture
def study() -> Study:
    return create_study(InMemoryStorage(), config_of())


@pytest.fixture
def opened(tiny: LoadedModel, study: Study, tmp_path: Path) -> Iterator[Any]:
    """A function that opens the study as another process does."""
    with ExitStack() as stack:

        def open_it(
            answers: dict[str, DenseAnswer] | None = None, **quality: Any
        ) -> SearchSession:
            inputs = stack.enter_context(
                study_inputs(config_of(**quality), tiny, Unlabelled(**SIZES), answers=answers)
            )
            store = ArtifactStore(DirectoryArtifactStore(tmp_path))
            return stack.enter_context(open_session(study, inputs, store))

        yield open_it


def test_the_answers_are_published_with_the_calibration_and_not_computed_again(
    opened: Any, study: Study, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published_answers(study) is None
    first = opened()
    answers = published_answers(study)
    assert answers == first.evaluator.calibration.answers
    assert answers is not None
    assert {answer.option is None for answer in answers.values()} == {True, False}
    first.close()
    monkeypatch.setattr("effllava_optuna.calibration.inputs.answer_questions", None)
    second = opened(answers)
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    state = second.epochs.epoch(0).weight_state
    assert second.evaluator.measure(policy, state).quality == pytest.approx(
        first.evaluator.measure(policy, state).quality
    )


def test_a_process_that_answered_otherwise_uses_the_published_answers(
    opened: Any, study: Study
) -> None:
    """Two processes may begin to calibrate at once, on different hardware."""
    opened().close()
    published = published_answers(study)
    assert published is not None
    own = {
        name: DenseAnswer("7") if answer.option is None else DenseAnswer(option=0)
        for name, answer in published.items()
    }
    assert own != published
    inputs = opened(own).evaluator.inputs
    assert inputs.answers == published
    assert {s.id: s.dense for s in inputs.proxy.samples} == published


def test_quality_is_the_agreement_minus_eta_times_risk(opened: Any, tiny: LoadedModel) -> None:
    session, policy = opened(), Policy.uniform(tiny.structure, ratio=0.5)
    state = session.epochs.epoch(0).weight_state
    measured = session.evaluator.measure(policy, state)
    eta = session.config.quality.eta
    assert 0.0 < measured.expected < 1.0
    assert measured.quality == pytest.approx(measured.expected - eta * measured.risk)
    dense = session.evaluator.measure(Policy.dense(tiny.structure), state)
    assert (dense.accuracy, dense.quality) == (1.0, pytest.approx(1.0, abs=1e-4))


def test_a_finished_study_says_that_it_shows_agreement(opened: Any, study: Study) -> None:
    session = opened()
    search(session)
    conclude(session)
    results = study.user_attrs[RESULTS]
    for split in ("proxy", "validation", "test"):
        assert results["dense"][f"accuracy_{split}"] == 1.0
        assert 0.0 <= results["chosen"][f"accuracy_{split}"] <= 1.0
    assert results["chosen"]["gap"] is not None
    assert set(study.user_attrs[TASK]["measures"].values()) == {"agreement"}
    card = _card(session, results["chosen"]["trial"], sequential=False)
    assert "without labels: the answers of the dense model took their place" in card.data
    assert [metric.name for metric in card.metrics[:2]] == [
        "agreement with the dense model, validation",
        "agreement with the dense model, test",
    ]
    assert read_study_facts(study).measures == study.user_attrs[TASK]["measures"]
    for split in (Split.VALIDATION, Split.TEST):
        stored = stored_answers(study, split)
        assert stored is not None
        assert {s.id: s.dense for s in final_samples(session, split)} == stored


def test_stored_answers_to_test_are_not_computed_again(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be killed between the answers and the results."""
    session = opened()
    first = final_samples(session, Split.TEST)
    monkeypatch.setattr("effllava_optuna.search.study_answers.answer_questions", None)
    again = final_samples(session, Split.TEST)
    assert [sample.dense for sample in again] == [sample.dense for sample in first]


@pytest.mark.studies
def test_the_commands_name_the_measure_of_each_split(checkpoint: Path, tmp_path: Path) -> None:
    """The digits task has labels: the search does not use them, validation and test do."""
    file = write_tiny(checkpoint, tmp_path)
    text = file.read_text().replace("generations = 2", "generations = 1")
    file.write_text(f'{text}\n[quality]\nmeasure = "agreement"\n')
    deep = invoke("check", file, "--deep").stdout
    assert "proxy: agreement, validation: accuracy, test: accuracy" in deep
    assert "the dense model answers, in the place of labels: '" in deep
    output = invoke("run", file).stdout
    assert "proxy agreement 1.000 (exp(-KL divergence" in output
    document = json.loads(invoke("report", file, "-f", "json").stdout)
    measures = {"proxy": "agreement", "validation": "accuracy", "test": "accuracy"}
    assert document["measures"] == measures
    assert document["chosen"]["gap"] is None
    assert {pair["measure"] for pair in document["comparisons"]} == {"accuracy"}
    table = invoke("report", file).stdout
    assert "Agreement (proxy) with the answers of the dense model" in table
    page = tmp_path / "page.html"
    invoke("report", file, "--out", page)
    assert "Accuracy on test against agreement on the proxy" in page.read_text()
