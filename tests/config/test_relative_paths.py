"""Paths in a study file are relative to the file, wherever a command is run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from effllava_optuna.config.loading import load_config
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.config.task_factory import make_unchecked_task
from effllava_optuna.config.user_functions import user_functions
from effllava_optuna.errors import ConfigError, StudyError
from effllava_optuna.policy import Policy
from effllava_optuna.storage.artifact_store import DirectoryArtifactStore, artifact_backend_of
from effllava_optuna.storage.location import locate, locate_file
from effllava_optuna.storage.studies import first_difference, with_paths
from effllava_optuna.storage.urls import check_url, file_of
from effllava_optuna.surgery import LoadedModel
from tests.study_fixtures import FinishedStudy, copy_study, invoke, status_of

STUDY = """
[study]
storage = "{url}"
artifacts = "tensors"
[model]
path = "models/tiny"
[task]
name = "qa"
data = "rows.jsonl"
[latency]
table = "../latency.json"
[export]
directory = "out/small"
"""


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of study files; the working directory is another one."""
    studies, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    (studies / "models" / "tiny").mkdir(parents=True)
    (studies / "rows.jsonl").write_text("{}")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return studies


def write(studies: Path, url: str = "sqlite:///a.db", name: str = "own.toml") -> Path:
    file = studies / name
    file.write_text(STUDY.format(url=url))
    return file


@pytest.mark.parametrize("spelling", ["absolute", "relative", "link"])
def test_every_path_of_a_study_file_is_relative_to_it(studies: Path, spelling: str) -> None:
    file = write(studies)
    if spelling == "relative":
        file = Path("../studies/own.toml")
    if spelling == "link":
        Path("there").symlink_to(studies)
        file = Path("there/own.toml")
    config = load_config(file)
    assert config.study.artifacts == str(studies / "tensors")
    assert config.study.modules == str(studies)
    assert config.model.path == str(studies / "models" / "tiny")
    assert config.task.data == str(studies / "rows.jsonl")
    assert config.latency.table == str(studies.parent / "latency.json")
    assert config.export.directory == str(studies / "out" / "small")
    location = locate_file(file, config)
    assert location.export_directory(config) == studies / "out" / "small"
    backend = artifact_backend_of(location.url, config)
    assert isinstance(backend, DirectoryArtifactStore)
    assert backend.path == studies / "tensors"


def test_every_key_of_a_study_file_that_is_a_path_is_resolved() -> None:
    """A new key whose documentation says directory, file or path has to be listed here."""
    known = {"study.storage", "study.artifacts", "study.modules", "model.path", "task.data",
             "latency.table", "export.directory"}  # fmt: skip
    text_keys = {
        f"{table}.{key}"
        for table, settings in StudyConfig.model_fields.items()
        for key, field in getattr(settings.annotation, "model_fields", {}).items()
        if "str" in str(field.annotation) and "Literal" not in str(field.annotation)
    }
    others = {"study.name", "model.device", "task.name", "task.config", "task.columns",
              "task.harness", "task.instruction", "task.system", "quality.term",
              "search.sampler", "projector.train", "pruning.towers"}  # fmt: skip
    assert text_keys - others == known


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite+pysqlite:///db/a.db", "db/a.db"),
        ("sqlite:///../a.db", "../a.db"),
        ("sqlite:///a.db?timeout=9", "a.db"),
        ("journal:///a.log", "a.log"),
        ("journal:///./logs/a.log", "logs/a.log"),
    ],
)
def test_the_file_of_a_storage_is_relative_to_the_study_file(
    studies: Path, url: str, expected: str
) -> None:
    file = write(studies, url)
    location = locate_file(file, load_config(file))
    assert file_of(location.url) == Path(os.path.normpath(studies / expected))
    assert location.url.endswith("?timeout=9") == url.endswith("?timeout=9")


@pytest.mark.parametrize(
    "url", ["sqlite:////data/a.db", "journal:////data/a.log", "postgresql+psycopg:///name"]
)
def test_other_storages_of_a_study_file_stay_as_they_are(studies: Path, url: str) -> None:
    file = write(studies, url)
    assert locate_file(file, load_config(file)).url == url


def test_a_storage_on_the_command_line_is_relative_to_the_working_directory(
    smoke: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy_study(smoke.file, tmp_path / "study")
    monkeypatch.chdir(file.parent)
    assert file_of(locate("sqlite:///smoke.db", "smoke").url) == Path("smoke.db")
    expected = status_of("--storage", smoke.url, "--study-name", "smoke")
    for environment in ({}, {"OPTUNA_STORAGE": "sqlite:///smoke.db"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        option = [] if environment else ["--storage", "sqlite:///smoke.db"]
        assert status_of(*option, "--study-name", "smoke") == expected


def test_a_uri_of_sqlite_is_refused() -> None:
    with pytest.raises(StudyError, match="names its file by a URI"):
        check_url("sqlite:///file:a.db?uri=true")


def test_the_files_of_a_study_are_found_from_any_directory_and_move_with_it(
    smoke: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, work = copy_study(smoke.file, tmp_path / "old"), tmp_path / "work"
    (file.parent / "db").mkdir()
    file.with_suffix(".db").rename(file.parent / "db" / "own.db")
    file.with_suffix(".artifacts").rename(file.parent / "tensors")
    shutil.copytree(smoke.file.parent / "smoke.pruned", file.parent / "smoke.pruned")
    keys = 'storage = "sqlite:///db/own.db"\nartifacts = "tensors"\n'
    file.write_text(f"[study]\n{keys}{file.read_text()}")
    work.mkdir()
    monkeypatch.chdir(work)
    for directory in ("old", "new"):
        if directory == "new":
            file.parent.rename(tmp_path / "new")
        moved = tmp_path / directory / "smoke.toml"
        table = invoke("doctor", moved).stdout
        assert "artifacts" in table
        printed = invoke("resume", moved).stdout
        assert f"Its export in {tmp_path / directory / 'smoke.pruned'} is complete." in printed
    assert list(work.iterdir()) == []


def test_what_is_only_in_the_working_directory_is_refused_with_the_right_path(
    studies: Path,
) -> None:
    file = write(studies)
    shutil.rmtree(studies / "models")
    (Path.cwd() / "models" / "tiny").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == (
        f"{file}: model.path = 'models/tiny' is relative to the study file, and "
        f"{studies / 'models' / 'tiny'} does not exist, but there is a models/tiny in the current "
        "directory. Use '../elsewhere/models/tiny'."
    )
    (studies / "rows.jsonl").rename("rows.jsonl")
    with pytest.raises(ConfigError, match=r"rows\.jsonl.* in the current directory"):
        load_config(file, ("model.path=digits-vlm",))


def test_hub_ids_and_models_of_the_package_are_no_paths(studies: Path) -> None:
    file = write(studies)
    for model in ("llava-hf/llava-1.5-7b-hf", "gpt2", "digits-vlm"):
        assert load_config(file, (f"model.path={model}",)).model.path == model
    assert load_config(file, ("task.data=lmms-lab/MMVet",)).task.data == "lmms-lab/MMVet"
    Path("digits-vlm").mkdir()
    assert load_config(file, ("model.path=digits-vlm",)).model.path == "digits-vlm"
    missing = load_config(file, ("model.path=./none",)).model.path
    assert missing == str(studies / "none")


def test_a_model_may_move_with_its_file_and_not_be_replaced_by_a_hub_id(studies: Path) -> None:
    file = write(studies)
    stored = load_config(file)
    studies.rename(studies.with_name("moved"))
    given = load_config(studies.with_name("moved") / "own.toml")
    assert first_difference(stored, given) is None
    assert with_paths(stored, given) == given
    other = load_config(studies.with_name("moved") / "own.toml", ("model.path=a/b",))
    assert "model.path" in str(first_difference(stored, other))


def write_module(directory: Path, name: str, text: str) -> None:
    path = directory.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("module", ["beside_a", "package_a.part"])
def test_functions_are_imported_from_the_directory_of_the_study_file(
    studies: Path, tiny: LoadedModel, module: str
) -> None:
    policy = Policy.dense(tiny.structure)
    helper = f"helper_{module.replace('.', '_')}"
    write_module(studies, helper, "value = 0.25")
    text = f"def term(policy, loaded):\n    from {helper} import value\n    return value\n"
    text += "class Task:\n    name, chance = 'own', 0.5\n    def samples(self, split): return ()\n"
    text += "def build(*, seed, proxy, validation, test):\n"
    text += "    Task.digest = f'seed {seed}'\n    return Task()\n"
    write_module(studies, module, text)
    write_module(Path.cwd(), module, "raise RuntimeError('of the working directory')")
    file = write(studies)
    config = load_config(file, (f"quality.term={module}:term",))
    functions = user_functions(config)
    assert functions.term is not None
    term = functions.term
    assert term(policy, tiny) == 0.25
    again = user_functions(StudyConfig.of(config.document()))  # as a worker reads it
    assert again.term == functions.term
    assert str(studies) not in sys.path[:1]
    task = '[model]\npath = "digits-vlm"\n[task]\nseed = 7\n'
    (studies / "task.toml").write_text(f'{task}name = "{module}:build"\n')
    assert make_unchecked_task(load_config(studies / "task.toml")).digest == "seed 7"


def test_the_directory_of_modules_can_be_set(studies: Path) -> None:
    write_module(studies.parent / "lib", "elsewhere_a", "def term(policy, loaded): return 0.5")
    changes = ("quality.term=elsewhere_a:term", "study.modules=../lib")
    assert user_functions(load_config(write(studies), changes)).term is not None
    with pytest.raises(ConfigError, match=f"Use a function of a module in {studies} or"):
        user_functions(load_config(write(studies), ("quality.term=elsewhere_b:term",)))


@pytest.mark.parametrize("module", ["common_a", "json", "sys"])
def test_a_module_of_another_study_or_of_python_is_not_taken_for_that_of_the_file(
    studies: Path, module: str
) -> None:
    other = studies.parent / "other"
    other.mkdir()
    for number, directory in enumerate((other, studies)):
        write_module(directory, module, f"def term(policy, loaded): return {number}")
    if module == "common_a":
        assert user_functions(load_config(write(other), (f"quality.term={module}:term",))).term
    with pytest.raises(ConfigError) as caught:
        user_functions(load_config(write(studies), (f"quality.term={module}:term",)))
    message = str(caught.value)
    assert f"another module {module!r} is imported already, from " in message
    assert message.endswith(f"Rename {studies / module}.py.")


def test_init_writes_a_path_that_is_right_for_the_study_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint, tmp_path / "models" / "tiny")
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    for out in ("studies/far.toml", "near.toml"):
        invoke("init", "models/tiny", "--task", "digits", "--out", out)
        assert load_config(out).model.path == str(tmp_path / "models" / "tiny")
    assert 'path = "./models/tiny"' in Path("near.toml").read_text()
