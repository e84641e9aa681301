"""Model cards."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.surgery import CardMetric, ModelCard
from effllava_optuna.surgery.export.model_card import EngineSupport, render_model_card

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

SERVER = "vllm.entrypoints.openai.api_server"
CARD = ModelCard(
    "64 questions.", (CardMetric("accuracy, test", 0.9, 0.85, 0.95), CardMetric("ms", 2.5))
)


def test_a_card_has_the_measurements_and_their_data(pruned: LoadedModel) -> None:
    text = render_model_card(pruned, CARD, "portable")
    assert "| accuracy, test | 0.900 [0.850, 0.950] |" in text
    assert "| ms | 2.500 |" in text
    assert "64 questions." in text


def test_a_card_loads_the_model_by_its_form_and_its_processor(pruned: LoadedModel) -> None:
    native, portable = (render_model_card(pruned, CARD, form) for form in ("native", "portable"))
    assert "load_pruned(" in native
    assert "load_pruned" not in portable
    assert "AutoProcessor" in portable
    text_model = replace(pruned, processor=pruned.processor.tokenizer)
    decoder = render_model_card(text_model, CARD, "portable")
    assert "AutoModelForCausalLM" in decoder
    assert "AutoProcessor" not in decoder


def test_a_card_loads_the_model_without_this_package_by_a_class(pruned: LoadedModel) -> None:
    text_model = replace(pruned, processor=pruned.processor.tokenizer)
    for loaded, kind in ((pruned, "ImageTextToText"), (text_model, "CausalLM")):
        native = render_model_card(loaded, CARD, "native")
        call = f'AutoModelFor{kind}.from_pretrained( "DIRECTORY", trust_remote_code=True )'
        assert call in " ".join(native.split())
        (program,) = re.findall(r"```python\n(.*?)\n```", native, re.DOTALL)
        ast.parse(program)


def test_a_card_names_a_local_base_model_without_its_path(
    pruned: LoadedModel, tmp_path: Path
) -> None:
    local = tmp_path / "my-model"
    local.mkdir()
    for source, name in (
        (str(local), "my-model"),
        (str(tmp_path / "removed"), "removed"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ):
        record = pruned.pruning_record
        if record is not None:
            record = replace(record, base_model=source)
        card = render_model_card(
            replace(pruned, source=source, pruning_record=record), CARD, "native"
        )
        assert f'base_model: "{name}"\n' in card
        assert f"# {name}, pruned\n" in card
        assert str(tmp_path) not in card


def test_a_card_says_how_the_model_is_served(pruned: LoadedModel) -> None:
    native = render_model_card(pruned, CARD, "native")
    assert f"python -m {SERVER} --model DIRECTORY --trust-remote-code" in native
    assert "It was not run in an engine." in native
    run = EngineSupport(verified=("vllm 0.32.0",))
    assert "Verified in vLLM 0.32.0: the same" in render_model_card(pruned, CARD, "native", run)
    without = render_model_card(pruned, CARD, "native", EngineSupport("it has no body"))
    assert "vLLM cannot build it: it has no body." in without
    assert SERVER not in without
    portable = render_model_card(pruned, CARD, "portable")
    assert SERVER not in portable
    assert "cannot carry a width for each layer, added biases, or fewer image tokens" in " ".join(
        portable.split()
    )


def test_a_card_says_that_weights_were_rounded_after_they_were_measured(
    pruned: LoadedModel,
) -> None:
    rounded = render_model_card(replace(pruned, stored_dtype=torch.bfloat16), CARD, "native")
    assert "parameters in bfloat16" in rounded
    assert "Measured in float32, before the weights were rounded to bfloat16." in rounded
    assert "rounded" not in render_model_card(pruned, CARD, "native")
