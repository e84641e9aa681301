"""``evaluate --judge`` and ``--submit``: scores of a judge, and submission files."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.judge_server import JudgeServer, Response, completion, serving
from tests.study_fixtures import CommandResult, invoke

TASK = """
[model]
path = "digits-vlm"
[task]
name = "{name}"
data = "{data}"
new_tokens = 2
proxy = 8
validation = 6
test = 6
"""


def judge_replying(*texts: str) -> AbstractContextManager[JudgeServer]:
    """A judge that sends these replies, and then repeats the last one."""
    return serving(*(Response(body=completion(text)) for text in texts))


def write_study(drawn: Path, directory: Path, name: str) -> Path:
    file = directory / f"{name}.toml"
    file.write_text(TASK.format(name=name, data=drawn / name))
    return file


def evaluate_judged(
    file: Path, server: JudgeServer, *words: object, check: bool = True
) -> CommandResult:
    options = ("--model", "dense", "--judge", "judge", "--judge-url", server.url)
    return invoke("evaluate", file, *options, "--judge-key", "", "-f", "json", *words, check=check)


def test_replies_of_a_judge_are_stored_and_not_requested_twice(
    drawn: Path, tmp_path: Path
) -> None:
    file = write_study(drawn, tmp_path, "mmvet")
    with judge_replying(*["0.5", "1.0"] * 3, "0.0") as server:
        result = json.loads(evaluate_judged(file, server).stdout)["judged"]
        assert (result["benchmark"], result["judge"], result["counted"]) == ("MM-Vet", "judge", 6)
        assert result["answered_by"] == ["judge-2026-01-01"]
        assert result["score"] == pytest.approx(75.0)
        assert len(server.requests) == 6
        assert {(body["model"], body["max_tokens"]) for body in server.requests} == {("judge", 3)}
        assert json.loads(evaluate_judged(file, server).stdout)["judged"] == result
        assert len(server.requests) == 6
        (replies,) = (tmp_path / "mmvet.answers").glob("*.replies.jsonl")
        replies.write_text(replies.read_text()[:-9])  # as a kill leaves it
        again = json.loads(evaluate_judged(file, server).stdout)["judged"]
        assert (again["counted"], len(server.requests)) == (6, 7)
        assert json.loads(evaluate_judged(file, server).stdout)["judged"] == again
        assert len(server.requests) == 7


def test_unreadable_replies_are_counted_but_not_scored(drawn: Path, tmp_path: Path) -> None:
    file = write_study(drawn, tmp_path, "llava-bench")
    with judge_replying(*["8 4\nbecause", *["nonsense"] * 3] * 6) as server:
        result = json.loads(evaluate_judged(file, server).stdout)["judged"]
        words = ("--model", "dense", "--judge", "judge", "--judge-url", server.url)
        table = " ".join(invoke("evaluate", file, *words, "--judge-key", "").stdout.split())
    assert (result["counted"], result["failures"]) == (3, 3)
    assert result["score"] == pytest.approx(50.0)
    assert "LLaVA-Bench (in the wild): 50.0" in table
    assert "3 of 6 replies could be read" in table
    assert "token F1, a proxy for LLaVA-Bench" in table


def test_a_judge_is_refused_for_other_tasks_and_without_a_key(tmp_path: Path, drawn: Path) -> None:
    with judge_replying("0.5") as server:
        failed = evaluate_judged(write_study(drawn, tmp_path, "vizwiz"), server, check=False)
    assert failed.returncode == 2
    assert (
        "--judge is given, but task 'vizwiz' does not support it. Use it with mmvet, ll"
        in failed.stderr
    )
    assert not server.requests
    failed = invoke(
        "evaluate", write_study(drawn, tmp_path, "mmvet"), "--model", "dense", "--judge", "judge",
        "--judge-key", "NO_SUCH_KEY_HERE", check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert "NO_SUCH_KEY_HERE" in failed.stderr


def test_submission_files_have_the_formats_of_the_benchmarks(drawn: Path, tmp_path: Path) -> None:
    submission = tmp_path / "submission"
    words = ("--model", "dense", "--submit", submission, "--split", "full", "--limit", 9)
    invoke("evaluate", write_study(drawn, tmp_path, "mmvet"), *words)
    assert [*json.loads(submission.read_text())] == [f"v1_{number}" for number in range(9)]
    invoke("evaluate", write_study(drawn, tmp_path, "llava-bench"), *words)
    lines = [json.loads(line) for line in submission.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == list(range(9))
    vizwiz = write_study(drawn, tmp_path, "vizwiz")
    vizwiz.write_text(f'{vizwiz.read_text()}\n[task.splits]\ntest = "test"\n')
    table = invoke("evaluate", vizwiz, *words).stdout
    assert "9 samples have no right answer to compare with" in " ".join(table.split())
    result = json.loads(submission.read_text())
    assert [*result[0]] == ["image", "answer"]
    assert result[0]["image"].startswith("VizWiz_test_00000000")
