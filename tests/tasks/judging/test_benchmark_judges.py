from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.judging.benchmark_judges import (
    AnsweredQuestion,
    judge_llava_bench,
    judge_mmvet,
    parse_llava_bench_reply,
    parse_mmvet_reply,
)
from effllava_optuna.tasks.judging.judge_prompts import (
    LLAVA_BENCH_PROMPT,
    MMVET_PROMPT,
    PromptOrigin,
)
from effllava_optuna.tasks.judging.judgements import JudgeReply

NUMBERS = (
    "0", "1", "0.0", "1.0", "0.5", ".5", "1.", "1.1", "-0.1", "+0.3", "1e-1", "7", "10", "10.5",
    "-1", "nan", "inf", "0.5.", "0.5,", "**0.5**", "half", "", "8/10", "0.7|",
)  # fmt: skip
GAPS = ("", " ", "  ", "\t", "\n", "\r\n", ",", ", ", " | ")
CORPUS = tuple(
    f"{lead}{first}{gap}{second}{tail}"
    for lead, first, gap, second, tail in itertools.product(
        ("", " ", "\n"), NUMBERS, GAPS, ("", "0.5", "9", "because"), ("", "\nWhy: it is.", " ")
    )
)

Parser = Callable[[str], tuple[float, float] | None]


@dataclass
class ScriptedJudge:
    """A judge with fixed replies, which records its prompts."""

    replies: list[str]
    prompts: list[str] = field(default_factory=list)

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.replies[len(self.prompts) - 1]


def mmvet(number: int, *capabilities: str) -> AnsweredQuestion:
    return AnsweredQuestion(
        id=f"v1_{number}",
        question=f"question {number}?",
        reference="a",
        prediction=f"prediction {number}",
        categories=capabilities,
    )


def llava_bench(number: int, category: str = "conv") -> AnsweredQuestion:
    return AnsweredQuestion(
        id=str(number),
        question="what is it?",
        reference="a cat.",
        prediction="a dog.",
        categories=(category,),
        caption="a cat",
    )


def slow_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def slow_correctness(reply: str) -> tuple[float, float] | None:
    """Collect characters from the first that is not white space to the next that is."""
    token = ""
    for character in reply:
        if not character.isspace():
            token += character
        elif token:
            break
    number = slow_number(token)
    if number is None or number != number:
        return None
    return None if number < 0 or number > 1 else (1.0, number)


def slow_pair(reply: str) -> tuple[float, float] | None:
    """Split the first line at its only separator."""
    left, right, separators = "", "", 0
    for character in reply:
        if character == "\n":
            break
        if character in " ,":
            separators += 1
        elif separators:
            right += character
        else:
            left += character
    reference, prediction = slow_number(left), slow_number(right)
    if separators != 1 or reference is None or prediction is None:
        return None
    for number in (reference, prediction):
        if number != number or number < 0 or number > 10:
            return None
    return reference, prediction


@pytest.mark.parametrize(
    ("parse", "slow"),
    [(parse_mmvet_reply, slow_correctness), (parse_llava_bench_reply, slow_pair)],
)
def test_replies_are_parsed_as_by_a_slow_parser(parse: Parser, slow: Parser) -> None:
    parsed = {reply: parse(reply) for reply in CORPUS}
    assert parsed == {reply: slow(reply) for reply in CORPUS}
    n_valid = sum(scores is not None for scores in parsed.values())
    assert min(n_valid, len(parsed) - n_valid) > 90


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.7", 0.7),
        ("0.7 as it names both", 0.7),
        ("\n 1.0\nYes.", 1.0),
        ("0", 0.0),
        ("nan", None),
        ("1.1", None),
        ("-0.1", None),
        ("Correctness: 0.7", None),
        ("", None),
    ],
)
def test_correctness_is_the_first_token_if_it_is_in_the_unit_interval(
    reply: str, score: float | None
) -> None:
    assert parse_mmvet_reply(reply) == (None if score is None else (1.0, score))


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("8 9\nBoth are good.", (8.0, 9.0)),
        ("8.5,7", (8.5, 7.0)),
        ("10 0", (10.0, 0.0)),
        ("8 9\r\nGood.", (8.0, 9.0)),
        ("8, 9", None),  # the official parser counts three parts
        ("8  9", None),
        (" 8 9", None),
        ("8\t9", None),
        ("\n8 9", None),
        ("8 9 10", None),
        ("Assistant 1: 8", None),
        ("nan 9", None),
        ("9 inf", None),
        ("80 90", None),
        ("-1 -1", None),
        ("", None),
    ],
)
def test_a_pair_is_parsed_as_in_the_official_script(
    reply: str, pair: tuple[float, float] | None
) -> None:
    assert parse_llava_bench_reply(reply) == pair


def test_mmvet_scores_are_means_over_the_replies_that_could_be_parsed() -> None:
    rows = [
        mmvet(0, "rec", "ocr"),
        mmvet(1, "rec"),
        mmvet(2, "ocr", "rec"),
        mmvet(3, "math"),
        mmvet(4, "rec", "know"),
    ]
    judge = ScriptedJudge(["0.5", "1.0", "0.2", "no", "0"])
    judged = judge_mmvet(rows, judge, name="j", attempts=1)
    assert judged.score == pytest.approx(100 * (0.5 + 1.0 + 0.2 + 0) / 4)
    assert judged.by_category == {
        "know": 0.0,
        "math": None,
        "ocr": pytest.approx(35.0),
        "rec": pytest.approx(42.5),
    }
    assert judged.by_combination == {
        "know+rec": 0.0,
        "math": None,
        "ocr+rec": pytest.approx(35.0),
        "rec": pytest.approx(100.0),
    }
    assert (judged.n_parsed, judged.n_unparsed) == (4, 1)
    assert [judgement.score for judgement in judged.judgements] == [0.5, 1.0, 0.2, None, 0.0]
    assert judged.judgements[3].reply == "no"
    assert judged.judgements[2].categories == ("ocr", "rec")


def test_llava_bench_scores_are_ratios_of_sums_without_the_failures() -> None:
    rows = [
        llava_bench(0),
        llava_bench(1, "detail"),
        llava_bench(2),
        llava_bench(3, "complex"),
        llava_bench(4, "detail"),
    ]
    replies = ["8 6\nfine", "10 5", "9 9", "sorry", "6,9"]
    judged = judge_llava_bench(rows, ScriptedJudge(replies), name="j", attempts=1)
    assert judged.score == pytest.approx(100 * (6 + 5 + 9 + 9) / (8 + 10 + 9 + 6))
    assert judged.by_category == {
        "complex": None,
        "conv": pytest.approx(100 * 15 / 17),
        "detail": pytest.approx(100 * 14 / 16),
    }
    assert judged.by_combination == {}
    assert (judged.n_parsed, judged.n_unparsed) == (4, 1)
    assert (judged.judgements[0].score, judged.judgements[0].reference) == (6.0, 8.0)
    assert (judged.judgements[3].score, judged.judgements[3].reference) == (None, None)


def test_without_a_parsed_reply_there_is_no_score() -> None:
    judged = judge_mmvet([mmvet(0, "rec")], ScriptedJudge(["?"]), name="j", attempts=1)
    assert judged.score is None
    assert str(judged).startswith("MM-Vet: no score")
    zero_reference = judge_llava_bench([llava_bench(0)], ScriptedJudge(["0 5"]), name="j")
    assert (zero_reference.score, zero_reference.n_parsed) == (None, 1)


def test_a_reply_that_cannot_be_parsed_is_requested_again_with_a_reminder() -> None:
    mmvet_judge = ScriptedJudge(["Well,", "hm", "0.4"])
    llava_bench_judge = ScriptedJudge(["Well,", "hm", "8 4"])
    assert judge_mmvet([mmvet(0, "rec")], mmvet_judge, name="j").score == pytest.approx(40)
    judged = judge_llava_bench([llava_bench(0)], llava_bench_judge, name="j")
    assert judged.score == pytest.approx(50)
    for judge in (mmvet_judge, llava_bench_judge):
        first, second, third = judge.prompts
        assert second == third
        assert second.startswith(first)
        assert len(second) > len(first)


@pytest.mark.parametrize("reply", [None, 0.4, ("0.4",), b"0.4"])
def test_a_judge_that_returns_no_text_is_refused(reply: object) -> None:
    def judge(_: str) -> Any:
        return reply

    message = rf"The judge replied {re.escape(shorten(reply))} to question '"
    with pytest.raises(TaskError, match=message):
        judge_mmvet([mmvet(0, "rec")], judge, name="j")
    with pytest.raises(TaskError, match=message):
        judge_llava_bench([llava_bench(0)], judge, name="j")


def test_a_judge_is_called_at_most_as_often_as_allowed() -> None:
    judge = ScriptedJudge(["x"] * 9)
    assert judge_mmvet([mmvet(0, "rec")], judge, name="j").n_unparsed == 1
    assert len(judge.prompts) == 5
    judge = ScriptedJudge(["x"] * 9)
    assert judge_llava_bench([llava_bench(0)], judge, name="j").n_unparsed == 1
    assert len(judge.prompts) == 3


def test_mmvet_appends_the_row_to_the_table() -> None:
    judge = ScriptedJudge(["1"])
    row = AnsweredQuestion("v1_0", "Why?", "-1<AND>-5<OR>x {y}", "x = -1", ("math",))
    judge_mmvet([row], judge, name="j")
    assert judge.prompts == [f"{MMVET_PROMPT}\nWhy? | -1 <AND> -5 <OR> x {{y}} | x = -1 | "]


def test_llava_bench_shows_the_reference_first() -> None:
    judge = ScriptedJudge(["8 8"])
    judge_llava_bench([llava_bench(0)], judge, name="j")
    assert judge.prompts == [
        "[Context]\na cat\n\n[Question]\nwhat is it?\n\n"
        "[Assistant 1]\na cat.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\na dog.\n\n[End of Assistant 2]\n\n"
        f"[System]\n{LLAVA_BENCH_PROMPT}\n\n"
    ]


def test_a_prompt_of_the_caller_is_used_and_named_in_the_result() -> None:
    judge = ScriptedJudge(["1", "8 8"])
    judged = judge_mmvet([mmvet(0, "rec")], judge, name="j", prompt="Grade.")
    assert judged.prompt_origin is PromptOrigin.CALLER
    judge_llava_bench([llava_bench(0)], judge, name="j", prompt="Score both.")
    assert judge.prompts[0].startswith("Grade.\nquestion 0?")
    assert judge.prompts[1].endswith("[System]\nScore both.\n\n")


def test_the_examples_in_the_built_in_table_can_be_parsed() -> None:
    lines = MMVET_PROMPT.split("--- | --- | --- | ---\n")[1].splitlines()
    assert len(lines) >= 5
    for line in lines:
        *columns, correctness = line.split(" | ")
        assert len(columns) == 3
        assert parse_mmvet_reply(correctness) is not None


def test_a_result_names_the_judge_the_replying_model_and_the_origin_of_the_prompt() -> None:
    replies = [JudgeReply("0.5", "gpt-x-0613"), JudgeReply("x"), JudgeReply("0.5", "gpt-x-0613")]
    rows = [mmvet(number, "rec") for number in range(3)]
    judged = judge_mmvet(rows, ScriptedJudge([*replies]), name="gpt-x", attempts=1)
    assert judged.reply_models == ("gpt-x-0613",)
    assert judged.judgements[0].model == "gpt-x-0613"
    assert type(judged.judgements[0].reply) is str
    assert str(judged) == (
        "MM-Vet: 50.0, judged by gpt-x (gpt-x-0613 replied) with the effllava_optuna prompt, "
        "2 of 3 replies parsed"
    )


def test_rows_that_would_distort_a_score_are_refused() -> None:
    judge = ScriptedJudge([])
    with pytest.raises(TaskError, match="no answers to judge"):
        judge_mmvet([], judge, name="j")
    with pytest.raises(TaskError, match="'v1_1' occurs twice"):
        judge_mmvet([mmvet(1, "rec"), mmvet(1, "rec")], judge, name="j")
    with pytest.raises(TaskError, match=r"'v1_1' of MM-Vet has the categories \[\]"):
        judge_mmvet([mmvet(1)], judge, name="j")
    with pytest.raises(TaskError, match=r"'3' of LLaVA-.* has the categories \['chat'\]\. Use"):
        judge_llava_bench([llava_bench(3, "chat")], judge, name="j")
    with pytest.raises(TaskError, match="cannot be called 0 times"):
        judge_llava_bench([llava_bench(3)], judge, name="j", attempts=0)
