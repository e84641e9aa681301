"""Exports with fewer image tokens: model and processor agree in a fresh process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from effllava_optuna import export, load_pruned, sliced
from effllava_optuna.errors import ExportError, ModelError
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import (
    LoadedModel,
    VerifiedExport,
    build_example_inputs,
    reduced_tokens,
)
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.comparison import write_expected
from effllava_optuna.surgery.loading.checksums import write_checksums
from tests.surgery.family_models import CLOSE, assert_reloaded, compute_logits, random_policy
from tests.surgery.visual_tokens.pictured_families import (
    PICTURED,
    load_pictured,
    pictured_inputs,
)

pytestmark = pytest.mark.exports


@pytest.fixture(scope="module")
def small(tiny: LoadedModel, ranking: Ranking) -> LoadedModel:
    """A pruned model that reads a quarter of the image tokens."""
    with reduced_tokens(tiny, 0.25) as reduced:
        return sliced(reduced, Policy.uniform(tiny.structure, ratio=0.5), ranking)


@pytest.fixture(scope="module")
def exported(
    small: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, VerifiedExport]:
    directory = tmp_path_factory.mktemp("reduced") / "checkpoint"
    return directory, export(small, directory)


def test_the_export_is_verified_with_both_loaders(
    exported: tuple[Path, VerifiedExport],
) -> None:
    directory, verified = exported
    assert verified.generation_equal
    assert verified.loader == ("load_pruned", "trust_remote_code")
    assert "25% of the image tokens" in (directory / "README.md").read_text()
    policy = json.loads((directory / "policy.json").read_text())
    assert policy["visual_tokens"]["ratio"] == 0.25


def test_the_checkpoint_is_usable_without_this_package(
    exported: tuple[Path, VerifiedExport], small: LoadedModel
) -> None:
    directory, _ = exported
    for file in directory.glob("*.py"):
        assert "import effllava" not in file.read_text()
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True)
    inputs = build_example_inputs(processor)
    expected = compute_logits(small.model, build_example_inputs(small.processor))
    torch.testing.assert_close(compute_logits(model, inputs), expected, **CLOSE)


def test_a_loaded_export_can_be_exported_again(
    exported: tuple[Path, VerifiedExport], small: LoadedModel, tmp_path: Path
) -> None:
    loaded = load_pruned(exported[0], device="cpu")
    assert loaded.visual_tokens == small.visual_tokens
    verified = export(loaded, tmp_path / "again")
    assert verified.generation_equal
    assert load_pruned(tmp_path / "again").visual_tokens == small.visual_tokens


def test_an_unpruned_model_can_leave_with_fewer_tokens(tiny: LoadedModel, tmp_path: Path) -> None:
    with reduced_tokens(tiny, 0.5, selection="pooling") as reduced:
        verified = export(reduced, tmp_path / "pooled")
    assert verified.parameters == tiny.model.num_parameters()
    assert load_pruned(tmp_path / "pooled").visual_tokens == reduced.visual_tokens


def test_a_stock_configuration_cannot_describe_it(small: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no stock configuration describes"):
        export(small, tmp_path / "portable", form="portable")
    assert not (tmp_path / "portable").exists()


def test_a_processor_that_was_changed_is_refused(
    exported: tuple[Path, VerifiedExport], small: LoadedModel, tmp_path: Path
) -> None:
    """The code of the checkpoint inserts as many tokens as `load_pruned` does."""
    directory = shutil.copytree(exported[0], tmp_path / "export")
    file = directory / "processing_effllava.py"
    file.write_text(file.read_text().replace("'ratio': 0.25", "'ratio': 0.5"))
    write_expected(small.model, small.model, build_example_inputs(small.processor), tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "effllava_optuna.surgery.export.verification", str(directory),
         str(tmp_path), "cpu", "float32"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "encodes the example as" in run.stderr.splitlines()[-1]


def test_a_plan_of_another_version_or_a_damaged_one_is_refused(
    exported: tuple[Path, VerifiedExport], tmp_path: Path
) -> None:
    directory = shutil.copytree(exported[0], tmp_path / "export")
    config: dict[str, dict[str, object]] = json.loads((directory / "config.json").read_text())
    assert config["effllava_plan"]["format"] == 2
    for key, value, message in (
        ("format", 3, "format 3; this version reads 1 and 2"),
        ("visual_tokens", {"ratio": 0.5, "shape": 2}, "damaged effllava_plan.visual_tokens"),
        ("visual_tokens", [1], "damaged effllava_plan.visual_tokens"),
    ):
        changed = config | {"effllava_plan": config["effllava_plan"] | {key: value}}
        (directory / "config.json").write_text(json.dumps(changed))
        write_checksums(directory)
        with pytest.raises(ModelError, match=message):
            load_pruned(directory)


@pytest.mark.families
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_family_can_leave_with_fewer_tokens(tmp_path: Path) -> None:
    for name in PICTURED:
        loaded = load_pictured(name)
        with reduced_tokens(loaded, 0.5) as reduced:
            small = sliced(reduced, *random_policy(loaded.structure, 0))
        inputs = pictured_inputs(name, small.processor)
        directory = tmp_path / name
        # Without the processors: those with a part for videos need torchvision to load.
        alone = LoadedModel.of(small.model, None, name)
        plan = size_plan(small)
        assert plan["visual_tokens"]["ratio"] == 0.5
        write_checkpoint(alone, directory, plan)
        write_expected(small.model, small.model, inputs, directory)
    assert_reloaded(tmp_path, "*", len(PICTURED))
