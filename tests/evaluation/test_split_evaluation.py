"""``evaluate``: models, splits, stored answers and faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.cli.commands.evaluate_command import evaluate as evaluate_command
from effllava_optuna.cli.commands.evaluate_command import repeated_options
from effllava_optuna.tasks import AGREEMENT, Digits, Split
from tests.study_fixtures import ROOT, FinishedStudy, invoke

CONFIG = """
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
    """A study file of open questions, with its rows in the same directory."""
    directory = tmp_path_factory.mktemp("own")
    with (directory / "mine.jsonl").open("w") as rows:
        for sample in Digits(seed=3).samples(Split.TEST)[:160]:
            picture = sample.load_image()
            assert picture is not None
            picture.save(directory / f"{sample.id}.png")
            row = {
                "id": sample.id,
                "image": f"{sample.id}.png",
                "question": sample.question,
                "answer": sample.correct_answer,
                "stratum": sample.question.split()[1],
            }
            rows.write(f"{json.dumps(row)}\n")
    file = directory / "own.toml"
    file.write_text(CONFIG.format(data="mine.jsonl"))
    return file


def evaluate(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(invoke("evaluate", *words, "-f", "json").stdout)
    return document


def test_the_chosen_policy_has_the_accuracy_of_the_report(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    chosen = smoke.document()["chosen"]
    result = evaluate(smoke.file, "--out", tmp_path / "a.jsonl")
    assert result["all"]["accuracy"] == chosen["accuracy_test"]
    assert result["all"]["interval"] == chosen["accuracy_test_interval"]
    assert result["model"] == f"trial {chosen['trial']} of smoke"
    named = evaluate(smoke.file, "--model", chosen["trial"], "--out", tmp_path / "b.jsonl")
    assert named["all"] == result["all"]


def test_the_perplexity_of_a_text_is_printed_beside_the_accuracy(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    text = tmp_path / "words.txt"
    text.write_text("what is the sum of the digits at top left and bottom right ?")
    words = (smoke.file, "--text", text, "--out")
    chosen = evaluate(*words, tmp_path / "a.jsonl")["perplexity"]
    dense = evaluate(*words, tmp_path / "b.jsonl", "--model", "dense")["perplexity"]
    assert chosen["tokens"] == dense["tokens"] > 2
    assert chosen["value"] != dense["value"] > 1
    printed = invoke("evaluate", *words, tmp_path / "a.jsonl").stdout
    assert f"{chosen['value']:.4g} over {chosen['tokens']} tokens" in " ".join(printed.split())
    text.write_text("")
    done = invoke("evaluate", *words, tmp_path / "a.jsonl", check=False)
    assert done.returncode == 2
    assert "has no text. Use another --text." in " ".join(done.stderr.split())


def test_the_answers_of_the_dense_model_are_stored_and_graded(study: Path) -> None:
    result = evaluate(study, "--model", "dense")
    assert result["rule"] == "exact match (evalai normalisation)"
    assert result["all"]["samples"] == 40
    assert result["all"]["accuracy"] > 0.9
    assert set(result["subsets"]) == {"digit", "is", "many"}
    assert sum(part["samples"] for part in result["subsets"].values()) == 40
    lines = Path(result["answers"]).read_text().splitlines()
    assert len(lines) == 41
    assert json.loads(lines[1])["text"].isdecimal()


@pytest.fixture(scope="module")
def unlabelled(study: Path) -> Path:
    """A study file of the same questions without answers, and a checkpoint that is not dense."""
    rows = [json.loads(line) for line in (study.parent / "mine.jsonl").read_text().splitlines()]
    questions = [{key: row[key] for key in ("id", "image", "question")} for row in rows]
    lines = "".join(f"{json.dumps(row)}\n" for row in questions)
    (study.parent / "questions.jsonl").write_text(lines)
    file = study.parent / "questions.toml"
    text = CONFIG.format(data="questions.jsonl")
    file.write_text(f'{text}new_tokens = 4\n[quality]\nmeasure = "agreement"\n')
    return file


def test_without_labels_the_answers_of_the_dense_model_are_the_right_ones(
    unlabelled: Path,
) -> None:
    dense = evaluate(unlabelled, "--model", "dense", "--limit", "12")
    assert (dense["rule"], dense["measure"]) == (AGREEMENT, "agreement")
    assert (dense["all"]["samples"], dense["all"]["accuracy"]) == (12, 1.0)
    assert dense["unlabelled"] == 0
    other = ROOT / "benchmarks" / "digits-vlm-1"  # trained from other weights
    result = evaluate(unlabelled, "--model", other, "--limit", "40")
    assert 0.5 < result["all"]["accuracy"] < 1.0
    table = invoke("evaluate", unlabelled, "--model", "dense", "--limit", "12").stdout
    assert AGREEMENT in " ".join(table.split())


def test_a_labelled_split_is_graded_by_its_labels(study: Path) -> None:
    file = study.with_name("labelled.toml")
    file.write_text(f'{study.read_text()}[quality]\nmeasure = "agreement"\n')
    result = evaluate(file, "--model", "dense", "--limit", "12")
    assert (result["rule"], result["measure"]) == (
        "exact match (evalai normalisation)",
        "accuracy",
    )


def test_splits_are_those_of_the_study_and_full_is_all_data(study: Path) -> None:
    assert evaluate(study, "--model", "digits-vlm", "--split", "proxy")["all"]["samples"] == 16
    whole = evaluate(study, "--model", "dense", "--split", "full", "--batch-size", "7")
    assert whole["all"]["samples"] == 160
    assert whole["seen"] >= 16
    table = " ".join(
        invoke("evaluate", study, "--model", "dense", "--split", "full").stdout.split()
    )
    assert f"{whole['seen']} of these samples are about a picture" in table


def test_stored_answers_are_not_asked_again(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    first = evaluate(study, "--model", "dense", "--out", out, "--limit", "10")
    assert first["all"]["samples"] == 10
    lines = out.read_bytes().splitlines(keepends=True)
    planted = json.loads(lines[3]) | {"text": "planted", "score": 0.0}
    lines[3] = json.dumps(planted).encode() + b"\n"
    cut = b"".join(lines)[:-9]  # as a kill leaves it
    out.write_bytes(cut)
    result = evaluate(study, "--model", "dense", "--out", out)
    assert result["all"]["samples"] == 40
    kept = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert planted in kept
    assert len({answer["id"] for answer in kept}) == len(kept) == 40
    overwritten = evaluate(study, "--model", "dense", "--out", out, "--overwrite")
    assert overwritten["all"]["accuracy"] >= result["all"]["accuracy"]
    assert "planted" not in out.read_text()


def test_the_batch_size_changes_no_answer(study: Path, tmp_path: Path) -> None:
    answers = []
    for size in (1, 13):
        out = tmp_path / f"{size}.jsonl"
        evaluate(study, "--model", "dense", "--out", out, "--batch-size", size, "--limit", 20)
        answers.append(sorted(out.read_text().splitlines()[1:]))
    assert answers[0] == answers[1]


def test_answers_of_another_evaluation_are_refused(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    evaluate(study, "--model", "dense", "--out", out, "--limit", "4")
    failed = invoke(
        "evaluate", study, "--model", "dense", "--split", "proxy", "--out", out, check=False
    )
    assert failed.returncode == 2
    assert "has results of another evaluation: split changed. Use another --out" in failed.stderr
    out.write_text("nonsense\n")
    failed = invoke("evaluate", study, "--model", "dense", "--out", out, check=False)
    assert (failed.returncode, "line 1 is not a record" in failed.stderr) == (2, True)


def test_answers_with_another_system_prompt_are_refused(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    for system, code in (("", 0), ("say nothing", 2)):
        data = study.parent / "mine.jsonl"
        file.write_text(f'{CONFIG.format(data=data)}system = "{system}"\n')
        done = invoke("evaluate", file, "--model", "dense", "--limit", "2", check=False)
        assert done.returncode == code
    assert "has results of another evaluation: system changed" in done.stderr


def test_a_limit_can_be_lifted_if_questions_are_of_two_kinds(study: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (study.parent / "mine.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = str(study.parent / row["image"])
        row["choices"] = ["none", row["answer"]] if number % 3 else None
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    file = tmp_path / "own.toml"
    file.write_text(CONFIG.format(data="mine.jsonl"))
    assert evaluate(file, "--model", "dense", "--limit", "1")["all"]["samples"] == 1
    result = evaluate(file, "--model", "dense")
    assert result["all"]["samples"] == 40
    assert result["rule"] == "accuracy (llava parsing); exact match (evalai normalisation)"


def test_overwrite_removes_answers_only_after_the_model_is_loaded(
    study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    evaluate(study, "--model", "dense", "--out", out, "--limit", "2")
    kept = out.read_bytes()
    words = ("--out", out, "--overwrite", "--limit", "2")
    assert invoke("evaluate", study, "--model", "./nowhere", *words, check=False).returncode == 2
    assert out.read_bytes() == kept
    rows = (study.parent / "mine.jsonl").read_bytes()
    out.write_bytes(rows)
    failed = invoke("evaluate", study, "--model", "dense", *words, check=False)
    assert (failed.returncode, "line 1 is not a record" in failed.stderr) == (2, True)
    assert out.read_bytes() == rows


def test_the_command_that_continues_has_the_options_except_overwrite(
    study: Path, tmp_path: Path
) -> None:
    words = ["--out", f"{tmp_path}/a b", "--letters", "--limit", "3", "--overwrite"]
    context = evaluate_command.make_context("evaluate", [str(study), "--model", "17", *words])
    options = ["--model", "17", "--letters", "--limit", "3"]
    assert repeated_options(context) == [*options, "--out", f"'{tmp_path}/a b'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "nowhere/at-all"), "'nowhere/at-all' does not load"),
        (("--model", "./nowhere"), "There is no directory './nowhere'"),
        (("--model", "7"), "there is no such database"),
        (("--model", "dense", "--out", "."), "--out . is a directory"),
        (("--model", "dense", "--out", ".", "--overwrite"), "--out . is a directory"),
    ],
)
def test_what_cannot_be_evaluated_is_named_in_one_line(
    study: Path, words: tuple[str, ...], message: str
) -> None:
    failed = invoke("evaluate", study, *words, check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["x" * 300, "own.toml/x"])
def test_a_file_that_cannot_be_written_is_named(
    study: Path, name: str, more: tuple[str, ...]
) -> None:
    out = study.parent / name
    failed = invoke("evaluate", study, "--model", "dense", "--out", out, *more, check=False)
    assert (failed.returncode, f"{out} cannot be written: " in failed.stderr) == (2, True)


def test_submit_and_letters_exclude_each_other(tmp_path: Path) -> None:
    file, out = ROOT / "studies" / "llava-1.5-13b-scienceqa.toml", tmp_path / "answers.json"
    words = ("--model", "dense", "--letters", "--submit", out)
    failed = invoke("evaluate", file, *words, check=False)
    assert (failed.returncode, "--letters are both given" in failed.stderr) == (2, True)
    assert not out.exists()


def test_a_split_or_trial_that_does_not_exist_is_named(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    failed = invoke(
        "evaluate", smoke.file, "--split", "full", "--out", tmp_path / "x", check=False
    )
    assert (failed.returncode, "has no split 'full'" in failed.stderr) == (2, True)
    failed = invoke("evaluate", smoke.file, "--model", "9999", check=False)
    assert (failed.returncode, "Trial 9999" in failed.stderr) == (2, True)
