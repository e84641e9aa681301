"""Exports have the dtype of the checkpoint that was loaded, whatever it was computed in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from effllava_optuna import export, load, sliced
from effllava_optuna.errors import ExportError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import FittedOutput, LoadedModel, rank_units, reduced_tokens
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.stored_precision import in_stored_dtype
from effllava_optuna.surgery.loading.loader import stored_dtype
from tests.surgery.export.pruned_models import prune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.exports


@pytest.fixture(scope="module")
def half(make_llava: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16."""
    directory = tmp_path_factory.mktemp("half") / "checkpoint"
    dense = make_llava()
    dense.model.to(torch.bfloat16).save_pretrained(directory)
    dense.processor.save_pretrained(directory)
    return directory


def dtypes_in(directory: Path) -> set[torch.dtype]:
    weights = load_file(directory / "model.safetensors").values()
    return {weight.dtype for weight in weights if weight.is_floating_point()}


def described_dtypes(directory: Path) -> set[str]:
    """Return the dtypes that config.json names for the model and its parts."""
    config = json.loads((directory / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    return {part["dtype"] for part in parts if part.get("dtype")}


def compensated(dense: LoadedModel) -> LoadedModel:
    """Prune, and replace an output matrix by values that bfloat16 does not have."""
    policy = Policy.uniform(dense.structure, ratio=0.5)
    component = next(c for c in dense.structure.components if c.kind == "mlp")
    kept = policy.active_widths[component.id]
    fitted = FittedOutput(torch.full((36, kept), 1 / 3))
    ranking = rank_units(dense, importance="magnitude")
    return sliced(dense, policy, ranking, {(component.id, kept): fitted})


@pytest.mark.parametrize("form", ["native", "portable"])
def test_a_checkpoint_in_bfloat16_leaves_in_bfloat16(
    half: Path, tmp_path: Path, form: Any
) -> None:
    directory, dense = tmp_path / "small", load(half, device="cpu")
    assert (dense.model.dtype, dense.stored_dtype) == (torch.float32, torch.bfloat16)
    small = compensated(dense)
    verified = export(small, directory, form=form)
    assert (verified.dtype, verified.generation_equal) == ("bfloat16", True)
    assert json.loads((directory / "verified.json").read_text())["dtype"] == "bfloat16"
    assert "parameters in bfloat16" in (directory / "README.md").read_text()
    assert dtypes_in(directory) == {torch.bfloat16}
    assert described_dtypes(directory) == {"bfloat16"}
    sizes = [(place / "model.safetensors").stat().st_size for place in (directory, half)]
    assert sizes[0] < sizes[1]
    assert small.model.dtype == small.model.config.text_config.dtype == torch.float32
    again = load(directory, device="cpu")
    assert again.stored_dtype == torch.bfloat16
    weights = again.model.state_dict()
    for name, weight in small.model.state_dict().items() if form == "native" else ():
        assert torch.equal(weights[name], weight.to(torch.bfloat16).to(weight.dtype)), name


@pytest.mark.parametrize(
    ("dtype", "written"), [("float32", torch.float32), ("float16", torch.float16)]
)
def test_a_dtype_that_was_asked_for_is_that_of_exports(
    half: Path, tmp_path: Path, dtype: str, written: torch.dtype
) -> None:
    small = compensated(load(half, device="cpu", dtype=dtype))
    write_checkpoint(in_stored_dtype(small), tmp_path, size_plan(small))
    assert dtypes_in(tmp_path) == {written}
    chosen = in_stored_dtype(replace(small, stored_dtype=torch.bfloat16))
    write_checkpoint(chosen, tmp_path, size_plan(chosen))
    assert dtypes_in(tmp_path) == {torch.bfloat16}


def test_fewer_image_tokens_and_training_change_no_dtype(half: Path) -> None:
    """The models that ``--visual-tokens`` and ``recover`` export."""
    dense = load(half, device="cpu")
    with reduced_tokens(dense, 0.5) as reduced:
        rounded = in_stored_dtype(reduced)
        assert rounded.visual_tokens is not None
        assert rounded.model.dtype == torch.bfloat16
    with torch.no_grad():
        dense.model.lm_head.weight.mul_(1.01)
    trained = in_stored_dtype(dense).model.lm_head.weight
    assert torch.equal(trained, dense.model.lm_head.weight.to(torch.bfloat16))


def test_a_model_that_was_not_loaded_keeps_the_dtype_it_has(
    make_llava: Callable[..., LoadedModel],
) -> None:
    small = prune(make_llava())
    assert small.stored_dtype is None
    assert in_stored_dtype(small) is small


def test_weights_that_a_class_keeps_in_float32_stay(
    make_llava: Callable[..., LoadedModel],
) -> None:
    small = replace(prune(make_llava()), stored_dtype=torch.bfloat16)
    small.model._keep_in_fp32_modules_strict = {"norm"}
    rounded = in_stored_dtype(small).model
    decoder = rounded.model.language_model
    assert decoder.norm.weight.dtype == torch.float32
    assert decoder.layers[0].input_layernorm.weight.dtype == torch.bfloat16


def test_a_weight_that_float16_cannot_hold_is_named(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    small = replace(prune(make_llava()), stored_dtype=torch.float16)
    small.model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"lm_head.weight has values up to 1e\+06, which .*16"):
        export(small, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_the_dtype_of_a_checkpoint_is_that_of_most_of_its_weights(half: Path) -> None:
    assert stored_dtype(half) == torch.bfloat16
    assert stored_dtype("digits-vlm") == torch.float32
    assert stored_dtype("nobody/nothing") is None
