"""What the dashboard of a finished study serves to a browser."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from typing import Any

import pytest
from PIL import Image

from tests.study_fixtures import FinishedStudy, invoke

FIGURES = {
    "sensitivity", "front_by_epoch", "hypervolume", "width_ratios", "proxy_and_test", "projector",
}  # fmt: skip


class Client:
    """Requests paths of the server behind ``dashboard_url``."""

    def __init__(self, dashboard_url: str) -> None:
        self.root = dashboard_url.split("/dashboard")[0]
        summaries = self.json("/api/studies")["study_summaries"]
        self.study_ids = {study["study_name"]: study["study_id"] for study in summaries}

    def get(self, path: str) -> tuple[bytes, str]:
        """Return the content of a path, and its type."""
        with urllib.request.urlopen(self.root + path, timeout=60) as response:
            return response.read(), response.headers["Content-Type"]

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[0])

    def study(self, name: str) -> dict[str, Any]:
        study: dict[str, Any] = self.json(f"/api/studies/{self.study_ids[name]}?after=0")
        return study

    def artifacts(self, name: str, trial: dict[str, Any]) -> dict[str, bytes]:
        """Return the files that are attached to a trial, by file name."""
        files = {}
        for artifact in trial["artifacts"]:
            path = f"{self.study_ids[name]}/{trial['trial_id']}/{artifact['artifact_id']}"
            content, content_type = self.get(f"/artifacts/{path}")
            assert content_type == artifact["mimetype"]
            files[artifact["filename"]] = content
        return files


@pytest.fixture(scope="session")
def client(dashboard_url: str) -> Client:
    return Client(dashboard_url)


def test_it_listens_on_this_machine_only(dashboard_url: str) -> None:
    assert dashboard_url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(dashboard_url, timeout=60) as response:
        assert response.status == 200


def test_pages_have_a_stylesheet_and_other_answers_are_unchanged(client: Client) -> None:
    page, content_type = client.get("/dashboard/studies/1")
    assert content_type.startswith("text/html")
    head, _, rest = page.decode().partition("</style></head>")
    assert '[id="user-defined-plot:front_by_epoch"]' in head
    assert rest.rstrip().endswith("</html>")  # the length in the header is that of the page
    assert "artifact_is_available" in client.json("/api/meta")


def test_both_studies_have_trials_and_parameter_importances(client: Client) -> None:
    assert set(client.study_ids) == {"smoke", "smoke/projector"}
    for name, study_id in client.study_ids.items():
        assert client.study(name)["trials"]
        client.json(f"/api/studies/{study_id}/param_importances")


def test_a_study_has_named_objectives_and_parameters_and_sortable_values(client: Client) -> None:
    study = client.study("smoke")
    assert study["objective_names"] == ["quality", "latency_ms"]
    parameters = {parameter["name"] for parameter in study["union_search_space"]}
    assert {"language.00.attn", "language.05.mlp"} <= parameters
    sortable = {attr["key"] for attr in study["union_user_attrs"] if attr["sortable"]}
    assert {"epoch", "accuracy", "expected", "risk", "keep_ratio"} <= sortable


def test_a_finished_study_has_all_figures_and_a_note(client: Client) -> None:
    study = client.study("smoke")
    figures = {
        graph["id"]: json.loads(graph["graph_object"]) for graph in study["plotly_graph_objects"]
    }
    assert set(figures) == FIGURES
    names = {trace.get("name") for trace in figures["front_by_epoch"]["data"]}
    assert {"epoch 1", "epoch 2", "chosen, test"} <= names
    assert re.search(r"\*\*Finished\*\*: trial \d+ was chosen on val", study["note"]["body"])
    assert "best trials mix epochs" in study["note"]["body"]


def test_the_control_study_has_a_note_and_a_file_per_epoch(client: Client) -> None:
    control = client.study("smoke/projector")
    assert control["objective_names"] == ["proxy accuracy"]
    assert "Each trial is one attempt" in control["note"]["body"]
    *epochs, selection = [trial for trial in control["trials"] if trial["state"] == "Complete"]
    assert len(epochs) == 2
    assert selection["artifacts"] == []
    for trial in epochs:
        (content,) = client.artifacts("smoke/projector", trial).values()
        assert len(content) > 1000


def test_finalists_have_their_policy_as_a_file_and_as_a_picture(
    client: Client, smoke: FinishedStudy
) -> None:
    front = {row["trial"]: row for row in smoke.document()["front"]}
    trials = {
        trial["number"]: trial for trial in client.study("smoke")["trials"] if trial["artifacts"]
    }
    assert set(trials) == set(front)
    for number, trial in trials.items():
        files = client.artifacts("smoke", trial)
        policy = json.loads(files["policy.json"])
        assert policy["policy"] == front[number]["policy"]
        assert policy["dense_widths"]["language.00.mlp"] == 384
        with Image.open(io.BytesIO(files["policy.png"])) as picture:
            assert picture.size[0] == 960


def test_a_port_in_use_is_named(dashboard_url: str, smoke: FinishedStudy) -> None:
    port = dashboard_url.split(":")[2].split("/")[0]
    result = invoke("dashboard", smoke.file, "--port", port, check=False)
    assert result.returncode == 2
    assert f"127.0.0.1:{port} cannot be served" in result.stderr
