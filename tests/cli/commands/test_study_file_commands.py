"""``init`` and ``check``: study files for a model and a task."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from effllava_optuna.config.cost_estimate import ModelSize, estimate_cost
from effllava_optuna.config.schema import TASKS
from effllava_optuna.study import load_config
from tests.study_fixtures import ROOT, invoke
from tests.tasks.row_tasks import write_rows

_TEXT = {
    "model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip
_LLAVA = {
    "model_type": "llava",
    "image_seq_length": 576,
    "text_config": _TEXT,
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
}  # fmt: skip
_QWEN = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "model_type": "qwen2_5_vl_text", "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]
        },
    },
    "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 14,
                      "intermediate_size": 64, "out_hidden_size": 64},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_model(config: object, directory: Path) -> Path:
    """Write the configuration of a model without weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("model", ["digits-vlm", "drawn-vlm"])
@pytest.mark.parametrize("task", TASKS)
def test_a_proposed_study_file_passes_the_check(model: str, task: str, tmp_path: Path) -> None:
    data: tuple[str, ...] = ()
    if task == "qa":
        rows = [{"question": f"what is {number}?", "answer": "a"} for number in range(3000)]
        data = ("--data", write_rows(tmp_path, rows))
    before = set(tmp_path.iterdir())
    done = invoke("init", model, "--task", task, *data)
    file = Path(f"{model}-{task}.toml")
    assert [path.name for path in set(tmp_path.iterdir()) - before] == [file.name]
    assert "an estimate by a cost model, not measured" in done.stdout.replace("\n", " ")
    assert "an estimate by a cost model" in " ".join(file.read_text().replace("#", " ").split())
    assert invoke("check", file).stdout.startswith(f"{file}: study {file.stem!r}, 3 epochs x 4")
    config = load_config(file)
    assert (config.model.path, config.task.name) == (model, task)
    assert 384 % config.pruning.multiple_of == 0
    assert config.export.directory == str(tmp_path / f"{file.stem}.pruned")


def test_the_study_proposed_for_digits_is_the_quickstart() -> None:
    invoke("init", "digits-vlm", "--task", "digits", "--out", "mine.toml")
    proposed = load_config("mine.toml")
    quickstart = load_config(ROOT / "studies" / "quickstart.toml")
    for table in ("quality", "latency", "search", "projector", "report"):
        assert getattr(proposed, table) == getattr(quickstart, table)


def test_the_study_proposed_for_a_large_model_suits_its_size(tmp_path: Path) -> None:
    model = write_model(_LLAVA, tmp_path / "llava")
    printed = invoke("init", model, "--task", "scienceqa", "--speedup", 1.5).stdout
    assert "64 components of 32 blocks" in printed
    assert "hours on one H200" in printed
    config = load_config("llava-scienceqa.toml")
    assert (config.model.dtype, config.pruning.multiple_of, config.latency.batch) == (
        "bfloat16",
        256,
        8,
    )
    assert config.pruning.importance == "obs"
    assert (config.search.speedup, config.search.keep_ratio) == (1.5, None)
    assert (config.search.population, config.search.generations) == (32, 5)
    size = ModelSize(
        layers=32, hidden_size=4096, mlp_width=11008, group_ratio=1.0, other_parameters=0.59e9,
        prompt_tokens=676, vision_flops=0.35e12,
    )  # fmt: skip
    assert estimate_cost(config, size).table_gb < config.pruning.table_gb


def test_a_study_file_has_the_budget_that_is_asked_for(tmp_path: Path) -> None:
    words = ("init", "digits-vlm", "--task", "digits", "--out", tmp_path / "mine.toml")
    invoke(*words, "--latency-ms", 60)
    search = load_config(tmp_path / "mine.toml").search
    assert (search.latency_ms, search.speedup, search.keep_ratio) == (60, None, None)
    done = invoke(*words, "--overwrite", "--latency-ms", 60, "--speedup", 2, check=False)
    assert done.returncode == 2
    assert "--latency-ms and --speedup are given. Use one of them" in done.stderr


@pytest.mark.parametrize("answers", [0, 5, 12])
def test_a_study_of_rows_without_answers_is_one_of_agreement(answers: int, tmp_path: Path) -> None:
    rows = [{"question": f"{number}?"} for number in range(12)]
    for row in rows[:answers]:
        row["answer"] = "yes"
    data, out = tmp_path / "rows.jsonl", tmp_path / "mine.toml"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    printed = invoke("init", "digits-vlm", "--task", "qa", "--data", data, "--out", out).stdout
    measure = load_config(out).quality.measure
    if answers == 12:
        assert (measure, "no answer" in printed) == ("accuracy", False)
        return
    assert measure == "agreement"
    first = f"{12 - answers} of 12 rows have no answer, the first at {data}, line {answers + 1}: "
    assert f"{first}the quality is the agreement" in printed


@pytest.mark.parametrize(("count", "accepted"), [(9, False), (10, True)])
def test_a_study_needs_ten_rows(count: int, accepted: bool, tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "mine.toml"
    rows = [{"question": f"what is {number}?", "answer": "a"} for number in range(count)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = invoke("init", "digits-vlm", "--task", "qa", "--data", data, "--out", out, check=False)
    assert out.exists() is accepted
    assert accepted or (done.returncode, done.stderr.splitlines()) == (
        2,
        [f"{data} has 9 rows: a study needs at least 10, about different images. Add rows: "
         "about 64 for the search, and a few hundred to choose and test."],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "no rows", "rows.jsonl: line 1 is not valid JSON"),
        ("rows.jsonl", "", "rows.jsonl has no rows"),
        (
            "rows.jsonl",
            '{"question": 7, "answer": "a"}\n' * 12,
            "rows.jsonl, line 1: question is 7",
        ),
        (
            "rows.jsonl",
            '{"question": "a?", "answer": "b"}\n' * 12,
            "are about 1 different picture",
        ),
        ("gone.jsonl", None, "'gone.jsonl': there is no such file or directory"),
    ],
)
def test_no_study_is_proposed_for_rows_that_cannot_be_used(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    words = ("init", "digits-vlm", "--task", "qa", "--data", name, "--out", "mine.toml")
    done = invoke(*words, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "mine.toml").exists()


def test_columns_with_other_names_are_left_to_the_study_file(tmp_path: Path) -> None:
    rows = [{"ask": f"what is {number}?", "answer": "a"} for number in range(12)]
    data = write_rows(tmp_path, rows)
    printed = invoke("init", "digits-vlm", "--task", "qa", "--data", data, "--out", "mine.toml")
    assert "has no column 'question'; it has 'ask', 'answer'" in printed.stdout
    assert load_config("mine.toml").task.proxy is None
    assert "Set task.columns.question" in invoke("check", "mine.toml", check=False).stderr
    with Path("mine.toml").open("a") as file:
        file.write('\n[task.columns]\nquestion = "ask"\n')
    assert "samples: 8 proxy, 2 validation, 2 test" in invoke("check", "mine.toml").stdout


def test_data_is_named_relative_to_the_study_file(tmp_path: Path) -> None:
    model = write_model(_QWEN, tmp_path / "qwen")
    (tmp_path / "studies").mkdir()
    rows = [{"question": f"{number}?", "answer": "a"} for number in range(12)]
    write_rows(tmp_path / "studies", rows, "rows.jsonl")
    out = Path("studies") / "mine.toml"
    invoke("init", model, "--task", "qa", "--data", "studies/rows.jsonl", "--out", out)
    assert 'data = "./rows.jsonl"' in out.read_text()
    assert load_config(out).task.data == str((tmp_path / "studies" / "rows.jsonl").resolve())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_TEXT | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2}, "takes no pictures"),
        ({"model_type": "bert"}, "has 0 stacks of blocks with attention"),
        ({"model_type": "nonsense"}, "does not load"),
        ([], "does not load"),
        ("LLaVA", "does not load"),
    ],
)  # fmt: skip
def test_other_models_are_refused_in_one_line(
    config: object, message: str, tmp_path: Path
) -> None:
    model = write_model(config, tmp_path / "model")
    done = invoke("init", model, "--task", "digits", check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("years of work")
    file.chmod(0o600)
    words = ("init", "digits-vlm", "--task", "digits", "--out", file)
    done = invoke(*words, check=False)
    assert (done.returncode, file.read_text()) == (2, "years of work")
    assert done.stderr == f"{file} exists already. Use another --out, or --overwrite.\n"
    invoke(*words, "--overwrite")
    assert load_config(file).study.name == "mine"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_names_that_toml_must_escape_are_read_back(tmp_path: Path) -> None:
    model = write_model(_QWEN, tmp_path / 'a "b" \\ ü #x')
    invoke("init", model, "--task", "digits", "--out", "ü x.toml")
    config = load_config("ü x.toml")
    assert (config.model.path, config.study.name) == (str(model), "ü x")
