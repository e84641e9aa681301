"""``allocate``: a study without a search, which every other command treats like all studies."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.search.allocation_study import sized_for
from effllava_optuna.search.runner import begin
from effllava_optuna.study import load_config
from tests.cli.commands.test_study_commands import wait_for_trials
from tests.study_fixtures import copy_study, invoke, start_command, url_of_study, write_tiny

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.studies

POINTS = 1 + 3 * 2 + 3 * 3  # the dense policy, attention and MLPs of three blocks
POPULATION = 6


@pytest.fixture(scope="module")
def allocated(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished allocation over measured curves, with its export."""
    file = write_tiny(checkpoint, tmp_path_factory.mktemp("allocated"))
    file.write_text(file.read_text() + '[export]\ndirectory = "tiny.pruned"\n')
    invoke("allocate", file, "--set", "search.curves=measured")
    return file


def document_of(file: Path, verb: str = "status") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(invoke(verb, file, "-f", "json").stdout)
    return document


def test_an_allocation_is_reported_and_exported_like_a_search(allocated: Path) -> None:
    document = document_of(allocated)
    generations = -(-POINTS // POPULATION) + 1
    assert document["trials"]["complete"] == generations * POPULATION
    assert document["chosen"]["accuracy_test"] is not None
    assert document["chosen"]["keep_ratio"] <= 0.5
    assert (allocated.parent / "tiny.pruned" / "config.json").is_file()
    assert "was chosen: " in invoke("report", allocated).stdout
    assert invoke("pick", allocated).stdout
    assert "finished" in invoke("resume", allocated).stdout


def test_the_study_file_still_describes_the_study(allocated: Path, tmp_path: Path) -> None:
    """Its search is that of `allocate`; all other keys must not change."""
    copy = copy_study(allocated, tmp_path / "copy")
    copy.write_text(copy.read_text().replace("keep_ratio = 0.5", "keep_ratio = 0.4"))
    done = invoke("status", copy, check=False)
    assert done.returncode == 2
    assert "search.keep_ratio is 0.4 in the file and 0.5 in the study" in done.stderr


@pytest.mark.parametrize("verb", ["allocate", "run"])
def test_a_name_that_exists_is_refused(allocated: Path, verb: str) -> None:
    done = invoke(verb, allocated, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "Study 'tiny' exists already. Continue it with `resume`, or choose another study.name."
    )


@pytest.mark.parametrize(
    ("changes", "planned"),
    [
        ((), POPULATION),  # a study file without curves: those that cost no evaluation
        (
            (
                "pruning.compensation=none",
                "pruning.importance=magnitude",
                "search.curves=none",
            ),
            4 * POPULATION,
        ),
        (("pruning.mode=vllm-safe", "search.curves=measured"), 2 * POPULATION),
        (("pruning.depth=true",), POPULATION),
        (("search.sampler=sep-cma", "search.speedup=1.2"), POPULATION),
    ],
)
def test_an_allocation_takes_the_curves_that_the_study_has(
    checkpoint: Path, tmp_path: Path, changes: tuple[str, ...], planned: int
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    if "search.speedup=1.2" in changes:
        file.write_text(file.read_text().replace("keep_ratio = 0.5\n", ""))
    words = [word for change in changes for word in ("--set", change)]
    printed = invoke("allocate", file, *words).stdout
    assert f"{planned} trials planned ({planned} complete)" in printed
    assert "was chosen: " in printed


def test_without_a_budget_the_dense_policy_is_one_of_the_range(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    file.write_text(file.read_text().replace("keep_ratio = 0.5\n", ""))
    invoke("allocate", file)
    assert document_of(file)["trials"]["complete"] == POPULATION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.keep_ratio=0.01", "search.keep_ratio = 0.01: the narrowest policy keeps 0."),
        ("search.keep_ratio=0", "search.keep_ratio = 0: Input should be greater than 0"),
    ],
)
def test_a_budget_that_no_policy_meets_is_refused(
    checkpoint: Path, tmp_path: Path, change: str, message: str
) -> None:
    done = invoke("allocate", write_tiny(checkpoint, tmp_path), "--set", change, check=False)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.kill
@pytest.mark.parametrize("curves", ["measured", "residual"])
def test_a_killed_allocation_measures_what_an_undisturbed_one_measures(
    checkpoint: Path, tmp_path: Path, curves: str
) -> None:
    whole = write_tiny(checkpoint, tmp_path)
    text = whole.read_text().replace(
        "epochs = 2", f'epochs = 1\nsampler = "allocation"\ncurves = "{curves}"'
    )
    whole.write_text(text)
    with begin(load_config(whole), url_of_study(whole), sized_for=sized_for) as session:
        sizes = session.config.search
    whole.write_text(
        text.replace("generations = 2", f"generations = {sizes.generations}").replace(
            "population = 6", f"population = {sizes.population}"
        )
    )
    killed = copy_study(whole, tmp_path / "killed")
    for complete in (2, sizes.trials - 3):
        process = start_command("resume", killed)
        wait_for_trials(killed.with_suffix(".db"), complete)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    invoke("resume", killed)
    invoke("resume", whole)
    expected, resumed = document_of(whole), document_of(killed)
    assert resumed["digest"] == expected["digest"]
    assert resumed["trials"]["complete"] == expected["trials"]["complete"] == sizes.trials
    assert resumed["chosen"]["policy"] == expected["chosen"]["policy"]
