"""The answers of the dense model that a study has stored, and the samples that they grade.

The answers to the proxy set are part of the calibration. Those to validation and test are
generated after the search, once, and stored in the study before anything is scored by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.objectives import answer_questions, measure_of
from effllava_optuna.storage.control_study import load_control_study, published_epochs
from effllava_optuna.storage.names import ANSWERS
from effllava_optuna.storage.storage_internals import storage_is_read_only, storage_of
from effllava_optuna.tasks import answers_from_json, answers_to_json, with_dense_answers

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.tasks import DenseAnswers, Sample, Split


def published_answers(study: Study) -> DenseAnswers | None:
    """Return the dense model's answers to the proxy set; None before they are published."""
    control = load_control_study(study)
    epochs = [] if control is None else published_epochs(control)
    return (
        answers_from_json(epochs[0].user_attrs["calibration"].get("answers", {}))
        if epochs
        else None
    )


def stored_answers(study: Study, split: str) -> DenseAnswers | None:
    """Return the dense model's answers to validation or test; None before they are stored."""
    stored = study.user_attrs.get(_name(split))
    return None if stored is None else answers_from_json(stored)


def final_samples(session: SearchSession, split: Split) -> tuple[Sample, ...]:
    """Return the samples of validation or test; with answers of the dense model if one has none.

    Args:
        session: A study whose search is over.
        split: Validation or test.
    """
    evaluator, study = session.evaluator, session.study
    samples = evaluator.inputs.task.samples(split)
    if measure_of(samples, evaluator.config.quality.measure) == "accuracy":
        return samples
    answers = stored_answers(study, split)
    if answers is None:
        answers = answer_questions(
            evaluator.loaded,
            samples,
            lambda share: session.report_stage(f"answering {split} with the dense model", share),
        )
        if not storage_is_read_only(storage_of(study)):
            study.set_user_attr(_name(split), answers_to_json(answers))
    return with_dense_answers(samples, answers)


def _name(split: str) -> str:
    return f"{ANSWERS}:{split}"
