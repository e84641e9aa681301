"""What comes after an evaluation: a judge's score, and files for the benchmarks' own servers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import SpecError, StudyError
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


@dataclass
class Remembered:
    """A judge whose replies are kept in a file: what was paid for is not asked again.

    Attributes:
        judge: Is asked what is not known yet.
        name: The model id of the judge; another one's replies do not count.
        path: The file, a reply a line.
        progress: Is told how many replies there are.
    """

    judge: Judge
    name: str
    path: Path
    progress: Callable[[int], None]

    def __post_init__(self) -> None:
        self._known: dict[str, Reply] = {}
        self._given: dict[str, int] = {}
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                self._known[found["key"]] = Reply(found["text"], found["model"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut short: it is asked again

    def __call__(self, prompt: str) -> Reply:
        """Give the reply to ``prompt``, the same one each time.

        Raises:
            StudyError: It cannot be kept.
        """
        # A judge may be asked the same twice, in the hope of another reply.
        self._given[prompt] = turn = self._given.get(prompt, 0) + 1
        key = hashlib.sha256(f"{self.name}\0{turn}\0{prompt}".encode()).hexdigest()
        if key not in self._known:
            said = self.judge(prompt)
            reply = said if isinstance(said, Reply) else Reply(said)
            line = json.dumps({"key": key, "text": str(reply), "model": reply.model})
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}")  # behind a line that a kill cut short, too
            except OSError as error:
                raise StudyError(
                    f"{self.path}: replies cannot be kept: {error}.", hint="Make room."
                ) from error
            self._known[key] = reply
        self.progress(len(self._known))
        return self._known[key]


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
