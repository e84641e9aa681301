"""Scores of MM-Vet and LLaVA-Bench (in the wild) by a language model as judge.

A judge is any function from a prompt to a reply; `OpenAIJudge` sends prompts to a server. Replies
that cannot be parsed are excluded and counted. Both official scripts include them in the mean:
that of MM-Vet as 0, that of LLaVA-Bench as -1 for both answers.

Published scores come from one judge (gpt-4-0613 for MM-Vet, gpt-4-0314 for LLaVA-Bench) and the
official prompt. Scores by another judge, or with the built-in prompt of this package, can be
compared with each other, but not with published scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.judging.judge_prompts import (
    load_llava_bench_prompt,
    load_mmvet_prompt,
)
from effllava_optuna.tasks.judging.judgements import JudgedScore, Judgement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from effllava_optuna.tasks.judging.judge_prompts import JudgePrompt
    from effllava_optuna.tasks.judging.judgements import Judge


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question of a benchmark, its reference answer, and the prediction of a model.

    Attributes:
        id: Unique id, such as ``v1_0`` (MM-Vet) or ``0`` (LLaVA-Bench).
        question: As in the dataset.
        reference: The reference answer; that of MM-Vet has <AND> or <OR> between its parts.
        prediction: The answer of the evaluated model.
        categories: MM-Vet: at least one capability of rec, ocr, know, gen, spat, math.
            LLaVA-Bench: exactly one of conv, detail, complex.
        caption: Description of the image, which the judge of LLaVA-Bench reads instead of it.
    """

    id: str
    question: str
    reference: str
    prediction: str
    categories: tuple[str, ...]
    caption: str = ""


def judge_mmvet(
    rows: Sequence[AnsweredQuestion],
    judge: Judge,
    *,
    name: str,
    prompt: str | Path | None = None,
    attempts: int = 5,
) -> JudgedScore:
    """Score answers to MM-Vet (Yu et al. 2023, arXiv 2308.02490) by a judge.

    As in ``mm-vet_evaluator.py`` (yuweihao/MM-Vet), the row is appended to a table of examples,
    and the judge generates the missing number. The official judge generates at most 3 tokens at
    temperature 0 (0.5 more at each further attempt), and the paper reports the mean of 5 runs.

    Args:
        rows: At least one row; unique ids.
        judge: Called once for each row, and again with a reminder of the format while its reply
            cannot be parsed.
        name: Model id of the judge.
        prompt: The official ``mm-vet_evaluator.py`` as a path, or a text. None: the built-in
            prompt, whose scores cannot be compared with published ones.
        attempts: Largest number of calls for a row, at least 1.

    Raises:
        TaskError: There are no rows, an id occurs twice, a row has no category, ``prompt``
            cannot be used, or the judge fails.
    """
    return _judge_rows(_MMVET, rows, judge, name, load_mmvet_prompt(prompt), attempts)


def judge_llava_bench(
    rows: Sequence[AnsweredQuestion],
    judge: Judge,
    *,
    name: str,
    prompt: str | Path | None = None,
    attempts: int = 3,
) -> JudgedScore:
    """Score answers to LLaVA-Bench (in the wild) (Liu et al. 2023, arXiv 2304.08485) by a judge.

    As in ``eval_gpt_review_bench.py`` and ``summarize_gpt_review.py`` (haotian-liu/LLaVA), the
    judge reads the caption, the question, the reference (first) and the prediction, and scores
    both from 1 to 10. The official judge generates at most 1024 tokens at temperature 0.2 with a
    system message and is called once for each row, and the official script rounds the means to
    three digits before it divides them.

    Args:
        rows: At least one row; unique ids.
        judge: See `judge_mmvet`.
        name: Model id of the judge.
        prompt: The official ``rule.json`` as a path, or a text. None: the built-in prompt.
        attempts: Largest number of calls for a row, at least 1.

    Raises:
        TaskError: See `judge_mmvet`, or a row has an unknown category.
    """
    return _judge_rows(_LLAVA_BENCH, rows, judge, name, load_llava_bench_prompt(prompt), attempts)


def parse_mmvet_reply(reply: str) -> tuple[float, float] | None:
    """Parse the first token of ``reply`` as the correctness of a prediction, in [0, 1].

    As ``runs`` of ``mm-vet_evaluator.py`` (yuweihao/MM-Vet), except that any white space ends the
    token and may precede it, and that ``nan`` is not a number.

    Returns:
        The score 1 of the reference, and the correctness; None if there is none.

    Example:
        >>> [parse_mmvet_reply(reply) for reply in ("0.7 because", "about 0.7", "7")]
        [(1.0, 0.7), None, None]
    """
    token, *_ = reply.split(maxsplit=1) or [""]
    correctness = _parse_number(token, maximum=1)
    return None if correctness is None else (1.0, correctness)


def parse_llava_bench_reply(reply: str) -> tuple[float, float] | None:
    r"""Parse the first line of ``reply`` as the scores of reference and prediction, in [0, 10].

    As ``parse_score`` of ``eval_gpt_review_bench.py`` (haotian-liu/LLaVA), the line must have
    exactly one space or comma, between the two numbers.

    Returns:
        The two scores; None if there are none.

    Example:
        >>> [parse_llava_bench_reply(reply) for reply in ("8 6.5\nBecause", "8, 6", "80 65")]
        [(8.0, 6.5), None, None]
    """
    parts = reply.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    match [_parse_number(part, maximum=10) for part in parts]:
        case [float(reference), float(prediction)]:
            return reference, prediction
    return None


def _parse_number(text: str, maximum: float) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= maximum else None


@dataclass(frozen=True, slots=True)
class _JudgedBenchmark:
    """The parts of a judged benchmark that `_judge_rows` needs.

    Attributes:
        name: Name of the benchmark.
        format_question: Returns what the judge receives for a prompt and a row.
        parse_reply: Returns the scores of reference and prediction; None: the reply has none.
        reminder: Appended to the question while replies cannot be parsed.
        categories: The known categories; empty: any.
        multi_label: Whether a question can have several categories.
    """

    name: str
    format_question: Callable[[str, AnsweredQuestion], str]
    parse_reply: Callable[[str], tuple[float, float] | None]
    reminder: str
    categories: tuple[str, ...] = ()
    multi_label: bool = False

    def check_categories(self, row: AnsweredQuestion) -> None:
        """Raise `TaskError` if the categories of ``row`` are unknown, too few or too many."""
        too_many = len(row.categories) > 1 and not self.multi_label
        unknown = self.categories and not set(row.categories) <= set(self.categories)
        if not row.categories or too_many or unknown:
            raise TaskError(
                f"Row {shorten(row.id)} of {self.name} has the categories {list(row.categories)}.",
                hint=f"Use one of {', '.join(self.categories)}."
                if self.categories
                else "Use those of the dataset, such as rec and ocr.",
            )


def _judge_rows(
    benchmark: _JudgedBenchmark,
    rows: Sequence[AnsweredQuestion],
    judge: Judge,
    judge_name: str,
    prompt: JudgePrompt,
    attempts: int,
) -> JudgedScore:
    if attempts < 1:
        raise TaskError(f"A judge cannot be called {attempts} times.", hint="Use at least 1.")
    if not rows:
        raise TaskError("There are no answers to judge.", hint="Check the rows.")
    ids: set[str] = set()
    for row in rows:
        if row.id in ids:
            raise TaskError(
                f"Row {shorten(row.id)} occurs twice.", hint="Keep one answer per question."
            )
        ids.add(row.id)
        benchmark.check_categories(row)
    judgements = []
    for row in rows:
        question = benchmark.format_question(prompt.text, row)
        reply = _reply_of(judge, question, row)
        for _ in range(attempts - 1):
            if benchmark.parse_reply(reply) is not None:
                break
            # A judge at temperature 0 would give the same reply to the same question.
            reply = _reply_of(judge, question + benchmark.reminder, row)
        scores = benchmark.parse_reply(reply)
        categories = tuple(sorted(set(row.categories)))
        judgements.append(Judgement.from_reply(row.id, scores, reply, categories))
    return JudgedScore(
        benchmark=benchmark.name,
        judge=judge_name,
        prompt_origin=prompt.origin,
        judgements=tuple(judgements),
        multi_label=benchmark.multi_label,
    )


def _reply_of(judge: Judge, question: str, row: AnsweredQuestion) -> str:
    """Ask a judge, which may be a function of the user.

    Raises:
        TaskError: It returns no text.
    """
    reply: object = judge(question)
    if not isinstance(reply, str):
        raise TaskError(
            f"The judge replied {shorten(reply)} to question {shorten(row.id)}.",
            hint="A judge returns the text of its reply.",
        )
    return reply


def _format_mmvet_question(prompt: str, row: AnsweredQuestion) -> str:
    reference = row.reference.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{prompt}\n{row.question} | {reference} | {row.prediction} | "


def _format_llava_bench_question(prompt: str, row: AnsweredQuestion) -> str:
    parts = [f"[Context]\n{row.caption}", f"[Question]\n{row.question}"]
    for number, answer in enumerate((row.reference, row.prediction), start=1):
        assistant = f"Assistant {number}"
        parts += [f"[{assistant}]\n{answer}", f"[End of {assistant}]"]
    return "\n\n".join([*parts, f"[System]\n{prompt}", ""])


_MMVET = _JudgedBenchmark(
    name="MM-Vet",
    format_question=_format_mmvet_question,
    parse_reply=parse_mmvet_reply,
    reminder="\nThe missing number, from 0.0 to 1.0, and nothing else: ",
    multi_label=True,
)
_LLAVA_BENCH = _JudgedBenchmark(
    name="LLaVA-Bench (in the wild)",
    format_question=_format_llava_bench_question,
    parse_reply=parse_llava_bench_reply,
    reminder="First line: two numbers with one space between them, and nothing else.\n",
    categories=("conv", "detail", "complex"),
)
