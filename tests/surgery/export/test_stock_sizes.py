"""Portable exports: padded to sizes that a stock configuration can express."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna import export, load, rank_units, sliced
from effllava_optuna.errors import ExportError, ModelError
from effllava_optuna.policy import Kind, Policy
from effllava_optuna.surgery import LoadedModel, VerifiedExport, pad_to_stock_sizes
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.comparison import ReloadDifference, write_expected
from effllava_optuna.surgery.export.verification import main
from tests.surgery.export.pruned_models import last_logits, prune, state_of
from tests.surgery.family_models import (
    CLOSE,
    compute_logits,
    random_policy,
    rebuilt,
    text_decoder,
    text_inputs,
    verified_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch

pytestmark = pytest.mark.exports


@pytest.fixture(scope="module")
def small(make_llava: Callable[..., LoadedModel]) -> LoadedModel:
    return prune(make_llava(attention_bias=True, mlp_bias=True))


@pytest.fixture(scope="module")
def exported(
    small: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, VerifiedExport]:
    """A portable export that was verified in a fresh process."""
    directory = tmp_path_factory.mktemp("exports") / "portable"
    return directory, export(small, directory, form="portable")


def test_a_portable_export_loads_in_stock_transformers(
    exported: tuple[Path, VerifiedExport], small: LoadedModel, batch: Batch
) -> None:
    directory, verified = exported
    assert verified.loader == ("AutoModelForImageTextToText",)
    assert verified.generation_equal
    assert 0 < verified.padded < 1
    loaded = load(directory, device="cpu")
    assert type(loaded.model).__module__.startswith("transformers.")
    assert "effllava_plan" not in json.loads((directory / "config.json").read_text())
    torch.testing.assert_close(last_logits(loaded, batch), last_logits(small, batch))
    widths = {(component.kind, component.width) for component in loaded.structure.components}
    assert len(widths) == 2


def test_a_portable_export_does_not_change_the_model(
    small: LoadedModel, batch: Batch, tmp_path: Path
) -> None:
    last_logits(small, batch)  # the first forward pass installs hooks
    before = state_of(small)
    for name in ("first", "second"):
        padded = pad_to_stock_sizes(small)
        write_checkpoint(padded, tmp_path / name, None)
        write_expected(small.model, padded.model, batch.inputs, tmp_path)
        assert state_of(small) == before
    first, second = ((tmp_path / name / "config.json").read_text() for name in ("first", "second"))
    assert first == second


def test_verification_reports_other_weights_logits_and_tokens(
    exported: tuple[Path, VerifiedExport],
    small: LoadedModel,
    batch: Batch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a model with an unexpected NaN, whose weights are not those that were padded."""
    other = copy.deepcopy(small.model)
    other.model.language_model.norm.weight[0] = torch.nan
    write_expected(other, small.model, batch.inputs, tmp_path)
    main(str(exported[0]), str(tmp_path), "cpu", "float32")
    difference = ReloadDifference(
        **json.loads(capsys.readouterr().out.splitlines()[-1])["difference"]
    )
    assert difference.logits != difference.logits
    assert not difference.generation_equal
    assert len(difference.changed_weights) > 10
    assert not difference.is_none


def test_a_portable_export_is_checked_for_changed_files(
    exported: tuple[Path, VerifiedExport], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in exported[0].iterdir():
        content = bytearray(file.read_bytes())
        if file.name == "model.safetensors":
            content[-1] ^= 1
        (copy / file.name).write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file"):
        load(copy, device="cpu")


def test_a_bias_that_the_stock_model_does_not_have_is_not_portable(
    pruned: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"biases that its configuration cannot exp.* native"):
        export(pruned, tmp_path / "it", form="portable")
    assert not [*tmp_path.iterdir()]


def test_a_uniform_policy_is_portable_without_padding(
    make_llava: Callable[..., LoadedModel],
) -> None:
    dense = make_llava()
    structure = dense.structure
    policy = Policy.of(
        structure, [2 if component.kind is Kind.ATTN else 9 for component in structure.components]
    )
    uniform = sliced(dense, policy, rank_units(dense))
    padded = pad_to_stock_sizes(uniform).model
    assert padded.num_parameters() == uniform.model.num_parameters()
    config = padded.config.text_config
    assert (config.num_key_value_heads, config.num_attention_heads) == (2, 4)
    assert (config.head_dim, config.intermediate_size) == (8, 9)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        # One field sizes the MLPs and the experts, which are not pruned.
        (
            "JambaConfig",
            {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2,
             "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        ),
        # The MLPs are sized by another field than the experts.
        (
            "Llama4TextConfig",
            {"intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 2,
             "head_dim": 16},
        ),
        ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
                            "moe_intermediate_size": 32, "mlp_only_layers": [0, 2]}),
        ("Gemma2Config", {"sliding_window": 3, "head_dim": 16}),
        ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    ],
)  # fmt: skip
def test_whatever_can_be_chosen_can_be_exported_without_a_plan(
    config: str, settings: dict[str, Any]
) -> None:
    loaded = verified_text(text_decoder(config, num_hidden_layers=4, **settings))
    for seed in range(3):
        small = sliced(loaded, *random_policy(loaded.structure, seed))
        padded = pad_to_stock_sizes(small)
        plan = size_plan(padded)
        assert not plan["linears"]
        assert not plan["counts"]
        logits = compute_logits(small.model, text_inputs())
        torch.testing.assert_close(compute_logits(rebuilt(padded), text_inputs()), logits, **CLOSE)
