"""Let a language model judge free answers: MM-Vet and LLaVA-Bench (in the wild).

A judge is any function from a prompt to a reply; `effllava_optuna.tasks.chat.OpenAIJudge` asks a
server. A reply that cannot be read is dropped and counted. Both official scripts average it in
instead: MM-Vet's as 0, LLaVA-Bench's as -1 for both answers.

Published scores come from one judge (gpt-4-0613 for MM-Vet, gpt-4-0314 for LLaVA-Bench) and one
wording. Scores by another judge, or under the wording of `effllava_optuna.tasks.wording`, rank
models of one table; they cannot be compared with published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.verdict import Judged, Verdict
from effllava_optuna.tasks.wording import Wording, llava_bench_wording, mmvet_wording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from effllava_optuna.tasks.verdict import Judge

MMVET = "MM-Vet"
LLAVA_BENCH = "LLaVA-Bench (in the wild)"
CATEGORIES = ("conv", "detail", "complex")

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class MMVetRow:
    """A question of MM-Vet and what a model answered.

    Attributes:
        id: Unique, such as ``v1_0``.
        question: As in the data set.
        answer: The ground truth, with <AND> or <OR> between its parts.
        prediction: What the model under test answered.
        capabilities: Any of rec, ocr, know, gen, spat, math; at least one.
    """

    id: str
    question: str
    answer: str
    prediction: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LlavaBenchRow:
    """A question of LLaVA-Bench (in the wild) and what a model answered.

    Attributes:
        id: Unique, such as ``0``.
        question: As in the data set.
        caption: The description of the picture, which the judge reads in its place.
        answer: The reference answer, by GPT-4 from the caption.
        prediction: What the model under test answered.
        category: One of `CATEGORIES`.
    """

    id: str
    question: str
    caption: str
    answer: str
    prediction: str
    category: str


def read_correctness(reply: str) -> float | None:
    """Read MM-Vet's correctness: the first token of ``reply`` as a number in [0, 1].

    As ``runs`` of ``mm-vet_evaluator.py`` (yuweihao/MM-Vet), but any white space ends the token
    and may come before it, and ``nan`` is no number.

    Example:
        >>> read_correctness("0.7 because"), read_correctness("about 0.7"), read_correctness("7")
        (0.7, None, None)
    """
    token, *_ = reply.split(maxsplit=1) or [""]
    try:
        correctness = float(token)
    except ValueError:
        return None
    return correctness if 0 <= correctness <= 1 else None


def read_pair(reply: str) -> tuple[float, float] | None:
    """Read LLaVA-Bench's two scores, of the reference and of the prediction, from the first line.

    As ``parse_score`` of ``eval_gpt_review_bench.py`` (haotian-liu/LLaVA): exactly one space or
    comma between the two, and no other. Numbers outside [0, 10] are no scores on its scale.

    Example:
        >>> read_pair("8 6.5" + chr(10) + "Because"), read_pair("8, 6"), read_pair("80 65")
        ((8.0, 6.5), None, None)
    """
    parts = reply.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return None
    try:
        reference, prediction = float(parts[0]), float(parts[1])
    except ValueError:
        return None
    if not (0 <= reference <= 10 and 0 <= prediction <= 10):
        return None
    return reference, prediction


def judge_mmvet(
    rows: Sequence[MMVetRow],
    judge: Judge,
    *,
    name: str,
    prompt: str | Path | None = None,
    tries: int = 5,
) -> Judged:
    """Score answers to MM-Vet (Yu et al. 2023, arXiv 2308.02490) by a judge.

    As ``mm-vet_evaluator.py`` does it (yuweihao/MM-Vet): the row to grade is appended to a table
    of examples, and the judge writes the missing number. There, it may write 3 tokens at
    temperature 0 (and 0.5 more at each further try), and the paper has the mean of 5 runs.

    Args:
        rows: At least one; unique ids.
        judge: Asked once a row, and again with a plainer demand while it cannot be read.
        name: The model id of the judge.
        prompt: The official ``mm-vet_evaluator.py`` as a path, or a text of your own. Without
            it the wording is ours, and scores cannot be compared with published ones.
        tries: How often a row is asked at most, at least 1.

    Raises:
        TaskError: Rows are missing, come twice or have no capability; ``prompt`` cannot be
            used; the judge cannot be asked.
    """
    wording = mmvet_wording(prompt)
    _checked([row.id for row in rows], tries)
    for row in rows:
        if not row.capabilities:
            raise TaskError(
                f"Row {row.id!r} of MM-Vet names no capability.",
                hint="Give the ones that the data set says, such as ('rec', 'ocr').",
            )
    verdicts = []
    for row in rows:
        score, reply = _asked(
            judge, _mmvet_question(wording, row), read_correctness, tries,
            nudge="\nThe missing number, from 0.0 to 1.0, and nothing else: ",
        )  # fmt: skip
        groups = tuple(sorted(set(row.capabilities)))
        pair = None if score is None else (1.0, score)
        verdicts.append(Verdict.of(row.id, pair, reply, groups))
    return Judged.of(
        verdicts,
        name=MMVET,
        judge=name,
        wording=wording.origin,
        combinations={verdict.id: "+".join(verdict.groups) for verdict in verdicts},
    )


def judge_llava_bench(
    rows: Sequence[LlavaBenchRow],
    judge: Judge,
    *,
    name: str,
    prompt: str | Path | None = None,
    tries: int = 3,
) -> Judged:
    """Score answers to LLaVA-Bench (in the wild) (Liu et al. 2023, arXiv 2304.08485) by a judge.

    As ``eval_gpt_review_bench.py`` and ``summarize_gpt_review.py`` do it (haotian-liu/LLaVA):
    the judge reads caption, question, reference answer (first) and prediction, and gives both
    a score from 1 to 10. There, it may write 1024 tokens at temperature 0.2 under a system
    message, is asked once, and the means are rounded to three digits before their ratio.

    Args:
        rows: At least one; unique ids.
        judge: Asked once a row, and again with a plainer demand while it cannot be read.
        name: The model id of the judge.
        prompt: The official ``rule.json`` as a path, or a text of your own. Without it the
            wording is ours, and scores cannot be compared with published ones.
        tries: How often a row is asked at most, at least 1.

    Raises:
        TaskError: Rows are missing, come twice or have another category; ``prompt`` cannot be
            used; the judge cannot be asked.
    """
    wording = llava_bench_wording(prompt)
    _checked([row.id for row in rows], tries)
    for row in rows:
        if row.category not in CATEGORIES:
            raise TaskError(
                f"Row {row.id!r} of LLaVA-Bench has category {row.category!r}.",
                hint=f"Use one of {', '.join(CATEGORIES)}.",
            )
    verdicts = []
    for row in rows:
        pair, reply = _asked(
            judge, _llava_bench_question(wording, row), read_pair, tries,
            nudge="First line: two numbers with one space between them, and nothing else.\n",
        )  # fmt: skip
        verdicts.append(Verdict.of(row.id, pair, reply, (row.category,)))
    return Judged.of(verdicts, name=LLAVA_BENCH, judge=name, wording=wording.origin)


def _checked(ids: Sequence[str], tries: int) -> None:
    if tries < 1:
        raise TaskError(f"A judge cannot be asked {tries} times.", hint="Use at least 1.")
    if not ids:
        raise TaskError("There are no answers to judge.", hint="Check the rows.")
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise TaskError(f"Row {id_!r} comes twice.", hint="Give every question one answer.")
        seen.add(id_)


def _mmvet_question(wording: Wording, row: MMVetRow) -> str:
    answer = row.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{wording.text}\n{row.question} | {answer} | {row.prediction} | "


def _llava_bench_question(wording: Wording, row: LlavaBenchRow) -> str:
    parts = [f"[Context]\n{row.caption}", f"[Question]\n{row.question}"]
    for number, answer in enumerate((row.answer, row.prediction), start=1):
        who = f"Assistant {number}"
        parts += [f"[{who}]\n{answer}", f"[End of {who}]"]
    return "\n\n".join([*parts, f"[System]\n{wording.text}", ""])


def _asked(
    judge: Judge, prompt: str, read: Callable[[str], _Read | None], tries: int, *, nudge: str
) -> tuple[_Read | None, str]:
    reply = judge(prompt)
    for _ in range(tries - 1):
        if read(reply) is not None:
            break
        # A judge at temperature 0 would say the same again to the same prompt.
        reply = judge(prompt + nudge)
    return read(reply), reply
