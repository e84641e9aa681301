"""A path that begins with ``~`` is in the home directory, wherever a user can write a path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import optuna
import pytest

import effllava_optuna
from effllava_optuna.cli.program import main
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import ExportError, ModelError, StudyError
from effllava_optuna.files import expand_home
from effllava_optuna.storage.artifact_store import DirectoryArtifactStore, artifact_backend_of
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.location import locate_file
from effllava_optuna.storage.urls import file_of
from effllava_optuna.surgery import inspect_checkpoint
from effllava_optuna.tasks.data.dataset_rows import read_split, split_names
from effllava_optuna.tasks.data.stored_image import StoredImage
from effllava_optuna.tasks.judging.judge_prompts import load_mmvet_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery import LoadedModel

STUDY = """
[study]
storage = "{url}"
artifacts = "~/tensors"
[model]
path = "digits-vlm"
[task]
name = "qa"
data = "~/rows.jsonl"
[latency]
table = "~/latency.json"
[export]
directory = "~/small"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory; the working directory is another one, and stays empty."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return home


def path_parameters() -> Iterator[tuple[str, click.Parameter]]:
    for name, command in (("", main), *main.commands.items()):
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                yield f"{name} {parameter.opts[0]}", parameter


@pytest.mark.parametrize(
    "parameter", [pytest.param(each, id=name) for name, each in path_parameters()]
)
def test_a_path_on_the_command_line_may_be_in_the_home_directory(
    home: Path, parameter: click.Parameter
) -> None:
    (home / "a.toml").touch()
    assert parameter.type.convert("~/a.toml", parameter, None) == home / "a.toml"


def test_paths_of_a_study_file_may_be_in_the_home_directory(home: Path) -> None:
    (home / "a.toml").write_text(STUDY.format(url="sqlite:///~/a.db"))
    config = load_config("~/a.toml", ("task.data='~/b.jsonl'",))
    assert config.task.data is not None
    assert expand_home(config.task.data) == home / "b.jsonl"
    config = load_config(Path("~/a.toml"))
    assert config.latency.table == str(home / "latency.json")
    location = locate_file(home / "a.toml", config)
    assert location.export_directory(config) == home / "small"
    assert file_of(location.url) == home / "a.db"
    store = artifact_backend_of(location.url, config)
    assert isinstance(store, DirectoryArtifactStore)
    assert store.path == home / "tensors"


@pytest.mark.parametrize(
    "url", ["sqlite:///~/a.db", "sqlite+pysqlite:///~/a.db", "journal:///~/a.db"]
)
def test_a_storage_may_be_in_the_home_directory(home: Path, url: str) -> None:
    with pytest.raises(StudyError, match=f"{home}/a.db: there is no such database"):
        open_storage(url)
    study = optuna.create_study(storage=open_storage(url, create=True), study_name="s")
    assert (home / "a.db").is_file()
    assert open_storage(url).get_study_id_from_name(study.study_name) == study._study_id
    assert not list(Path.cwd().iterdir())


def test_a_checkpoint_may_be_in_the_home_directory(home: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, home / "model")
    for path in ("~/model", Path("~/model")):
        assert effllava_optuna.load(path, device="cpu").source == str(path)
        assert inspect_checkpoint(path).handles
    with pytest.raises(ModelError, match="There is no directory '~/other'"):
        effllava_optuna.load("~/other")


def test_exports_may_be_in_the_home_directory(home: Path, tiny: LoadedModel) -> None:
    """What is there already proves that the place was found."""
    (home / "small").mkdir()
    (home / "small" / "policy.json").write_text('{"format": 9, "effllava_optuna": "9"}')
    (home / "small.onnx").touch()
    for path in ("~/small", Path("~/small")):
        with pytest.raises(ExportError, match="~/small is not empty"):
            effllava_optuna.export(tiny, path)
        with pytest.raises(ModelError, match=f"{home}/small"):
            effllava_optuna.load_pruned(path)
        with pytest.raises(ExportError, match=r"~/small.onnx exists already"):
            effllava_optuna.export_onnx(tiny, f"{path}.onnx")


def test_rows_pictures_and_prompts_may_be_in_the_home_directory(home: Path) -> None:
    (home / "rows").mkdir()
    (home / "rows" / "val.jsonl").write_text('{"image": "~/a.png", "text": "a"}\n')
    (home / "a.png").write_bytes(b"not a picture")
    (home / "prompt.txt").write_text("Judge it.")
    assert split_names("~/rows") == ["val"]
    rows = read_split("~/rows", "val")
    assert rows.columns == ("image", "text")
    picture = StoredImage(rows.rows, 0, "image", rows.directory)
    assert picture.read_bytes() == b"not a picture"
    assert load_mmvet_prompt(Path("~/prompt.txt")).text == "Judge it."


def test_other_paths_do_not_change(home: Path) -> None:
    for path in ("a~", "./~", "a/~/b", "~nobody-of-this-name/a"):
        assert expand_home(path) == Path(path)
    assert expand_home("~") == home
