from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from effllava_optuna.config.loading import load_config
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import StudyError
from effllava_optuna.storage import artifact_store as artifacts
from effllava_optuna.storage import study_facts
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.integrity import check_study
from effllava_optuna.storage.location import StudyLocation
from effllava_optuna.storage.storage_internals import trial_id_of
from effllava_optuna.storage.studies import (
    config_of,
    create_study,
    first_difference,
    open_study,
    update_failure_limits,
    update_paths,
)

if TYPE_CHECKING:
    from collections.abc import Callable


ROOT = Path(__file__).parents[2]
SAMPLER = optuna.samplers.RandomSampler()


@pytest.fixture
def config() -> StudyConfig:
    return load_config(ROOT / "studies" / "smoke.toml")


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'a.db'}"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nonsense", "is not a database URL"),
        ("mysql://host/db", "MySQL keeps 64 kB of an attribute"),
        ("oracle://host/db", "oracle is not supported"),
        ("sqlite:///nowhere.db", "there is no such database"),
        ("journal:///nowhere.log", "there is no such database"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", "cannot be opened as an Optuna database"),
        ("postgresql+pg8000://host/db", "its driver is missing"),
        ("grpc://somewhere", "has no host or no port"),
    ],
)
def test_a_bad_url_is_refused(bad: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        open_storage(bad)


def test_every_storage_stores_a_study(storage_url: str, config: StudyConfig) -> None:
    study = create_study(open_storage(storage_url, create=True), config)
    study.set_user_attr("large", "x" * 1_000_000)
    again = open_study(open_storage(storage_url), "smoke")
    assert config_of(again) == config
    assert len(again.user_attrs["large"]) == 1_000_000
    with pytest.raises(StudyError, match="exists already"):
        create_study(open_storage(storage_url), config)


def test_a_study_on_a_server_needs_a_location_of_artifacts(config: StudyConfig) -> None:
    with pytest.raises(StudyError, match=r"Set study\.artifacts"):
        artifacts.artifact_backend_of("postgresql+psycopg://host/db", config)
    for log, directory in (("a/b.log", "a/b.artifacts"), ("/a/b.log", "/a/b.artifacts")):
        store = artifacts.artifact_backend_of(f"journal:///{log}", config)
        assert isinstance(store, artifacts.DirectoryArtifactStore)
        assert store.path == Path(directory)


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("hello " * 1000)
    with pytest.raises(StudyError, match="cannot be opened as an Optuna database"):
        open_storage(url(tmp_path))


def test_a_study_is_created_once(tmp_path: Path, config: StudyConfig) -> None:
    opened = open_storage(url(tmp_path), create=True)
    study = create_study(opened, config)
    assert config_of(study) == config
    assert study.metric_names == ["quality", "latency_ms"]
    with pytest.raises(StudyError, match=r"exists already\. Continue it with `resume`"):
        create_study(opened, config)


def test_the_error_about_a_missing_study_names_the_others(
    tmp_path: Path, config: StudyConfig
) -> None:
    opened = open_storage(url(tmp_path), create=True)
    create_study(opened, config)
    with pytest.raises(StudyError, match=r"There is no study 'other'.*It has: smoke"):
        open_study(opened, "other")
    optuna.create_study(storage=opened, study_name="plain")
    with pytest.raises(StudyError, match="was not created by effllava_optuna"):
        open_study(opened, "plain")


@pytest.mark.parametrize("attribute", ["effllava:spec", "effllava:anatomy"])
def test_a_study_of_an_older_version_is_refused(
    attribute: str, tmp_path: Path, config: StudyConfig
) -> None:
    from effllava_optuna.search.preparation import prepare

    opened = open_storage(url(tmp_path), create=True)
    study = optuna.create_study(
        storage=opened, study_name="smoke", directions=["maximize", "minimize"]
    )
    study.set_user_attr(attribute, {})
    location = StudyLocation(url(tmp_path), "smoke", "smoke.toml", config, Path("smoke.toml"))
    assert location.exists()
    refusals: list[Callable[[], object]] = [
        lambda: open_study(opened, "smoke"),
        location.open,
        lambda: create_study(opened, config),
        lambda: prepare(config, study),
    ]
    for refusal in refusals:
        with pytest.raises(StudyError) as caught:
            refusal()
        assert str(caught.value) == (
            "Study 'smoke' was written by an older version of effllava_optuna. Use that version, "
            "or start a new study under another study.name."
        )
    (result,) = check_study(location)
    assert (result.state, result.cure) == ("fault", caught.value.hint)


def test_the_first_difference_of_a_changed_file_is_named(config: StudyConfig) -> None:
    search = config.search.model_copy(update={"epochs": 9})
    changed = config.model_copy(update={"search": search})
    assert first_difference(config, config) is None
    assert first_difference(config, changed) == (
        "search.epochs is 9 in the file and 2 in the study"
    )


def _pop(url: str, rounds: int, won: multiprocessing.Queue[int]) -> None:
    sampler = optuna.samplers.RandomSampler()
    opened = open_storage(url)
    study = optuna.load_study(storage=opened, study_name="race", sampler=sampler)
    for _ in range(rounds):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            try:
                trial_id = trial_id_of(trial)
                if opened.set_trial_state_values(trial_id, TrialState.RUNNING):
                    won.put(trial.number)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue


@pytest.mark.kill
def test_two_processes_never_take_the_same_trial(tmp_path: Path) -> None:
    opened = open_storage(url(tmp_path), create=True)
    study = optuna.create_study(storage=opened, study_name="race")
    for _ in range(40):
        study.enqueue_trial({})
    context = multiprocessing.get_context("spawn")
    won: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_pop, args=(url(tmp_path), 2, won)) for _ in range(2)]
    for worker in workers:
        worker.start()
    taken = [won.get(timeout=60) for _ in range(40)]
    for worker in workers:
        worker.join(60)
    assert sorted(taken) == list(range(40))
    assert won.empty()


def test_limits_change_later_and_the_location_of_artifacts_does_not(config: StudyConfig) -> None:
    file, artifacts_key = ROOT / "studies" / "smoke.toml", "study.artifacts=there"
    study = create_study(optuna.storages.InMemoryStorage(), load_config(file, (artifacts_key,)))
    limits = ("search.failures=0.5", "search.timeout=9.0")
    later = load_config(file, limits)
    assert first_difference(config_of(study), later) is None
    update_failure_limits(study, later)
    assert config_of(study) == load_config(file, (*limits, artifacts_key))


def test_sizes_that_a_file_does_not_set_are_those_of_the_study() -> None:
    document = {"model": {"path": "digits-vlm"}, "study": {"name": "own"}}
    task = {"name": "qa", "data": "rows.jsonl"}
    file = StudyConfig.of(document | {"task": task})
    older = {"proxy": 64, "validation": 500, "test": 2000}
    for sizes in (older, {"proxy": 20, "validation": 10, "test": 10}):
        stored = StudyConfig.of(document | {"task": task | sizes})
        assert first_difference(stored, file) is None
    changed = StudyConfig.of(document | {"task": task | older | {"proxy": 32}})
    assert "task.proxy is 32 in the file" in (first_difference(stored, changed) or "")


def test_the_path_of_the_data_changes_when_the_directory_moves(tmp_path: Path) -> None:
    """The study file names rows beside itself."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "rows.jsonl").write_text("{}")
    text = '[model]\npath = "digits-vlm"\n[task]\nname = "qa"\ndata = "rows.jsonl"\n'
    (old / "own.toml").write_text(text)
    first = load_config(old / "own.toml")
    assert first.task.data == str(old / "rows.jsonl")
    study = create_study(optuna.storages.InMemoryStorage(), first)
    old.rename(new)
    moved = load_config(new / "own.toml")
    assert first_difference(config_of(study), moved) is None
    update_paths(study, moved)
    assert config_of(study).task.data == str(new / "rows.jsonl")


def test_a_queued_trial_is_stored_as_optuna_stores_it(storage_url: str, tmp_path: Path) -> None:
    """The distributions of the second trial are in the cache."""
    ours = open_storage(storage_url, create=True)
    theirs = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'theirs.db'}")
    for opened in (ours, theirs):
        study = optuna.create_study(storage=opened, study_name="s", sampler=SAMPLER)
        for width in (3, 4):
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    params={"a": width, "b": "x"},
                    distributions={"a": IntDistribution(1, 8), "b": CategoricalDistribution("xy")},
                    user_attrs={"epoch": 0, "widths": [1, 2]},
                    system_attrs={"constraints": [-1.0]},
                )
            )
    reopened = open_storage(storage_url)  # without a cache
    first, second = (
        [
            (t.number, t.state, t.params, t.distributions, t.user_attrs, t.system_attrs)
            for t in optuna.load_study(study_name="s", storage=opened, sampler=SAMPLER).trials
        ]
        for opened in (reopened, theirs)
    )
    assert first == second


def test_a_parameter_of_another_kind_is_refused(tmp_path: Path) -> None:
    opened = open_storage(url(tmp_path), create=True)
    study = optuna.create_study(storage=opened, sampler=SAMPLER)
    for _ in range(2):
        study.enqueue_trial({"a": 1})
        study.ask().suggest_int("a", 1, 8)
    template = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params={"a": "x"},
        distributions={"a": CategoricalDistribution("xy")},
    )
    with pytest.raises(ValueError, match="different distribution kind"):
        study.add_trial(template)


def test_trials_are_read_before_epochs(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch may be published meanwhile: its trials would have no epoch."""
    read: list[str] = []

    def recorded(name: str) -> Callable[[optuna.Study], Any]:
        real = getattr(study_facts, name)

        def call(study: optuna.Study) -> Any:
            read.append(name)
            return real(study)

        return call

    for name in ("load_control_study", "effective_records"):
        monkeypatch.setattr(study_facts, name, recorded(name))
    study_facts.read_study_facts(create_study(optuna.storages.InMemoryStorage(), config))
    assert read == ["effective_records", "load_control_study"]
