"""A judge behind a server, and files for the benchmarks' own, from the command line."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.desk import Answer, Desk, completion, serving
from tests.study.conftest import Done, cli

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


def saying(*texts: str) -> AbstractContextManager[Desk]:
    """A judge that gives these replies, the last one for ever."""
    return serving(*(Answer(body=completion(text)) for text in texts))


def study(drawn: Path, where: Path, name: str) -> Path:
    file = where / f"{name}.toml"
    file.write_text(TASK.format(name=name, data=drawn / name))
    return file


def judged(file: Path, desk: Desk, *words: object, check: bool = True) -> Done:
    options = ("--model", "dense", "--judge", "judge", "--judge-url", desk.url, "--judge-key", "")
    return cli("evaluate", file, *options, "-f", "json", *words, check=check)


def test_mmvet_is_judged_and_replies_are_not_paid_for_twice(drawn: Path, tmp_path: Path) -> None:
    file = study(drawn, tmp_path, "mmvet")
    with saying(*["0.5", "1.0"] * 3, "0.0") as desk:
        found = json.loads(judged(file, desk).stdout)["judged"]
        assert (found["benchmark"], found["judge"], found["counted"]) == ("MM-Vet", "judge", 6)
        assert found["answered_by"] == ["judge-2026-01-01"]
        assert found["score"] == pytest.approx(75.0)
        assert len(desk.asked) == 6
        assert {(body["model"], body["max_tokens"]) for body in desk.asked} == {("judge", 3)}
        assert json.loads(judged(file, desk).stdout)["judged"] == found
        assert len(desk.asked) == 6
        (replies,) = (tmp_path / "mmvet.answers").glob("*.replies.jsonl")
        replies.write_text(replies.read_text()[:-9])  # as a kill leaves it
        again = json.loads(judged(file, desk).stdout)["judged"]
        assert (again["counted"], len(desk.asked)) == (6, 7)
        assert json.loads(judged(file, desk).stdout)["judged"] == again
        assert len(desk.asked) == 7


def test_replies_that_cannot_be_read_are_counted_and_in_no_score(
    drawn: Path, tmp_path: Path
) -> None:
    file = study(drawn, tmp_path, "llava-bench")
    with saying(*["8 4\nbecause", *["nonsense"] * 3] * 6) as desk:
        found = json.loads(judged(file, desk).stdout)["judged"]
        words = ("--model", "dense", "--judge", "judge", "--judge-url", desk.url)
        table = " ".join(cli("evaluate", file, *words, "--judge-key", "").stdout.split())
    assert (found["counted"], found["failures"]) == (3, 3)
    assert found["score"] == pytest.approx(50.0)
    assert "LLaVA-Bench (in the wild): 50.0" in table
    assert "3 of 6 replies could be read" in table
    assert "token F1, a proxy for LLaVA-Bench" in table


def test_a_task_without_a_judge_says_so(tmp_path: Path, drawn: Path) -> None:
    with saying("0.5") as desk:
        failed = judged(study(drawn, tmp_path, "vizwiz"), desk, check=False)
    assert failed.returncode == 2
    assert "--judge is given, but task 'vizwiz' has none. It is for mmvet, ll" in failed.stderr
    assert not desk.asked
    failed = cli(
        "evaluate", study(drawn, tmp_path, "mmvet"), "--model", "dense", "--judge", "judge",
        "--judge-key", "NO_SUCH_KEY_HERE", check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert "NO_SUCH_KEY_HERE" in failed.stderr


def test_answers_are_written_as_the_servers_read_them(drawn: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    words = ("--model", "dense", "--submit", sheet, "--split", "full", "--limit", 9)
    cli("evaluate", study(drawn, tmp_path, "mmvet"), *words)
    assert [*json.loads(sheet.read_text())] == [f"v1_{number}" for number in range(9)]
    cli("evaluate", study(drawn, tmp_path, "llava-bench"), *words)
    lines = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == list(range(9))
    vizwiz = study(drawn, tmp_path, "vizwiz")
    vizwiz.write_text(f'{vizwiz.read_text()}\n[task.splits]\ntest = "test"\n')
    table = cli("evaluate", vizwiz, *words).stdout
    assert "9 samples have no right answer to compare with" in " ".join(table.split())
    found = json.loads(sheet.read_text())
    assert [*found[0]] == ["image", "answer"]
    assert found[0]["image"].startswith("VizWiz_test_00000000")
