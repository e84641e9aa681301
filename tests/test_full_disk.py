"""A full disk, a quota and a place that cannot be written: one line, and nothing is lost."""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import effllava_optuna
from effllava_optuna.cli.commands.report_commands import _write_page
from effllava_optuna.cli.program import main
from effllava_optuna.errors import EffllavaError, ExportError
from effllava_optuna.evaluation.record_file import RecordFile
from effllava_optuna.files import write_errors_as
from effllava_optuna.storage.artifact_store import ArtifactStore, DirectoryArtifactStore
from effllava_optuna.surgery.export.comparison import write_expected
from effllava_optuna.tasks.judging.submission import write_mmvet
from tests.full_disk import file_size_limited
from tests.read_only import read_only
from tests.surgery.export.pruned_models import prune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from effllava_optuna.surgery import LoadedModel

TEXT = "x" * 10_000


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Answer:
    id: str
    text: str


def append_answers(place: Path) -> None:
    answers: RecordFile[Answer] = RecordFile(place / "a.jsonl", Answer, {"model": "a"})
    answers.append([Answer("1", TEXT)])


def write_artifact(place: Path) -> None:
    ArtifactStore(DirectoryArtifactStore(place / "artifacts")).write_tensors(
        {"weight": torch.zeros(len(TEXT))}
    )


def write_page(place: Path) -> None:
    _write_page(place / "a.html", TEXT, announce=False)


def write_submission(place: Path) -> None:
    write_mmvet(place / "a.json", {"v1_0": TEXT})


@contextmanager
def export_errors(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with write_errors_as(ExportError, place, hint="Choose another one."):
        yield


@pytest.fixture(scope="module")
def small(make_llava: Callable[..., LoadedModel]) -> LoadedModel:
    return prune(make_llava(attention_bias=True, mlp_bias=True))


@pytest.fixture(
    params=[
        "answers", "artifact", "page", "submission", "native", "portable", "safetensors",
        "tokenizer", "expected outputs",
    ]
)  # fmt: skip
def write(request: pytest.FixtureRequest, small: LoadedModel) -> Callable[[Path], Any]:
    """Write something of more bytes than `file_size_limited` allows below a directory."""

    def write_weights(place: Path) -> None:
        with export_errors(place):
            save_file({"weight": torch.zeros(len(TEXT))}, place / "a.safetensors")

    def write_tokenizer(place: Path) -> None:
        tokenizer = copy.deepcopy(small.processor.tokenizer)
        tokenizer.add_tokens([f"{TEXT[:90]}{number}" for number in range(60)])
        with export_errors(place):
            tokenizer.save_pretrained(place)

    def write_outputs(place: Path) -> None:
        inputs = effllava_optuna.surgery.build_example_inputs(small.processor)
        with export_errors(place):
            write_expected(small.model, small.model, inputs, place)

    writers: dict[str, Callable[[Path], Any]] = {
        "answers": append_answers,
        "artifact": write_artifact,
        "page": write_page,
        "submission": write_submission,
        "native": lambda place: effllava_optuna.export(small, place / "a"),
        "portable": lambda place: effllava_optuna.export(small, place / "a", form="portable"),
        "safetensors": write_weights,
        "tokenizer": write_tokenizer,
        "expected outputs": write_outputs,
    }
    return writers[request.param]


def refused(write: Callable[[Path], Any], place: Path) -> str:
    with pytest.raises(EffllavaError, match="cannot be written: ") as caught:
        write(place)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.message


def test_a_full_disk_is_reported_in_one_line(write: Callable[[Path], Any], tmp_path: Path) -> None:
    with file_size_limited():
        message = refused(write, tmp_path)
    assert message.endswith("cannot be written: File too large.")
    drafts = [name for name in contents(tmp_path) if Path(name).name.startswith(".")]
    assert drafts == []


def test_a_place_without_permission_is_reported_in_one_line(
    write: Callable[[Path], Any], tmp_path: Path
) -> None:
    with read_only(tmp_path):
        # Root is refused by an immutable file, with another reason.
        assert re.search("Permission denied|Operation not permitted", refused(write, tmp_path))


@pytest.mark.parametrize("limit", [0, 100, 1_000, 10_000, 30_000])
@pytest.mark.parametrize("form", ["native", "portable"])
def test_an_earlier_export_survives_a_full_disk(
    small: LoadedModel, tmp_path: Path, form: Any, limit: int
) -> None:
    """Whichever of its files the disk has no room for."""
    earlier = tmp_path / "small"
    earlier.mkdir()
    (earlier / "policy.json").write_text('{"format": 2, "effllava_optuna": "0.1.0"}')
    before = contents(tmp_path)
    with (
        file_size_limited(limit),
        pytest.raises(ExportError, match=r"small cannot be written: File too large\. Choose a"),
    ):
        effllava_optuna.export(small, earlier, form=form, overwrite=True)
    assert contents(tmp_path) == before


def test_a_study_file_is_not_written_by_half(tmp_path: Path) -> None:
    words = ["init", "digits-vlm", "--task", "digits", "--out", str(tmp_path / "a.toml")]
    with file_size_limited(500):
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.stderr.endswith("a.toml cannot be written: File too large. Use another --out.\n")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("table", "key", "value", "reason"),
    [
        ("export", "directory", "thesis", "is not empty"),
        ("export", "directory", "file", "is not empty"),
        ("export", "directory", "file/small", "file is not a directory"),
        ("study", "artifacts", "file/tensors", "file is not a directory"),
        ("study", "storage", "sqlite:///file/a.db", "file is not a directory"),
        ("study", "storage", "journal:///file/a.log", "file is not a directory"),
        ("latency", "table", "file/a.json", "file is not a directory"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_a_study_cannot_write_is_refused_before_it_begins(
    tmp_path: Path, command: str, table: str, key: str, value: str, reason: str
) -> None:
    (tmp_path / "file").write_text("years of work")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    file = tmp_path / "a.toml"
    file.write_text(
        f'[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n[{table}]\n{key} = "{value}"\n'
    )
    before = contents(tmp_path)
    result = CliRunner().invoke(main, [command, str(file)])
    assert result.exit_code == 2
    assert f"{file}: {table}.{key}: " in result.stderr
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert contents(tmp_path) == before
