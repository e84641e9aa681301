"""What comes after an evaluation: a judge's score, and files for the benchmarks' own servers."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import SpecError
from effllava_optuna.study.jsonl import JsonLines
from effllava_optuna.tasks.choice import letter
from effllava_optuna.tasks.judge import LlavaBenchRow, MMVetRow, judge_llava_bench, judge_mmvet
from effllava_optuna.tasks.submit import (
    write_llava_bench,
    write_mmvet,
    write_scienceqa,
    write_vizwiz,
)
from effllava_optuna.tasks.verdict import Reply
from effllava_optuna.tasks.vqa import normalised

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.study.evaluation import Evaluated
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.tasks.verdict import Judge, Judged

JUDGED = ("mmvet", "llava-bench")
SUBMITTED = ("scienceqa", "vizwiz", *JUDGED)


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply of a judge.

    Attributes:
        id: Digest of the judge, of the prompt, and of how often it was asked.
        text: The reply.
        model: See `Reply`.
    """

    id: str
    text: str
    model: str


class CachedJudge:
    """A judge whose replies are stored in a file, so that none is paid for twice.

    Args:
        judge: Gives the replies that the file does not have.
        name: Its model id; the file may have replies of other judges.
        path: The file, see `JsonLines`.
        progress: Called with the number of stored replies.

    Raises:
        StudyError: The file is of another kind, or cannot be written.
    """

    def __init__(
        self, judge: Judge, name: str, path: Path, progress: Callable[[int], None]
    ) -> None:
        self.judge = judge
        self.name = name
        self.progress = progress
        self._replies = JsonLines(path, StoredReply, {"content": "replies of judges"})
        self._turns: Counter[str] = Counter()

    def __call__(self, prompt: str) -> Reply:
        """Return the reply to ``prompt``, the stored one if there is one.

        Raises:
            StudyError: It cannot be stored.
        """
        self._turns[prompt] += 1  # the same may be asked again, in the hope of another reply
        key = f"{self.name}\0{self._turns[prompt]}\0{prompt}"
        id_ = hashlib.sha256(key.encode()).hexdigest()
        if id_ not in self._replies.records:
            reply = self.judge(prompt)
            model = reply.model if isinstance(reply, Reply) else ""
            self._replies.append([StoredReply(id_, str(reply), model)])
        self.progress(len(self._replies.records))
        stored = self._replies.records[id_]
        return Reply(stored.text, stored.model)


def check_task(spec: StudySpec, option: str, known: tuple[str, ...]) -> None:
    """Refuse what the task has no use for.

    Raises:
        SpecError: The task is not among ``known``.
    """
    if spec.task.name not in known:
        raise SpecError(
            f"{option} is given, but task {spec.task.name!r} has none.",
            hint=f"It is for {', '.join(known)}.",
        )


def judged(
    spec: StudySpec, evaluated: Evaluated, judge: Judge, name: str, wording: Path | None
) -> Judged:
    """Let a judge grade the answers to MM-Vet or LLaVA-Bench.

    Args:
        spec: Names the benchmark.
        evaluated: The answers.
        judge: Gives a reply to a prompt.
        name: Its model id.
        wording: The official prompt, see `judge_mmvet` and `judge_llava_bench`; None: ours.

    Raises:
        TaskError: A row lacks what a judge must be told, or the judge cannot be asked.
    """
    if spec.task.name == "mmvet":
        rows = [
            MMVetRow(s.id, s.question, s.targets[-1], evaluated.texts[s.id], s.subsets)
            for s in evaluated.samples
        ]
        return judge_mmvet(rows, judge, name=name, prompt=wording)
    return judge_llava_bench(_wild(evaluated), judge, name=name, prompt=wording)


def told(verdict: Judged) -> dict[str, Any]:
    """Give what a judge found, for JSON."""
    return {
        "benchmark": verdict.name,
        "judge": verdict.judge,
        "answered_by": list(verdict.answered_by),
        "wording": str(verdict.wording),
        "score": verdict.score,
        "by_group": dict(verdict.by_group),
        "by_combination": dict(verdict.by_combination),
        "counted": verdict.counted,
        "failures": verdict.failures,
    }


def submit(spec: StudySpec, evaluated: Evaluated, path: Path) -> None:
    """Write the answers in the format of the benchmark's own script or server.

    Raises:
        TaskError: They cannot be written.
    """
    texts = {sample.id: evaluated.texts[sample.id] for sample in evaluated.samples}
    if spec.task.name == "mmvet":
        write_mmvet(path, texts)
    elif spec.task.name == "llava-bench":
        write_llava_bench(path, _wild(evaluated), evaluated.model)
    elif spec.task.name == "vizwiz":
        images = {name if "." in name else f"{name}.jpg": text for name, text in texts.items()}
        write_vizwiz(path, images, normalise=lambda text: normalised(text, "evalai"))
    else:
        harness = spec.task.harness or "llava"
        choices, right = {}, {}
        for sample in evaluated.samples:
            found = letter(texts[sample.id], len(sample.targets), harness)
            choices[sample.id] = -1 if found is None else found
            right[sample.id] = -1 if sample.answer is None else sample.answer
        write_scienceqa(path, choices, texts, right=right)


def _wild(evaluated: Evaluated) -> list[LlavaBenchRow]:
    return [
        LlavaBenchRow(
            s.id, s.question, s.context, s.right, evaluated.texts[s.id], (*s.subsets, "")[0]
        )
        for s in evaluated.samples
    ]
