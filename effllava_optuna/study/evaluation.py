"""Evaluate a checkpoint, or the policy of a trial, on the task of a study."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import SpecError, StudyError, TaskError
from effllava_optuna.objectives import Answered, examine
from effllava_optuna.policy import Policy
from effllava_optuna.report import mark, marks
from effllava_optuna.study import storage
from effllava_optuna.study.grading import constant_of, rule_of
from effllava_optuna.study.jsonl import JsonLines
from effllava_optuna.study.loop import continued
from effllava_optuna.study.records import record_of
from effllava_optuna.study.task import unchecked
from effllava_optuna.surgery import fingerprint, load, running
from effllava_optuna.tasks import DataTask, Split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.study.target import Target
    from effllava_optuna.study.workbench import Say
    from effllava_optuna.surgery import Loaded
    from effllava_optuna.tasks import Sample, Task

FULL = "full"
CHOSEN, DENSE = "chosen", "dense"


@dataclass(frozen=True, slots=True)
class Exam:
    """What is asked of a model.

    Attributes:
        split: A split of the study, or `FULL`: all rows of the data that test is drawn from.
        letters: Compare the options of closed questions; if not, answers are written and read.
        limit: The most samples, the first ones; None: all.
        batch_size: Samples at once; None: what fits.
    """

    split: str = Split.TEST
    letters: bool = False
    limit: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """What came of an exam.

    Attributes:
        document: See `marks`; for JSON and tables.
        samples: What was asked.
        texts: What was written, by sample.
        model: What answered.
    """

    document: dict[str, Any]
    samples: Sequence[Sample]
    texts: Mapping[str, str]
    model: str


def samples_for(task: Task, exam: Exam) -> tuple[Sample, ...]:
    """Give what an exam asks, if it has no limit.

    Raises:
        TaskError: The task has no rows beside those of its splits.
    """
    if exam.split != FULL:
        return task.samples(Split(exam.split))
    if isinstance(task, DataTask):
        return task.everything(Split.TEST)
    raise TaskError(
        f"Task {task.name!r} has no split 'full'.", hint="Use proxy, validation or test."
    )


@contextmanager
def network_of(target: Target, spec: StudySpec, model: str, say: Say) -> Iterator[_Network]:
    """Give the network that is named, ready to answer.

    Args:
        target: The study.
        spec: Its spec.
        model: ``dense``, ``chosen``, the number of a trial, a directory or a hub id.
        say: Is told what is under way.

    Raises:
        StudyError: There is no such trial.
        ModelError: There is no such checkpoint.
    """
    if model != CHOSEN and not model.isdecimal():
        say("loading the model", 0.0)
        source = spec.model.path if model == DENSE else model
        loaded = load(source, device=spec.model.device, dtype=spec.model.dtype)
        yield _Network(loaded, unchecked(spec), source, fingerprint(loaded.model))
        return
    study = target.study()
    number = study.user_attrs.get(storage.CHOSEN) if model == CHOSEN else int(model)
    if number is None:
        raise StudyError(
            f"Study {study.study_name!r} has chosen no trial yet.",
            hint="Finish it with `resume`, or name a trial.",
        )
    trials = study.get_trials(deepcopy=False)
    if number >= len(trials) or not record_of(trials[number]).measured:
        raise StudyError(
            f"Trial {number} of {study.study_name!r} was not measured.",
            hint="Name a complete trial; `status` lists the front.",
        )
    trial = record_of(trials[number])
    with continued(study, target.url, say) as epochs:
        policy, basis = Policy.of(epochs.bench.anatomy, trial.keep), epochs.basis(trial.basis)
        with running(epochs.bench.loaded, basis, policy) as network:
            digest = f"{epochs.bench.bundle_digest} {trial.basis} {list(trial.keep)}"
            told = f"trial {number} of {study.study_name}"
            yield _Network(network, epochs.bench.task, told, digest)


@dataclass(frozen=True)
class _Network:
    """A network that can answer: its task, what to call it, and what identifies it."""

    loaded: Loaded
    task: Task
    name: str
    digest: str


def evaluate(
    target: Target,
    spec: StudySpec,
    model: str,
    exam: Exam,
    out: Path,
    say: Say,
    *,
    overwrite: bool = False,
) -> Evaluated:
    """Let a model answer a split, and grade the answers.

    What ``out`` has of the answers is not computed again.

    Raises:
        SpecError: ``out`` is a directory.
        StudyError: ``out`` has answers of something else, or there is no such trial.
        TaskError: There is no such split.
        ModelError: There is no such checkpoint.
    """
    _refuse_directory(out)
    with network_of(target, spec, model, say) as network:
        whole = samples_for(network.task, exam)
        about = {
            "model": network.digest,
            "task": network.task.digest,
            "split": exam.split,
            "system": sorted({sample.system for sample in whole}),
            "rule": rule_of(whole, letters=exam.letters),
            "new_tokens": max([s.rule.new_tokens for s in whole if s.rule] or [0]),
        }
        samples = whole[: exam.limit]
        answers = JsonLines(out, Answered, about, overwrite=overwrite)
        known = sum(sample.id in answers.records for sample in samples)
        say(f"answering, {known:,} of {len(samples):,} answers are there", 0.0)
        with network.loaded.lock:
            examine(
                network.loaded,
                samples,
                answers.append,
                letters=exam.letters,
                batch_size=exam.batch_size,
                done=answers.records,
                # A line every tenth where there is no bar.
                progress=lambda share: say(f"answering, {int(10 * share) * 10} %", share),
            )
        seen = {sample.unit for sample in network.task.samples(Split.PROXY)}
        document = _document(network.name, network.task.name, exam, samples, answers, seen)
    texts = {name: answer.text for name, answer in answers.records.items()}
    return Evaluated(document, samples, texts, network.name)


def _refuse_directory(out: Path) -> None:
    """Refuse before a model is loaded what can be told by then."""
    with suppress(OSError):  # `JsonLines` says what else is wrong
        if out.is_dir():
            raise SpecError(f"--out {out} is a directory.", hint="Name a file.")


def _document(
    model: str,
    task: str,
    exam: Exam,
    samples: Sequence[Sample],
    answers: JsonLines[Answered],
    seen: set[str],
) -> dict[str, Any]:
    graded = [
        (sample, score)
        for sample in samples
        if (score := answers.records[sample.id].score) is not None
    ]
    scores, units = [score for _, score in graded], [sample.unit for sample, _ in graded]
    return {
        "model": model,
        "task": task,
        "split": exam.split,
        "rule": rule_of(samples, letters=exam.letters),
        "all": mark(scores, units) if graded else None,
        "subsets": marks(scores, units, [sample.subsets for sample, _ in graded]),
        "constant": constant_of(samples),
        "unlabelled": len(samples) - len(graded),
        "seen": 0 if exam.split == Split.PROXY else sum(sample.unit in seen for sample in samples),
        "answers": str(answers.path),
    }
