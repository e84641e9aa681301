"""A study of policies that stock classes load without padding, from its file to its export."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from effllava_optuna import load
from effllava_optuna.policy import Kind, Policy
from effllava_optuna.storage.trial_records import record_of
from tests.study_fixtures import SMOKE, invoke, url_of_study

pytestmark = pytest.mark.studies

KEYS = (
    "pruning.mode=vllm-safe", "pruning.depth=true", "pruning.width_ratios=[0.7, 1.0]",
    "export.directory=engine.pruned", "task.proxy=16", "task.validation=8", "task.test=8",
    "latency.seconds=0", "search.epochs=1", "search.generations=2", "search.population=6",
    "search.keep_ratio=0.6",
)  # fmt: skip
# Of four groups. Three have six heads, which do not divide the hidden size of 128.
ACCEPTED = {2, 4}  # in place of three, and the dense one


def test_a_study_for_engines_ends_in_an_export_without_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "engine.toml"
    file.write_text(SMOKE.read_text())
    monkeypatch.chdir(tmp_path)
    invoke("run", file, *(word for key in KEYS for word in ("--set", key)))
    verified = json.loads((tmp_path / "engine.pruned" / "verified.json").read_text())
    assert verified["loader"] == ["AutoModelForImageTextToText"]
    assert verified["padded"] == 0
    assert verified["generation_equal"]
    structure = load("digits-vlm", device="cpu", depth=True).structure
    study = optuna.load_study(study_name=file.stem, storage=url_of_study(file))
    trials = study.get_trials(deepcopy=False)
    assert len(trials) == 12
    for trial in trials:
        widths = Policy.of(structure, record_of(trial).widths).active_widths
        kept = {widths[c.id] for c in structure.components if c.kind is Kind.ATTN} - {0}
        assert len(kept) == 1
        assert kept <= ACCEPTED
