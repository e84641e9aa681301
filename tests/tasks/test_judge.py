from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import wording
from effllava_optuna.tasks.judge import (
    LlavaBenchRow,
    MMVetRow,
    judge_llava_bench,
    judge_mmvet,
    read_correctness,
    read_pair,
)
from effllava_optuna.tasks.verdict import Reply
from effllava_optuna.tasks.wording import (
    LLAVA_BENCH_PROMPT,
    MMVET_PROMPT,
    Origin,
    llava_bench_wording,
    mmvet_wording,
)

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
JUDGEMENTS = st.lists(
    st.sampled_from((*NUMBERS, *GAPS, "9", "because", "2")), min_size=1, max_size=8
).map("".join)


@dataclass
class Script:
    """A judge that says what it was given to say, and remembers what it was asked."""

    replies: list[str]
    prompts: list[str] = field(default_factory=list)

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.replies[len(self.prompts) - 1]


def mmvet(number: int, *capabilities: str, answer: str = "a") -> MMVetRow:
    return MMVetRow(f"v1_{number}", f"question {number}?", answer, f"said {number}", capabilities)


def bench(number: int, category: str = "conv") -> LlavaBenchRow:
    return LlavaBenchRow(str(number), "what is it?", "a cat", "a cat.", "a dog.", category)


def slow_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def slow_correctness(reply: str) -> float | None:
    """Collect characters from the first that is no white space to the next that is."""
    token = ""
    for character in reply:
        if not character.isspace():
            token += character
        elif token:
            break
    number = slow_number(token)
    if number is None or number != number:
        return None
    return None if number < 0 or number > 1 else number


def slow_pair(reply: str) -> tuple[float, float] | None:
    """Walk over the first line: one separator splits it, and a second one spoils it."""
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


def test_the_corpus_has_replies_of_every_kind() -> None:
    for read in (read_correctness, read_pair):
        good = [reply for reply in set(CORPUS) if read(reply) is not None]
        assert min(len(good), len(set(CORPUS)) - len(good)) > 90


def test_correctness_of_a_corpus_is_that_of_a_slow_reader() -> None:
    for reply in CORPUS:
        assert read_correctness(reply) == slow_correctness(reply), reply


def test_pairs_of_a_corpus_are_those_of_a_slow_reader() -> None:
    for reply in CORPUS:
        assert read_pair(reply) == slow_pair(reply), reply


@given(st.one_of(JUDGEMENTS, st.text(), st.floats(-1, 2).map(str)))
def test_correctness_of_any_reply_is_that_of_a_slow_reader(reply: str) -> None:
    assert read_correctness(reply) == slow_correctness(reply)


@given(st.one_of(JUDGEMENTS, st.text(), st.tuples(st.floats(), st.floats()).map(str)))
def test_the_pair_of_any_reply_is_that_of_a_slow_reader(reply: str) -> None:
    assert read_pair(reply) == slow_pair(reply)


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
    assert read_correctness(reply) == score


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("8 9\nBoth are good.", (8.0, 9.0)),
        ("8.5,7", (8.5, 7.0)),
        ("10 0", (10.0, 0.0)),
        ("8 9\r\nGood.", (8.0, 9.0)),
        ("8, 9", None),  # the official reader finds three parts
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
def test_a_pair_is_read_as_the_official_script_does(
    reply: str, pair: tuple[float, float] | None
) -> None:
    assert read_pair(reply) == pair


def test_mmvet_scores_are_means_over_the_replies_that_could_be_read() -> None:
    rows = [
        mmvet(0, "rec", "ocr"),
        mmvet(1, "rec"),
        mmvet(2, "ocr", "rec"),
        mmvet(3, "math"),
        mmvet(4, "rec", "know"),
    ]
    judged = judge_mmvet(rows, Script(["0.5", "1.0", "0.2", "no", "0"]), name="j", tries=1)
    assert judged.score == pytest.approx(100 * (0.5 + 1.0 + 0.2 + 0) / 4)
    assert judged.by_group == {
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
    assert (judged.counted, judged.failures) == (4, 1)
    assert [verdict.score for verdict in judged.verdicts] == [0.5, 1.0, 0.2, None, 0.0]
    assert judged.verdicts[3].reply == "no"
    assert judged.verdicts[2].groups == ("ocr", "rec")


def test_llava_bench_scores_are_ratios_of_sums_and_leave_failures_out() -> None:
    rows = [bench(0), bench(1, "detail"), bench(2), bench(3, "complex"), bench(4, "detail")]
    replies = ["8 6\nfine", "10 5", "9 9", "sorry", "6,9"]
    judged = judge_llava_bench(rows, Script(replies), name="j", tries=1)
    assert judged.score == pytest.approx(100 * (6 + 5 + 9 + 9) / (8 + 10 + 9 + 6))
    assert judged.by_group == {
        "complex": None,
        "conv": pytest.approx(100 * 15 / 17),
        "detail": pytest.approx(100 * 14 / 16),
    }
    assert judged.by_combination == {}
    assert (judged.counted, judged.failures) == (4, 1)
    assert (judged.verdicts[0].score, judged.verdicts[0].reference) == (6.0, 8.0)
    assert (judged.verdicts[3].score, judged.verdicts[3].reference) == (None, None)


def test_nothing_read_is_no_score_and_not_zero() -> None:
    judged = judge_mmvet([mmvet(0, "rec")], Script(["?"]), name="j", tries=1)
    assert judged.score is None
    assert str(judged).startswith("MM-Vet: no score")
    worthless = judge_llava_bench([bench(0)], Script(["0 5"]), name="j")
    assert (worthless.score, worthless.counted) == (None, 1)


def test_a_reply_that_cannot_be_read_is_asked_for_again_more_plainly() -> None:
    table, pair = Script(["Well,", "hm", "0.4"]), Script(["Well,", "hm", "8 4"])
    assert judge_mmvet([mmvet(0, "rec")], table, name="j").score == pytest.approx(40)
    assert judge_llava_bench([bench(0)], pair, name="j").score == pytest.approx(50)
    for script in (table, pair):
        first, second, third = script.prompts
        assert second == third
        assert second.startswith(first)
        assert len(second) > len(first)


def test_a_judge_is_asked_no_more_often_than_allowed() -> None:
    script = Script(["x"] * 9)
    assert judge_mmvet([mmvet(0, "rec")], script, name="j").failures == 1
    assert len(script.prompts) == 5
    script = Script(["x"] * 9)
    assert judge_llava_bench([bench(0)], script, name="j").failures == 1
    assert len(script.prompts) == 3


def test_mmvet_appends_the_row_to_the_table() -> None:
    script = Script(["1"])
    row = MMVetRow("v1_0", "Why?", "-1<AND>-5<OR>x {y}", "x = -1", ("math",))
    judge_mmvet([row], script, name="j")
    assert script.prompts == [f"{MMVET_PROMPT}\nWhy? | -1 <AND> -5 <OR> x {{y}} | x = -1 | "]


def test_llava_bench_shows_the_reference_first() -> None:
    script = Script(["8 8"])
    judge_llava_bench([bench(0)], script, name="j")
    assert script.prompts == [
        "[Context]\na cat\n\n[Question]\nwhat is it?\n\n"
        "[Assistant 1]\na cat.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\na dog.\n\n[End of Assistant 2]\n\n"
        f"[System]\n{LLAVA_BENCH_PROMPT}\n\n"
    ]


def test_the_examples_of_our_table_can_be_read() -> None:
    lines = MMVET_PROMPT.split("--- | --- | --- | ---\n")[1].splitlines()
    assert len(lines) >= 5
    for line in lines:
        *columns, correctness = line.split(" | ")
        assert len(columns) == 3
        assert read_correctness(correctness) is not None


def test_a_result_names_its_judge_who_replied_and_whose_wording_it_was() -> None:
    script = Script([Reply("0.5", "gpt-x-0613"), Reply("x", ""), Reply("0.5", "gpt-x-0613")])
    rows = [mmvet(number, "rec") for number in range(3)]
    judged = judge_mmvet(rows, script, name="gpt-x", tries=1)
    assert judged.answered_by == ("gpt-x-0613",)
    assert judged.verdicts[0].model == "gpt-x-0613"
    assert type(judged.verdicts[0].reply) is str
    assert str(judged) == (
        "MM-Vet: 50.0, judged by gpt-x (gpt-x-0613 replied) under effllava_optuna wording, "
        "2 of 3 replies read"
    )


def test_rows_that_would_skew_a_score_are_refused() -> None:
    never = Script([])
    with pytest.raises(TaskError, match="no answers to judge"):
        judge_mmvet([], never, name="j")
    with pytest.raises(TaskError, match="'v1_1' comes twice"):
        judge_mmvet([mmvet(1, "rec"), mmvet(1, "rec")], never, name="j")
    with pytest.raises(TaskError, match="'v1_1' of MM-Vet names no capability"):
        judge_mmvet([mmvet(1)], never, name="j")
    with pytest.raises(TaskError, match="'3' of LLaVA-Bench has category 'chat'"):
        judge_llava_bench([bench(3, "chat")], never, name="j")
    with pytest.raises(TaskError, match="cannot be asked 0 times"):
        judge_llava_bench([bench(3)], never, name="j", tries=0)


def test_a_prompt_of_the_caller_is_used_and_said_to_be_the_callers(tmp_path: Path) -> None:
    text = "Grade. {braces} and 100 %\n"
    (tmp_path / "own.txt").write_text(text)
    (tmp_path / "own.py").write_text(f"import nothing_of_that_name\nprompt = {text!r}\n")
    for prompt in (text, tmp_path / "own.txt", tmp_path / "own.py"):
        script = Script(["1"])
        judged = judge_mmvet([mmvet(0, "rec")], script, name="j", prompt=prompt)
        assert script.prompts[0].startswith(f"{text}\nquestion 0?")
        assert judged.wording is Origin.CALLER
    rules = {f"llava_bench_{kind}": {"prompt": text} for kind in ("conv", "detail", "complex")}
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    script = Script(["8 8"])
    judge_llava_bench([bench(0)], script, name="j", prompt=tmp_path / "rule.json")
    assert script.prompts[0].endswith(f"[System]\n{text}\n\n")


def test_our_own_wording_is_not_taken_for_the_official_one() -> None:
    assert mmvet_wording().origin is Origin.OURS
    assert llava_bench_wording().origin is Origin.OURS
    assert mmvet_wording(MMVET_PROMPT).origin is Origin.CALLER
    assert mmvet_wording("half a pair: \ud800").origin is Origin.CALLER


def test_the_official_wording_is_known_by_its_digest_whatever_an_editor_did_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text, read in (
        ("_MMVET_SHA256", "table\n", mmvet_wording),
        ("_LLAVA_BENCH_SHA256", "table", llava_bench_wording),
    ):
        monkeypatch.setattr(wording, name, hashlib.sha256(text.encode()).hexdigest())
        for ending in ("", "\n", "\n\n"):
            (tmp_path / "prompt.txt").write_text(f"table{ending}")
            assert read(tmp_path / "prompt.txt") == wording.Wording(text, Origin.OFFICIAL)
        assert read("table ") == wording.Wording("table ", Origin.CALLER)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.py", "x = (", "is no Python file"),
        ("own.py", "prompt = 3", "assigns no text to 'prompt'"),
        ("own.txt", "\n", "prompt is empty"),
        ("own.txt", b"\xff\xfe", "cannot be read"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_a_file_without_a_prompt_for_mmvet_is_named(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TaskError, match=message):
        mmvet_wording(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "has no rules of LLaVA-Bench"),
        ("[]", "has no rules of LLaVA-Bench"),
        ('{"llava_bench_conv": {"prompt": "x"}}', "has no rules of LLaVA-Bench"),
        (
            '{"llava_bench_conv": {"prompt": "x"}, "llava_bench_detail": {"prompt": "y"},'
            ' "llava_bench_complex": {"prompt": "x"}}',
            "has 2 prompts",
        ),
    ],
)
def test_rules_without_one_prompt_for_llava_bench_are_named(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "rule.json"
    path.write_text(content)
    with pytest.raises(TaskError, match=message):
        llava_bench_wording(path)
