"""A dense model that answers NaN or inf is refused as such, with the weight or the sample."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from effllava_optuna import load
from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import LoadedModel, build_example_inputs, verify_structure
from tests.study_fixtures import write_tiny

if TYPE_CHECKING:
    from collections.abc import Callable


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("ending", "value"),
    [
        ("layers.1.mlp.down_proj.weight", math.nan),
        ("lm_head.weight", math.inf),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", -math.inf),
        ("multi_modal_projector.linear_1.weight", math.nan),
        ("embed_tokens.weight", math.nan),  # in the last row: no example uses that token
    ],
)
def test_a_weight_that_is_no_number_is_named(
    ending: str, value: float, dtype: str, checkpoint: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    full: list[str] = []

    def change(weights: dict[str, torch.Tensor]) -> None:
        key = next(key for key in weights if key.endswith(ending.rpartition("encoder.")[2]))
        weights[key].view(-1)[-1] = value
        full.append(key)

    edit_weights(copied, change)
    kind = "NaN" if math.isnan(value) else "inf"
    with pytest.raises(ModelError, match=rf"has {kind} in its weight .*{ending[-12:]}") as caught:
        load(copied, device="cpu", dtype=dtype)
    assert str(copied) in caught.value.message
    assert caught.value.hint
    assert len(full) == 1


def scale_decoder(model: torch.nn.Module, factor: float) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("down_proj.weight"):
                weight.mul_(factor)


def test_an_overflow_of_float16_is_named_as_such(checkpoint: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "checkpoint")

    def scale(weights: dict[str, torch.Tensor]) -> None:
        for key in weights:
            if key.endswith(("down_proj.weight", "up_proj.weight")):
                weights[key].mul_(3000)

    edit_weights(copied, scale)
    expected = (
        r"answers (NaN|inf) to an example in float16\. Float16 overflows beyond 65,504: use "
        r"bfloat16 or float32 \(model\.dtype\)\.$"
    )
    with pytest.raises(ModelError, match=expected):
        load(copied, device="cpu", dtype="float16")
    assert load(copied, device="cpu", dtype="bfloat16").structure.components


def test_a_model_that_computes_nan_from_numbers_is_refused(
    make_llava: Callable[..., LoadedModel],
) -> None:
    broken = make_llava()
    broken.model.model.language_model.norm.variance_epsilon = math.nan
    with pytest.raises(ModelError, match="answers NaN to an example in float32") as caught:
        verify_structure(broken, build_example_inputs(broken.processor))
    assert "float16" not in str(caught.value)


def test_nan_at_padding_alone_is_no_fault(tiny: LoadedModel) -> None:
    """Some kernels of attention return NaN where a row has nothing to read."""
    inputs = build_example_inputs(tiny.processor)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    model = copy.deepcopy(tiny.model)

    def spoil(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[padding] = math.nan
        return output

    model.lm_head.register_forward_hook(spoil)
    loaded = LoadedModel.of(model, tiny.processor, "padded")
    assert verify_structure(loaded, inputs).structure == tiny.structure


def test_a_sample_that_the_dense_model_answers_with_nan_is_named(
    tiny: LoadedModel, checkpoint: Path, tmp_path: Path
) -> None:
    """The example is answered, but a word of some questions has no finite embedding."""
    loaded = LoadedModel.of(copy.deepcopy(tiny.model), tiny.processor, tiny.source)
    examples = set(build_example_inputs(tiny.processor)["input_ids"].flatten().tolist())
    with study_inputs(load_config(write_tiny(checkpoint, tmp_path)), loaded) as inputs:
        words = {
            sample.id: set(tiny.processor.tokenizer(sample.question)["input_ids"]) - examples
            for sample in inputs.proxy.samples
        }
        word = next(word for asked in words.values() for word in sorted(asked))
        loaded.model.get_input_embeddings().weight[word] = math.inf
        verify_structure(loaded, build_example_inputs(loaded.processor))
        stages: list[tuple[str, float]] = []
        with pytest.raises(ModelError, match=r"answers (NaN|inf) to sample '.*float32") as caught:
            calibrate(inputs, inputs.stopwatch(), lambda *stage: stages.append(stage))
        named = caught.value.message.split("'")[3]
        assert word in words[named]
    assert stages == []
