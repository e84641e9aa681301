"""ONNX exports: onnxruntime computes the logits of the pruned model."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
import torch

from effllava_optuna import export_onnx, export_target
from effllava_optuna.cli.messages import form_summary
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery import (
    LoadedModel,
    VerifiedOnnxExport,
    reduced_tokens,
    verify_onnx,
)
from effllava_optuna.surgery.export import onnx_export as module
from tests.surgery.export.pruned_models import slice_reversed, state_of
from tests.surgery.family_models import text_decoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.exports


def prune_two_blocks(dense: LoadedModel) -> LoadedModel:
    return slice_reversed(dense, [1, 7, 3, 20])


@pytest.fixture(scope="module")
def pruned(make_llava: Callable[..., LoadedModel]) -> LoadedModel:
    return prune_two_blocks(make_llava("Qwen2Config", num_hidden_layers=2))


@pytest.fixture(scope="module")
def exported(
    pruned: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, VerifiedOnnxExport]:
    """A verified export. Copy it before changing it."""
    file = tmp_path_factory.mktemp("onnx") / "new" / "language.onnx"
    return file, export_onnx(pruned, file)


def test_onnxruntime_computes_the_exported_model(
    exported: tuple[Path, VerifiedOnnxExport], pruned: LoadedModel
) -> None:
    file, verified = exported
    assert verified.path == str(file)
    assert verified.logit_difference < 1e-4
    ((rows, tokens), (one, fewer)) = verified.shapes
    assert (rows, one) == (2, 1)
    assert fewer < tokens
    language = pruned.model.model.language_model
    weights = [*language.layers.parameters(), *language.norm.parameters()]
    weights += [*pruned.model.lm_head.parameters()]
    assert 0 <= verified.parameters - sum(weight.numel() for weight in weights) < 100
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert __file__.encode() not in file.read_bytes()


def test_the_file_says_what_is_not_in_it(exported: tuple[Path, VerifiedOnnxExport]) -> None:
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().description
    assert "without a key-value cache" in description
    assert "Token embeddings, vision tower and projector are not in the file" in description


def test_the_file_and_its_result_say_that_image_tokens_are_selected_before_it(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    with reduced_tokens(make_llava(), 0.25) as reduced:
        verified = export_onnx(reduced, tmp_path / "a.onnx")
    assert verified.visual_tokens == 0.25
    assert form_summary("m", verified).endswith("not in it: the selection of 25% of image tokens")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().description
    assert description.endswith(
        "Nor is the selection of 25% of the image tokens by diversity: it reads the embeddings of "
        "those alone."
    )


@pytest.mark.parametrize(("rows", "tokens", "padding"), [(1, 1, 0), (1, 70, 0), (5, 12, 4)])
def test_the_graph_takes_any_number_of_rows_and_tokens(
    exported: tuple[Path, VerifiedOnnxExport],
    pruned: LoadedModel,
    rows: int,
    tokens: int,
    padding: int,
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    embeddings = torch.randn(rows, tokens, 36, generator=generator)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :padding] = 0
    with torch.no_grad():
        expected = pruned.model(inputs_embeds=embeddings, attention_mask=mask).logits
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    inputs = {"inputs_embeds": embeddings.numpy(), "attention_mask": mask.numpy()}
    logits = torch.from_numpy(session.run(["logits"], inputs)[0])
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_a_file_of_another_model_is_refused(
    exported: tuple[Path, VerifiedOnnxExport], make_llava: Callable[..., LoadedModel]
) -> None:
    other = prune_two_blocks(make_llava("Qwen2Config", num_hidden_layers=2))
    with torch.no_grad():
        other.model.lm_head.weight[3] += 0.1
    with pytest.raises(ExportError, match="is not the same model: logits differ by") as caught:
        verify_onnx(other, exported[0])
    assert "Nothing was written" in caught.value.hint


def test_a_decoder_that_reads_more_than_embeddings_is_refused(
    exported: tuple[Path, VerifiedOnnxExport], make_llava: Callable[..., LoadedModel]
) -> None:
    """As in families that give image tokens positions of their own."""
    other = prune_two_blocks(make_llava("Qwen2Config", num_hidden_layers=2))

    def move(
        _: object, inputs: tuple[()], named: dict[str, torch.Tensor]
    ) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        tokens = named["inputs_embeds"].shape[1]
        return inputs, named | {"position_ids": 2 * torch.arange(tokens)[None]}

    other.model.model.language_model.register_forward_pre_hook(move, with_kwargs=True)
    with pytest.raises(ExportError, match="is not the same model"):
        verify_onnx(other, exported[0])


def test_a_damaged_file_is_refused_in_one_line(
    exported: tuple[Path, VerifiedOnnxExport], pruned: LoadedModel, tmp_path: Path
) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(exported[0].read_bytes()[:-1000])
    with pytest.raises(
        ExportError, match=r"onnxruntime .* does not run the ONNX export"
    ) as caught:
        verify_onnx(pruned, file)
    assert "\n" not in str(caught.value)


def test_existing_files_are_not_overwritten(pruned: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("years of work")
    (tmp_path / "b.onnx.data").write_text("years of work")
    (tmp_path / "c.onnx").mkdir()
    for name, overwrite in [("a.onnx", False), ("b.onnx", False), ("c.onnx", True)]:
        with pytest.raises(ExportError, match=f"{name} exists already. Choose another name"):
            export_onnx(pruned, tmp_path / name, overwrite=overwrite)
    assert len(list(tmp_path.iterdir())) == 3


def test_bfloat16_is_refused_with_the_cure(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    half = make_llava()
    half.model.to(torch.bfloat16)
    with pytest.raises(ExportError, match=r'torch.bfloat16, .* Load it with dtype="float32"'):
        export_onnx(half, tmp_path / "a.onnx")


def test_a_missing_package_is_named_with_its_extra(
    pruned: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_target, "ONNX_PACKAGES", ("onnx", "no_such_runtime"))
    message = r"no_such_runtime, which is not installed. .*'effllava-optuna\[onnx\]'"
    with pytest.raises(ExportError, match=message):
        export_onnx(pruned, tmp_path / "a.onnx")


@pytest.mark.families
def test_an_export_that_onnxruntime_does_not_confirm_is_not_kept(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    pruned = prune_two_blocks(make_llava(num_hidden_layers=2))

    def change_logits(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits if torch.compiler.is_exporting() else logits + 1

    pruned.model.lm_head.register_forward_hook(change_logits)
    (tmp_path / "a.onnx").write_text("an earlier one")
    with pytest.raises(ExportError, match="is not the same model"):
        export_onnx(pruned, tmp_path / "a.onnx", overwrite=True)
    assert (tmp_path / "a.onnx").read_text() == "an earlier one"
    assert len(list(tmp_path.iterdir())) == 1


def branch(_: object, inputs: tuple[torch.Tensor]) -> None:
    """Depend on values, which a graph cannot."""
    if inputs[0].sum() > 0:
        inputs[0].neg_()


def use_what_onnx_lacks(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0] + torch.linalg.matrix_exp(inputs[0][:, :2, :2]).sum(),)


def raise_an_error(*_: object) -> None:
    if torch.compiler.is_exporting():
        raise ValueError("\x1b[96mNo such thing.\x1b[0m\nSee the manual.")


@pytest.mark.families
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (branch, "GuardOnDataDependentSymNode: Could not guard on data-dependent expression"),
        (use_what_onnx_lacks, r"DispatchError: No ONNX function found for .*matrix_exp"),
        (raise_an_error, "ValueError: No such thing"),
    ],
)
def test_a_decoder_that_cannot_be_traced_is_refused_in_one_line(
    make_llava: Callable[..., LoadedModel],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    fault: Callable[..., Any],
    reason: str,
) -> None:
    pruned = prune_two_blocks(make_llava(num_hidden_layers=2))
    pruned.model.lm_head.register_forward_pre_hook(fault)
    levels = {name: logging.getLogger(name).level for name in ("torch", "torch.onnx")}
    with pytest.raises(ExportError, match=rf"cannot be traced: {reason}.* Export it") as caught:
        export_onnx(pruned, tmp_path / "a.onnx")
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert not list(tmp_path.iterdir())


def text_model(processor: Any, config: str, **settings: Any) -> LoadedModel:
    """A text decoder with another width in each block, and a tokenizer without padding token."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.pad_token = None
    model = text_decoder(config, num_hidden_layers=2, **settings)
    return slice_reversed(LoadedModel.of(model, tokenizer, config), [1, 7, 2, 20])


TEXT_CONFIGS = {
    "LlamaConfig": {},
    "GemmaConfig": {"head_dim": 16},
    "Qwen3Config": {"head_dim": 16, "tie_word_embeddings": True},
    "OPTConfig": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(name, marks=[] if name == "LlamaConfig" else [pytest.mark.families])
        for name in TEXT_CONFIGS
    ],
)
def test_a_text_decoder_is_exported_with_its_embeddings(
    processor: Any, tmp_path: Path, config: str
) -> None:
    pruned = text_model(processor, config, **TEXT_CONFIGS[config])
    last_logits = pruned.model(torch.tensor([[7, 9]])).logits  # the first run installs hooks
    before = state_of(pruned)
    verified = export_onnx(pruned, tmp_path / "a.onnx")
    assert state_of(pruned) == before
    assert last_logits.isfinite().all()
    ((rows, tokens), (one, fewer)) = verified.shapes
    assert (rows, one, fewer) == (2, 1, tokens - 1)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    ids = torch.arange(8, 38).reshape(3, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        expected = pruned.model(input_ids=ids, attention_mask=mask).logits
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    logits = torch.from_numpy(session.run(["logits"], inputs)[0])
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.families
@pytest.mark.parametrize("takes_images", [True, False])
def test_a_missing_head_is_recognised_in_half_precision(
    make_llava: Callable[..., LoadedModel], processor: Any, tmp_path: Path, *, takes_images: bool
) -> None:
    """It changes the logits by less than a twentieth of the largest."""
    pruned = text_model(processor, "LlamaConfig")
    if takes_images:
        pruned = prune_two_blocks(make_llava("Qwen2Config", num_hidden_layers=2))
    pruned.model.to(torch.float16)
    export_onnx(pruned, tmp_path / "a.onnx")
    (handle,) = (h for h in pruned.handles if h.component.id == "language.01.attn")
    with torch.no_grad():
        handle.linear(handle.output).weight[:, : handle.columns] *= 0.8
    with pytest.raises(ExportError, match="is not the same model: logits differ by"):
        verify_onnx(pruned, tmp_path / "a.onnx")


def test_without_a_processor_there_is_nothing_to_compare(
    pruned: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="has no processor to create example inputs"):
        export_onnx(replace(pruned, processor=None), tmp_path / "a.onnx")


@pytest.mark.families
@pytest.mark.parametrize("text_config", ["LlamaConfig", "Qwen3Config", "MistralConfig"])
def test_large_weights_are_written_beside_the_file(
    make_llava: Callable[..., LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_config: str,
) -> None:
    monkeypatch.setattr(module, "_MAX_EMBEDDED_BYTES", 0)
    pruned = prune_two_blocks(make_llava(text_config, num_hidden_layers=2))
    verified = export_onnx(pruned, tmp_path / "a.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.onnx", "a.onnx.data"]
    assert verify_onnx(pruned, tmp_path / "a.onnx") == verified
    export_onnx(pruned, tmp_path / "a.onnx", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
