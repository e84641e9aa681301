"""Text files with a byte order mark are read; those in another encoding are named in one line."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from effllava_optuna import load
from effllava_optuna.calibration.latency_file import check_file
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import EffllavaError
from effllava_optuna.evaluation.judged_answers import StoredReply
from effllava_optuna.evaluation.record_file import RecordFile
from effllava_optuna.export_target import is_export
from effllava_optuna.surgery.loading.checksums import check_checksums, write_checksums
from effllava_optuna.surgery.loading.policy_file import read_policy, write_policy
from effllava_optuna.tasks.judging.judge_prompts import load_llava_bench_prompt, load_mmvet_prompt
from effllava_optuna.tasks.prompts import format_prompt
from tests.study_fixtures import invoke

STUDY = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'


def study_file(folder: Path) -> Path:
    (folder / "a.toml").write_text(STUDY)
    return folder / "a.toml"


def policy_file(folder: Path) -> Path:
    write_policy(folder, {"effllava_optuna": "0", "base_model": "digits-vlm"})
    return folder / "policy.json"


def checksums(folder: Path) -> Path:
    write_checksums(folder)
    return folder / "checksums.json"


def latency_tables(folder: Path) -> Path:
    (folder / "tables.json").write_text('{"format": 0, "tables": []}')
    return folder / "tables.json"


def prompt(folder: Path) -> Path:
    (folder / "prompt.txt").write_text("Grade it.")
    return folder / "prompt.txt"


def prompt_in_python(folder: Path) -> Path:
    (folder / "prompt.py").write_text("prompt = 'Grade it.'\n")
    return folder / "prompt.py"


def rules(folder: Path) -> Path:
    kinds = {f"llava_bench_{kind}": {"prompt": "Grade."} for kind in ("conv", "detail", "complex")}
    (folder / "rule.json").write_text(json.dumps(kinds))
    return folder / "rule.json"


FILES: dict[Callable[[Path], Path], Callable[[Path], object]] = {
    study_file: load_config,
    policy_file: lambda file: read_policy(file.parent),
    checksums: lambda file: check_checksums(file.parent),
    latency_tables: check_file,
    prompt: load_mmvet_prompt,
    prompt_in_python: load_mmvet_prompt,
    rules: load_llava_bench_prompt,
}


@pytest.fixture
def _current_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tables of `latency_tables` have the format of this version."""
    monkeypatch.setattr("effllava_optuna.calibration.latency_file._FORMAT", 0)


@pytest.mark.usefixtures("_current_format")
@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    file = write(tmp_path)
    expected = FILES[write](file)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))
    assert FILES[write](file) == expected
    assert is_export(tmp_path) == (write is policy_file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_another_encoding_is_named_in_one_line(
    tmp_path: Path, write: Callable[[Path], Path], encoding: str
) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_text().encode(encoding))
    with pytest.raises(EffllavaError, match=r"UTF-(16|32)|no readable checksums") as caught:
        FILES[write](file)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_names_the_encoding_of_a_study_file(tmp_path: Path) -> None:
    file = study_file(tmp_path)
    file.write_bytes(STUDY.encode("utf-16"))  # as `>` of Windows PowerShell 5 writes it
    result = invoke("check", file, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert (
        f"{file}: cannot be read: line 1 is not valid UTF-8: the file is UTF-16." in result.stderr
    )


def test_an_answer_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    RecordFile(file, StoredReply, {"task": "a"})
    content = file.read_bytes()
    file.write_bytes(codecs.BOM_UTF8 + content)
    RecordFile(file, StoredReply, {"task": "a"})
    assert file.read_bytes() == codecs.BOM_UTF8 + content


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_the_byte_order_mark_of_a_chat_template_is_not_in_a_prompt(
    checkpoint: Path, tmp_path: Path, file: str
) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").unlink()
    marked = f"\ufeff{template}"
    content = marked if file.endswith("jinja") else json.dumps({"chat_template": marked})
    (copied / file).write_text(content, encoding="utf-8")
    processor = load(copied, device="cpu").processor
    assert processor.chat_template == template
    assert format_prompt(processor, "q?").startswith("user")
