"""Process the answers of an evaluation: score them by a judge, or write a submission file."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ConfigError
from effllava_optuna.evaluation.record_file import RecordFile
from effllava_optuna.tasks.judging.benchmark_judges import (
    AnsweredQuestion,
    judge_llava_bench,
    judge_mmvet,
)
from effllava_optuna.tasks.judging.judgements import JudgeReply
from effllava_optuna.tasks.judging.openai_judge import OpenAIJudge
from effllava_optuna.tasks.judging.submission import (
    write_llava_bench,
    write_mmvet,
    write_scienceqa,
    write_vizwiz,
)
from effllava_optuna.tasks.scoring.multiple_choice import parse_choice
from effllava_optuna.tasks.scoring.short_answers import normalise_answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.evaluation.split_evaluation import EvaluationResult
    from effllava_optuna.tasks.judging.judgements import Judge

# Sampling of the judge in the official script of each benchmark; see `OpenAIJudge`.
_JUDGE_SAMPLING: dict[str, dict[str, Any]] = {
    "mmvet": {"temperature": 0.0, "max_tokens": 3},
    "llava-bench": {"temperature": 0.2, "max_tokens": 1024},
}
_SUBMISSION_TASKS = ("scienceqa", "vizwiz", "mmvet", "llava-bench")


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """A judge behind an OpenAI-compatible server.

    Attributes:
        model: Model id of the judge.
        url: Base URL of the server.
        key_variable: Environment variable with the API key; empty: no key is sent.
        prompt: The official prompt, see `judge_mmvet` and `judge_llava_bench`; None: the prompt
            of this package.
    """

    model: str
    url: str
    key_variable: str
    prompt: Path | None = None


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A stored reply of a judge.

    Attributes:
        id: Digest of the judge, the prompt, and how often the prompt was sent before.
        text: The reply.
        model: Model that replied, see `JudgeReply`.
    """

    id: str
    text: str
    model: str


class CachingJudge:
    """A judge whose replies are stored in a file, so that none is paid for twice.

    Args:
        judge: Returns the replies that the file does not have.
        name: Its model id; the file may have replies of other judges.
        path: The file, see `RecordFile`.
        progress: Called with the number of stored replies.

    Raises:
        StudyError: The file has other content, or cannot be written.
    """

    def __init__(
        self, judge: Judge, name: str, path: Path, progress: Callable[[int], None]
    ) -> None:
        self.judge = judge
        self.name = name
        self.progress = progress
        self._replies = RecordFile(path, StoredReply, {"content": "replies of judges"})
        self._attempts: Counter[str] = Counter()

    def __call__(self, prompt: str) -> JudgeReply:
        """Return the reply to ``prompt``, the stored one if there is one.

        Raises:
            StudyError: The reply cannot be stored.
        """
        self._attempts[prompt] += 1  # a prompt is sent again if its reply cannot be read
        key = f"{self.name}\0{self._attempts[prompt]}\0{prompt}"
        reply_id = hashlib.sha256(key.encode()).hexdigest()
        if reply_id not in self._replies.records:
            reply = self.judge(prompt)
            model = reply.model if isinstance(reply, JudgeReply) else ""
            self._replies.append([StoredReply(reply_id, str(reply), model)])
        self.progress(len(self._replies.records))
        stored = self._replies.records[reply_id]
        return JudgeReply(stored.text, stored.model)


def connect_judge(config: StudyConfig, options: JudgeOptions) -> OpenAIJudge:
    """Create the judge of a study's benchmark; no request is sent.

    Raises:
        ConfigError: The task of the study is not scored by a judge.
        TaskError: The options are not valid, or httpx2 is not installed.
    """
    _check_task(config, "--judge", tuple(_JUDGE_SAMPLING))
    sampling = _JUDGE_SAMPLING[config.task.name]
    return OpenAIJudge(options.model, options.url, options.key_variable or None, **sampling)


def check_submission(config: StudyConfig, *, letters: bool) -> None:
    """Check whether an evaluation can be written as a submission file.

    Raises:
        ConfigError: The benchmark has no such file, or no text is generated.
    """
    _check_task(config, "--submit", _SUBMISSION_TASKS)
    if letters:
        raise ConfigError(
            "--submit and --letters are both given, but --letters generates no text.",
            hint="Remove --letters.",
        )


def _check_task(config: StudyConfig, option: str, tasks: tuple[str, ...]) -> None:
    if config.task.name not in tasks:
        raise ConfigError(
            f"{option} is given, but task {config.task.name!r} does not support it.",
            hint=f"Use it with {', '.join(tasks)}.",
        )


def judge_answers(
    config: StudyConfig, result: EvaluationResult, judge: Judge, options: JudgeOptions
) -> dict[str, Any]:
    """Score the answers to MM-Vet or LLaVA-Bench by a judge, and return JSON values.

    Raises:
        TaskError: A row lacks what the judge needs, or the judge fails.
    """
    score_by_judge = judge_mmvet if config.task.name == "mmvet" else judge_llava_bench
    score = score_by_judge(
        _answered_questions(result), judge, name=options.model, prompt=options.prompt
    )
    return {
        "benchmark": score.benchmark,
        "judge": score.judge,
        "answered_by": list(score.reply_models),
        "wording": str(score.prompt_origin),
        "score": score.score,
        "by_group": score.by_category,
        "by_combination": score.by_combination,
        "counted": score.n_parsed,
        "failures": score.n_unparsed,
    }


def write_submission(config: StudyConfig, result: EvaluationResult, path: Path) -> None:
    """Write the answers in the format of the benchmark's own script or server.

    Raises:
        TaskError: They cannot be written.
    """
    texts = {sample.id: result.texts[sample.id] for sample in result.samples}
    if config.task.name == "mmvet":
        write_mmvet(path, texts)
    elif config.task.name == "llava-bench":
        write_llava_bench(path, _answered_questions(result), result.model)
    elif config.task.name == "vizwiz":
        answers = {name if "." in name else f"{name}.jpg": text for name, text in texts.items()}
        write_vizwiz(path, answers, normalise=lambda text: normalise_answer(text, "evalai"))
    else:
        harness = config.task.harness or "llava"
        choices, correct = {}, {}
        for sample in result.samples:
            choice = parse_choice(texts[sample.id], len(sample.targets), harness)
            choices[sample.id] = -1 if choice is None else choice
            correct[sample.id] = -1 if sample.answer is None else sample.answer
        write_scienceqa(path, choices, texts, correct=correct)


def _answered_questions(result: EvaluationResult) -> list[AnsweredQuestion]:
    return [
        AnsweredQuestion(
            id=sample.id,
            question=sample.question,
            reference=sample.targets[-1],
            prediction=result.texts[sample.id],
            categories=sample.subsets,
            caption=sample.context,
        )
        for sample in result.samples
    ]
