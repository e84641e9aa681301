"""A study file for a model and a task, from the model's configuration."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from effllava_optuna.study import read_spec
from effllava_optuna.study.estimate import H200, Shape, cpu, estimate, told
from effllava_optuna.study.spec import TASKS
from tests.study.conftest import ROOT, cli

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
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(config: object, where: Path) -> Path:
    where.mkdir()
    (where / "config.json").write_text(json.dumps(config))
    return where


@pytest.mark.parametrize("model", ["digits-vlm", "drawn-vlm"])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_passes_the_check(model: str, task: str, tmp_path: Path) -> None:
    data = ("--data", "rows.jsonl") if task == "qa" else ()
    done = cli("init", model, "--task", task, *data)
    file = Path(f"{model}-{task}.toml")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert "an estimate by a cost model, not measured" in done.stdout.replace("\n", " ")
    assert "an estimate by a cost model" in " ".join(file.read_text().replace("#", " ").split())
    assert cli("check", file).stdout.startswith(f"{file}: study {file.stem!r}, 3 epochs x 4")
    spec = read_spec(file)
    assert (spec.model.path, spec.task.name) == (model, task)
    assert 384 % spec.pruning.multiple_of == 0
    assert spec.export.directory == f"{file.stem}.pruned"


def test_digits_get_the_budget_of_the_quickstart() -> None:
    cli("init", "digits-vlm", "--task", "digits", "--out", "mine.toml")
    mine, quick = read_spec("mine.toml"), read_spec(ROOT / "studies" / "quickstart.toml")
    for table in ("quality", "latency", "projector", "report"):
        assert getattr(mine, table) == getattr(quick, table)
    assert mine.search == quick.search


def test_a_large_model_gets_what_fits_it(tmp_path: Path) -> None:
    model = configured(_LLAVA, tmp_path / "llava")
    printed = cli("init", model, "--task", "scienceqa", "--speedup", 1.5).stdout
    assert "64 sites (one gene each) of 32 blocks" in printed
    assert "hours on one H200" in printed
    spec = read_spec("llava-scienceqa.toml")
    assert (spec.model.dtype, spec.pruning.multiple_of, spec.latency.batch) == ("bfloat16", 256, 8)
    assert spec.pruning.order == "taylor"
    assert (spec.search.speedup, spec.search.kept_share) == (1.5, None)
    assert (spec.search.population, spec.search.generations) == (32, 5)
    shape = Shape(32, 4096, 11008, 1.0, 0.59e9, 676, 0.35e12)
    assert estimate(spec, shape).table_gb < spec.pruning.table_gb


def test_another_family_and_data_beside_the_file(tmp_path: Path) -> None:
    model = configured(_QWEN, tmp_path / "qwen")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "rows.jsonl").write_text("")
    out = Path("studies") / "mine.toml"
    cli("init", model, "--task", "qa", "--data", "studies/rows.jsonl", "--out", out)
    assert 'data = "./rows.jsonl"' in out.read_text()
    assert read_spec(out).task.data == str((tmp_path / "studies" / "rows.jsonl").resolve())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (_TEXT | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2}, "takes no pictures"),
        ({"model_type": "bert"}, "has 0 stacks of blocks with attention"),
        ({"model_type": "nonsense"}, "does not load"),
        ([], "does not load"),
        ("LLaVA", "does not load"),
    ],
)  # fmt: skip
def test_other_models_are_refused_in_one_line(config: object, told: str, tmp_path: Path) -> None:
    model = configured(config, tmp_path / "model")
    done = cli("init", model, "--task", "digits", check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_is_replaced_only_if_told_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("years of work")
    file.chmod(0o600)
    words = ("init", "digits-vlm", "--task", "digits", "--out", file)
    done = cli(*words, check=False)
    assert (done.returncode, file.read_text()) == (2, "years of work")
    assert done.stderr == f"{file} is there already. Give another --out, or --overwrite.\n"
    cli(*words, "--overwrite")
    assert read_spec(file).study.name == "mine"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_names_that_toml_must_escape_come_back(tmp_path: Path) -> None:
    model = configured(_QWEN, tmp_path / 'a "b" \\ ü #x')
    cli("init", model, "--task", "digits", "--out", "ü x.toml")
    spec = read_spec("ü x.toml")
    assert (spec.model.path, spec.study.name) == (str(model), "ü x")


def test_an_estimate_says_on_what() -> None:
    spec = read_spec(ROOT / "studies" / "quickstart.toml")
    small = Shape(6, 128, 384, 0.5, 2e5, 28, 7e6)
    found = estimate(spec, small, cpu(1))
    assert told(found, cpu(1)).endswith("minutes on a CPU with 1 thread")
    assert estimate(spec, small, cpu(2)).hours < found.hours
    assert told(estimate(spec, small)).endswith("hours on one H200")
    assert H200.flops > cpu(64).flops


@pytest.mark.slow
def test_a_study_that_was_proposed_finds_as_much_as_the_quickstart(tmp_path: Path) -> None:
    cli("init", "digits-vlm", "--task", "digits", "--out", "mine.toml")
    cli("run", "mine.toml")
    found = json.loads(cli("report", "mine.toml", "-f", "json").stdout)
    assert found["chosen"]["kept_share"] <= 0.225
    assert found["chosen"]["accuracy_test"] > found["uniform2"]["accuracy_test"] + 0.05
