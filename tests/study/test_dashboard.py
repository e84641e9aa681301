"""The dashboard over a finished study: what a browser would ask for."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.study.conftest import Ran, cli, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    (graph,) = found["plotly_graph_objects"]
    assert graph["id"] == "front_by_epoch"
    drawn = json.loads(graph["graph_object"])
    assert {"epoch 0", "epoch 1", "dense", "chosen"} <= {trace["name"] for trace in drawn["data"]}
    assert "Chosen by validation" in found["note"]["body"]
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


def test_a_port_that_is_taken_is_named(address: str, smoke: Ran) -> None:
    port = address.split(":")[2].split("/")[0]
    done = cli("dashboard", smoke.file, "--port", port, check=False)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be served" in done.stderr
