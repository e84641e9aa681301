"""Evaluation from the command line: any model, any split, and it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.study.cli_evaluate import again
from effllava_optuna.study.cli_evaluate import evaluate as command
from effllava_optuna.tasks import Digits, Split
from tests.study.conftest import ROOT, Ran, cli

SPEC = """
[model]
path = "digits-vlm"
[task]
name = "qa"
data = "{data}"
harness = "exact-match"
proxy = 16
validation = 12
test = 40
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file about questions with open answers, in rows beside it."""
    where = tmp_path_factory.mktemp("own")
    with (where / "mine.jsonl").open("w") as rows:
        for sample in Digits(seed=3).samples(Split.TEST)[:160]:
            picture = sample.picture()
            assert picture is not None
            picture.save(where / f"{sample.id}.png")
            row = {
                "id": sample.id,
                "image": f"{sample.id}.png",
                "question": sample.question,
                "answer": sample.right,
                "stratum": sample.question.split()[1],
            }
            rows.write(f"{json.dumps(row)}\n")
    file = where / "own.toml"
    file.write_text(SPEC.format(data="mine.jsonl"))
    return file


def evaluated(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("evaluate", *words, "-f", "json").stdout)
    return found


def test_the_choice_of_a_study_is_worth_what_the_report_says(smoke: Ran, tmp_path: Path) -> None:
    chosen = smoke.document()["chosen"]
    found = evaluated(smoke.file, "--out", tmp_path / "a.jsonl")
    assert found["all"]["accuracy"] == chosen["accuracy_test"]
    assert found["all"]["interval"] == chosen["accuracy_test_interval"]
    assert found["model"] == f"trial {chosen['trial']} of smoke"
    named = evaluated(smoke.file, "--model", chosen["trial"], "--out", tmp_path / "b.jsonl")
    assert named["all"] == found["all"]


def test_a_dense_model_writes_its_answers_and_they_are_graded(study: Path) -> None:
    found = evaluated(study, "--model", "dense")
    assert found["rule"] == "exact match (evalai normalisation)"
    assert found["all"]["samples"] == 40
    assert found["all"]["accuracy"] > 0.9
    assert set(found["subsets"]) == {"digit", "is", "many"}
    assert sum(part["samples"] for part in found["subsets"].values()) == 40
    lines = Path(found["answers"]).read_text().splitlines()
    assert len(lines) == 41
    assert json.loads(lines[1])["text"].isdecimal()


def test_a_split_is_the_study_s_own_and_full_is_all_of_the_data(study: Path) -> None:
    assert evaluated(study, "--model", "digits-vlm", "--split", "proxy")["all"]["samples"] == 16
    whole = evaluated(study, "--model", "dense", "--split", "full", "--batch-size", "7")
    assert whole["all"]["samples"] == 160
    assert whole["seen"] >= 16
    table = " ".join(cli("evaluate", study, "--model", "dense", "--split", "full").stdout.split())
    assert f"{whole['seen']} of these samples are about a picture" in table


def test_answers_that_are_there_are_not_asked_again(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    first = evaluated(study, "--model", "dense", "--out", out, "--limit", "10")
    assert first["all"]["samples"] == 10
    lines = out.read_bytes().splitlines(keepends=True)
    planted = json.loads(lines[3]) | {"text": "planted", "score": 0.0}
    lines[3] = json.dumps(planted).encode() + b"\n"
    cut = b"".join(lines)[:-9]  # as a kill leaves it
    out.write_bytes(cut)
    found = evaluated(study, "--model", "dense", "--out", out)
    assert found["all"]["samples"] == 40
    kept = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert planted in kept
    assert len({answer["id"] for answer in kept}) == len(kept) == 40
    again = evaluated(study, "--model", "dense", "--out", out, "--overwrite")
    assert again["all"]["accuracy"] >= found["all"]["accuracy"]
    assert "planted" not in out.read_text()


def test_batches_do_not_change_what_is_written(study: Path, tmp_path: Path) -> None:
    said = []
    for size in (1, 13):
        out = tmp_path / f"{size}.jsonl"
        evaluated(study, "--model", "dense", "--out", out, "--batch-size", size, "--limit", 20)
        said.append(sorted(out.read_text().splitlines()[1:]))
    assert said[0] == said[1]


def test_answers_about_something_else_are_refused(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    evaluated(study, "--model", "dense", "--out", out, "--limit", "4")
    failed = cli(
        "evaluate", study, "--model", "dense", "--split", "proxy", "--out", out, check=False
    )
    assert failed.returncode == 2
    assert "is about something else: split changed. Give another --out" in failed.stderr
    out.write_text("nonsense\n")
    failed = cli("evaluate", study, "--model", "dense", "--out", out, check=False)
    assert (failed.returncode, "line 1 is not a record" in failed.stderr) == (2, True)


def test_answers_under_another_system_turn_are_refused(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    for system, code in (("", 0), ("say nothing", 2)):
        data = study.parent / "mine.jsonl"
        file.write_text(f'{SPEC.format(data=data)}system = "{system}"\n')
        done = cli("evaluate", file, "--model", "dense", "--limit", "2", check=False)
        assert done.returncode == code
    assert "is about something else: system changed" in done.stderr


def test_a_limit_can_be_lifted_where_questions_are_of_two_kinds(
    study: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (study.parent / "mine.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = str(study.parent / row["image"])
        row["choices"] = ["none", row["answer"]] if number % 3 else None
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    file = tmp_path / "own.toml"
    file.write_text(SPEC.format(data="mine.jsonl"))
    assert evaluated(file, "--model", "dense", "--limit", "1")["all"]["samples"] == 1
    found = evaluated(file, "--model", "dense")
    assert found["all"]["samples"] == 40
    assert found["rule"] == "accuracy (llava parsing); exact match (evalai normalisation)"


def test_overwriting_forgets_answers_once_there_is_a_model_and_nothing_else(
    study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    evaluated(study, "--model", "dense", "--out", out, "--limit", "2")
    kept = out.read_bytes()
    words = ("--out", out, "--overwrite", "--limit", "2")
    assert cli("evaluate", study, "--model", "./nowhere", *words, check=False).returncode == 2
    assert out.read_bytes() == kept
    mine = (study.parent / "mine.jsonl").read_bytes()
    out.write_bytes(mine)
    failed = cli("evaluate", study, "--model", "dense", *words, check=False)
    assert (failed.returncode, "line 1 is not a record" in failed.stderr) == (2, True)
    assert out.read_bytes() == mine


def test_an_interrupted_evaluation_says_how_to_go_on(study: Path, tmp_path: Path) -> None:
    words = ["--out", f"{tmp_path}/a b", "--letters", "--limit", "3", "--overwrite"]
    context = command.make_context("evaluate", [str(study), "--model", "17", *words])
    options = ["--model", "17", "--letters", "--limit", "3"]
    assert again(context) == [*options, "--out", f"'{tmp_path}/a b'"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model", "nowhere/at-all"), "'nowhere/at-all' does not load"),
        (("--model", "./nowhere"), "There is no directory './nowhere'"),
        (("--model", "7"), "there is no such database"),
        (("--model", "dense", "--out", "."), "--out . is a directory"),
        (("--model", "dense", "--out", ".", "--overwrite"), "--out . is a directory"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_line(
    study: Path, words: tuple[str, ...], told: str
) -> None:
    failed = cli("evaluate", study, *words, check=False)
    assert failed.returncode == 2
    assert told in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["x" * 300, "own.toml/x"])
def test_a_place_where_no_answer_can_be_is_told(
    study: Path, name: str, more: tuple[str, ...]
) -> None:
    out = study.parent / name
    failed = cli("evaluate", study, "--model", "dense", "--out", out, *more, check=False)
    assert (failed.returncode, f"{out} cannot be written: " in failed.stderr) == (2, True)


def test_compared_options_are_no_answers_to_submit(tmp_path: Path) -> None:
    file, out = ROOT / "studies" / "llava-1.5-13b-scienceqa.toml", tmp_path / "answers.json"
    words = ("--model", "dense", "--letters", "--submit", out)
    failed = cli("evaluate", file, *words, check=False)
    assert (failed.returncode, "--letters are both given" in failed.stderr) == (2, True)
    assert not out.exists()


def test_digits_have_no_rows_beside_their_splits(smoke: Ran, tmp_path: Path) -> None:
    failed = cli("evaluate", smoke.file, "--split", "full", "--out", tmp_path / "x", check=False)
    assert (failed.returncode, "has no split 'full'" in failed.stderr) == (2, True)
    failed = cli("evaluate", smoke.file, "--model", "9999", check=False)
    assert (failed.returncode, "Trial 9999" in failed.stderr) == (2, True)
