"""The dashboard over a finished study: what a browser would ask for."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from contextlib import chdir
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty
from PIL import Image

from effllava_optuna.report import document
from effllava_optuna.study.board import at_once, note
from effllava_optuna.study.dashboard import _Genes, application
from effllava_optuna.study.facts import facts_of
from effllava_optuna.study.loop import continued
from effllava_optuna.study.objective import PruningObjective
from effllava_optuna.study.storage import open_storage, open_study, place_of
from tests.study.conftest import Ran, cli, clone, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def address(smoke: Ran) -> Iterator[str]:
    process = subprocess.Popen(
        command("dashboard", smoke.file, "--port", 0),
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    if process.stdout is None:
        raise AssertionError
    line = process.stdout.readline()
    yield line.split()[2]
    process.terminate()
    process.wait(60)
    process.stdout.close()


def get(address: str, path: str) -> Any:
    root = address.split("/dashboard")[0]
    with urllib.request.urlopen(root + path, timeout=60) as response:
        return json.loads(response.read())


def numbers(address: str) -> dict[str, int]:
    found = get(address, "/api/studies")["study_summaries"]
    return {study["study_name"]: study["study_id"] for study in found}


def test_it_serves_on_this_machine_only(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=60) as response:
        assert response.status == 200


def test_both_studies_open(address: str) -> None:
    studies = numbers(address)
    assert set(studies) == {"smoke", "smoke/projector"}
    for number in studies.values():
        found = get(address, f"/api/studies/{number}?after=0")
        assert found["trials"]
        get(address, f"/api/studies/{number}/param_importances")


def test_it_shows_names_widths_numbers_figure_and_note(address: str) -> None:
    studies = numbers(address)
    found = get(address, f"/api/studies/{studies['smoke']}?after=0")
    assert found["objective_names"] == ["quality", "latency_ms"]
    names = {param["name"] for param in found["union_search_space"]}
    assert {"language.00.attn", "language.05.mlp"} <= names
    sortable = {attr["key"] for attr in found["union_user_attrs"] if attr["sortable"]}
    assert {"epoch", "accuracy", "expected", "risk", "kept_share"} <= sortable
    drawn = {
        graph["id"]: json.loads(graph["graph_object"]) for graph in found["plotly_graph_objects"]
    }
    assert set(drawn) == {
        "front_by_epoch", "hypervolume", "kept_widths", "proxy_and_test", "projector",
    }  # fmt: skip
    names = {trace.get("name") for trace in drawn["front_by_epoch"]["data"]}
    assert {"epoch 0", "epoch 1", "chosen, test"} <= names
    assert re.search(r"\*\*Finished\*\*: trial \d+ was chosen by val", found["note"]["body"])
    assert "best trials mix epochs" in found["note"]["body"]
    control = get(address, f"/api/studies/{studies['smoke/projector']}?after=0")
    assert control["objective_names"] == ["proxy accuracy"]
    assert "One trial is one attempt" in control["note"]["body"]
    *epochs, report = [trial for trial in control["trials"] if trial["state"] == "Complete"]
    assert len(epochs) == 2
    assert report["artifacts"] == []
    for trial in epochs:
        (artifact,) = trial["artifacts"]
        root = address.split("/dashboard")[0]
        place = f"{root}/artifacts/{studies['smoke/projector']}/{trial['trial_id']}"
        with urllib.request.urlopen(f"{place}/{artifact['artifact_id']}", timeout=60) as response:
            assert len(response.read()) > 1000


def test_finalists_have_their_policy_as_a_file_and_as_a_picture(address: str, smoke: Ran) -> None:
    number = numbers(address)["smoke"]
    found = get(address, f"/api/studies/{number}?after=0")
    front = {row["trial"]: row for row in smoke.document()["front"]}
    shown = {trial["number"]: trial for trial in found["trials"] if trial["artifacts"]}
    assert set(shown) == set(front)
    for trial in shown.values():
        files = {}
        for artifact in trial["artifacts"]:
            path = f"/artifacts/{number}/{trial['trial_id']}/{artifact['artifact_id']}"
            with urllib.request.urlopen(address.split("/dashboard")[0] + path) as response:
                assert response.headers["Content-Type"] == artifact["mimetype"]
                files[artifact["filename"]] = response.read()
        told = json.loads(files["policy.json"])
        assert told["policy"] == front[trial["number"]]["policy"]
        assert told["widths"]["language.00.mlp"] == 384
        with Image.open(io.BytesIO(files["policy.png"])) as picture:
            assert picture.size[0] == 960


def test_the_command_in_the_note_exports(smoke: Ran, tmp_path: Path) -> None:
    file = clone(smoke.file, tmp_path / "clone")
    study = open_study(open_storage(f"sqlite:///{file.with_suffix('.db')}"), "smoke")
    (line,) = [line for line in get_note(study).splitlines() if line.startswith("python -m")]
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "effllava_optuna.study", "export"]
    with chdir(file.parent):
        cli(*words[3:])
    assert (file.parent / words[-1] / "config.json").is_file()


def test_a_finished_study_that_was_killed_before_its_page_was_written_gets_it(
    smoke: Ran, tmp_path: Path
) -> None:
    file = clone(smoke.file, tmp_path / "clone")
    storage = open_storage(f"sqlite:///{file.with_suffix('.db')}")
    study = open_study(storage, "smoke")
    save_note(study, "old")
    before = storage.get_study_system_attrs(study._study_id)
    cli("resume", file)
    after = storage.get_study_system_attrs(study._study_id)
    assert "**Finished**" in get_note(study)
    differing = {key for key in before | after if before.get(key) != after.get(key)}
    assert {key.partition(":note")[0] for key in differing} == {"dashboard"}


def test_an_enqueued_policy_beyond_the_budget_is_infeasible_on_its_page(
    smoke: Ran, tmp_path: Path
) -> None:
    file = clone(smoke.file, tmp_path / "clone")
    url = f"sqlite:///{file.with_suffix('.db')}"
    study = open_study(open_storage(url), "smoke")
    genes: Any = study.trials[0].distributions
    widths = {name: gene.high for name, gene in genes.items()}
    study.enqueue_trial(widths)
    with continued(study, url) as epochs:
        epochs.endless = True
        study.optimize(PruningObjective(epochs), n_trials=1)
        trial = study.trials[-1]
    assert trial.user_attrs["kind"] == "foreign"
    assert trial.user_attrs["over_budget"] == (
        "0.7750 of the weights beyond the budget (search.kept_share = 0.225)"
    )
    (shown,) = one_of(study, url, trial.number)["constraints"]
    assert shown == pytest.approx(0.775)


def test_the_note_counts_failures_by_their_reason(smoke: Ran, tmp_path: Path) -> None:
    file = clone(smoke.file, tmp_path / "clone")
    study = open_study(open_storage(f"sqlite:///{file.with_suffix('.db')}"), "smoke")
    assert "Failed" not in note(study, document(facts_of(study)))
    for reason in ("MemoryError: full", "MemoryError: full", "TimeoutError: late"):
        attrs = {"reason": reason}
        study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attrs))
    told = "- Failed: 3 (attribute `reason`): MemoryError: full (2); TimeoutError: late (1)"
    assert told in note(study, document(facts_of(study)))


def test_a_note_shows_no_password_and_no_folder(tmp_path: Path) -> None:
    here = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True))
    assert place_of(here) == "sqlite:///a.db"
    log = optuna.create_study(
        storage=open_storage(f"journal:///{tmp_path / 'a.log'}", create=True)
    )
    assert place_of(log) == "journal:///a.log"
    cached: Any = here._storage
    cached._backend.url = "postgresql+psycopg://me:secret@host/name"
    assert place_of(here) == "postgresql+psycopg://me:***@host/name"


def one_of(study: optuna.Study, url: str, number: int) -> dict[str, Any]:
    """Give a trial as the dashboard shows it."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = f"/api/studies/{study._study_id}"
    body = b"".join(application(study, url)(environ, lambda *_: None))
    found: dict[str, Any] = json.loads(body)["trials"][number]
    return found


def test_genes_and_attributes_are_what_the_dashboard_finds_by_itself(smoke: Ran) -> None:
    study = open_study(open_storage(f"sqlite:///{smoke.file.with_suffix('.db')}"), "smoke")
    trials = study.trials
    trials[5].state = TrialState.RUNNING
    trials[7].user_attrs["risk"] = "unknown"
    plain, ours = _CachedExtraStudyProperty(), _Genes()
    for known in (trials[:4], trials[:7], trials, trials):
        plain.update(known)
        ours.update(known)
        assert ours.union_search_space == plain.union_search_space
        assert ours.intersection_search_space == plain.intersection_search_space
        assert dict(ours.union_user_attrs) == dict(plain.union_user_attrs)


def test_what_is_written_at_once_is_what_the_dashboard_writes(tmp_path: Path) -> None:
    figure = go.Figure()
    for points in (3000, 3):  # a smaller one must leave nothing of the larger one
        figure.data = []
        figure.add_scatter(y=list(range(points)))
        for url in (f"sqlite:///{tmp_path / 'a.db'}", f"journal:///{tmp_path / 'a.log'}"):
            study = optuna.create_study(
                storage=open_storage(url, create=True), study_name="a", load_if_exists=True
            )
            with at_once(study) as page:
                save_note(page, "words" * 1000)
                save_plotly_graph_object(page, figure, graph_object_id="f")
            attrs = study._storage.get_study_system_attrs(study._study_id)
            assert get_note(study) == "words" * 1000
            (stored,) = get_plotly_graph_objects(attrs).values()
            assert stored == figure.to_json()


def test_a_port_that_is_taken_is_named(address: str, smoke: Ran) -> None:
    port = address.split(":")[2].split("/")[0]
    done = cli("dashboard", smoke.file, "--port", port, check=False)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be served" in done.stderr
