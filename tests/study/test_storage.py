from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from effllava_optuna.errors import StudyError
from effllava_optuna.study import artifacts, storage
from effllava_optuna.study.spec import read_spec

if TYPE_CHECKING:
    from effllava_optuna.study.spec import StudySpec

ROOT = Path(__file__).parents[2]
SAMPLER = optuna.samplers.RandomSampler()


@pytest.fixture
def spec() -> StudySpec:
    return read_spec(ROOT / "studies" / "smoke.toml")


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'a.db'}"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nonsense", "is no database URL"),
        ("mysql://host/db", "MySQL keeps 64 kB of an attribute"),
        ("oracle://host/db", "oracle is not supported"),
        ("sqlite:///nowhere.db", "there is no such database"),
        ("journal:///nowhere.log", "there is no such database"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", "cannot be opened as an Optuna database"),
        ("postgresql+pg8000://host/db", "its driver is missing"),
        ("grpc://somewhere", "names no host and port"),
    ],
)
def test_a_bad_url_is_named(bad: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        storage.open_storage(bad)


def test_a_study_is_kept_by_every_storage(storage_url: str, spec: StudySpec) -> None:
    study = storage.create_study(storage.open_storage(storage_url, create=True), spec)
    study.set_user_attr("large", "x" * 1_000_000)
    again = storage.open_study(storage.open_storage(storage_url), "smoke")
    assert storage.spec_of(again) == spec
    assert len(again.user_attrs["large"]) == 1_000_000
    with pytest.raises(StudyError, match="exists already"):
        storage.create_study(storage.open_storage(storage_url), spec)


def test_a_study_on_a_server_needs_a_place_for_artifacts(spec: StudySpec) -> None:
    with pytest.raises(StudyError, match=r"Set study\.artifacts"):
        artifacts.store_for("postgresql+psycopg://host/db", spec)
    for url, place in (("a/b.log", "a/b.artifacts"), ("/a/b.log", "/a/b.artifacts")):
        store = artifacts.store_for(f"journal:///{url}", spec)
        assert isinstance(store, artifacts.Folder)
        assert store.path == Path(place)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("hello " * 1000)
    with pytest.raises(StudyError, match="cannot be opened as an Optuna database"):
        storage.open_storage(url(tmp_path))


def test_a_study_is_created_once(tmp_path: Path, spec: StudySpec) -> None:
    opened = storage.open_storage(url(tmp_path), create=True)
    study = storage.create_study(opened, spec)
    assert storage.spec_of(study) == spec
    assert study.metric_names == ["quality", "latency_ms"]
    with pytest.raises(StudyError, match=r"exists already\. Continue it with `resume`"):
        storage.create_study(opened, spec)


def test_opening_names_the_studies_that_there_are(tmp_path: Path, spec: StudySpec) -> None:
    opened = storage.open_storage(url(tmp_path), create=True)
    storage.create_study(opened, spec)
    with pytest.raises(StudyError, match=r"There is no study 'other'.*It has: smoke"):
        storage.open_study(opened, "other")
    optuna.create_study(storage=opened, study_name="foreign")
    with pytest.raises(StudyError, match="was not made by effllava_optuna"):
        storage.open_study(opened, "foreign")


def test_a_changed_file_is_told_by_its_first_difference(spec: StudySpec) -> None:
    search = spec.search.model_copy(update={"epochs": 9})
    changed = spec.model_copy(update={"search": search})
    assert storage.difference(spec, spec) is None
    assert storage.difference(spec, changed) == (
        "search.epochs is 9 in the file and 2 in the study"
    )


def _pop(url: str, rounds: int, won: multiprocessing.Queue[int]) -> None:
    sampler = optuna.samplers.RandomSampler()
    opened = storage.open_storage(url)
    study = optuna.load_study(storage=opened, study_name="race", sampler=sampler)
    for _ in range(rounds):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            try:
                if study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    won.put(trial.number)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue


def test_two_processes_never_take_the_same_trial(tmp_path: Path) -> None:
    opened = storage.open_storage(url(tmp_path), create=True)
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


def test_a_study_may_bear_more_later_and_stays_where_it_is(spec: StudySpec) -> None:
    file, place = ROOT / "studies" / "smoke.toml", "study.artifacts=there"
    study = storage.create_study(optuna.storages.InMemoryStorage(), read_spec(file, (place,)))
    patience = ("search.failures=0.5", "search.timeout=9.0")
    later = read_spec(file, patience)
    assert storage.difference(storage.spec_of(study), later) is None
    storage.renew(study, later)
    assert storage.spec_of(study) == read_spec(file, (*patience, place))


def test_a_study_follows_its_rows_when_its_folder_moves(tmp_path: Path) -> None:
    """The file names rows beside itself; that they are the same ones, the task's digest says."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "mine.jsonl").write_text("{}")
    text = '[model]\npath = "digits-vlm"\n[task]\nname = "qa"\ndata = "mine.jsonl"\n'
    (here / "own.toml").write_text(text)
    began = read_spec(here / "own.toml")
    assert began.task.data == str(here / "mine.jsonl")
    study = storage.create_study(optuna.storages.InMemoryStorage(), began)
    here.rename(there)
    now = read_spec(there / "own.toml")
    assert storage.difference(storage.spec_of(study), now) is None
    storage.follow(study, now)
    assert storage.spec_of(study).task.data == str(there / "mine.jsonl")


def test_a_template_is_stored_as_optuna_stores_it(storage_url: str, tmp_path: Path) -> None:
    """The second one takes the short way, as its distributions are known."""
    ours = storage.open_storage(storage_url, create=True)
    theirs = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'theirs.db'}")
    for opened in (ours, theirs):
        study = optuna.create_study(storage=opened, study_name="s", sampler=SAMPLER)
        for width in (3, 4):
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    params={"a": width, "b": "x"},
                    distributions={"a": IntDistribution(1, 8), "b": CategoricalDistribution("xy")},
                    user_attrs={"epoch": 0, "keep": [1, 2]},
                    system_attrs={"constraints": [-1.0]},
                )
            )
        del study
    fresh = storage.open_storage(storage_url)  # what is read is what was stored
    first, second = (
        [
            (t.number, t.state, t.params, t.distributions, t.user_attrs, t.system_attrs)
            for t in optuna.load_study(study_name="s", storage=opened, sampler=SAMPLER).trials
        ]
        for opened in (fresh, theirs)
    )
    assert first == second


def test_a_parameter_that_changes_its_kind_is_refused(tmp_path: Path) -> None:
    opened = storage.open_storage(url(tmp_path), create=True)
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
