"""The language part as ONNX: what onnxruntime computes is what the pruned model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime
import pytest
import torch

from effllava_optuna import Policy, export_onnx, sliced
from effllava_optuna.errors import ExportError
from effllava_optuna.policy import Order
from effllava_optuna.surgery import Loaded, VerifiedOnnx, verify_onnx
from effllava_optuna.surgery import onnx as module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def cut(dense: Loaded) -> Loaded:
    """Slice two blocks to different numbers of heads and channels."""
    scores = {s.id: torch.arange(s.width).numpy() * 1.0 for s in dense.anatomy.sites}
    order = Order.from_scores(dense.anatomy, "reversed", scores)
    return sliced(dense, Policy.of(dense.anatomy, [1, 7, 3, 20]), order)


@pytest.fixture(scope="module")
def pruned(make_llava: Callable[..., Loaded]) -> Loaded:
    return cut(make_llava("Qwen2Config", num_hidden_layers=2))


@pytest.fixture(scope="module")
def exported(
    pruned: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, VerifiedOnnx]:
    """A real export. Copy it before changing it."""
    place = tmp_path_factory.mktemp("onnx") / "new" / "language.onnx"
    return place, export_onnx(pruned, place)


def test_onnxruntime_finds_the_model_that_was_exported(
    exported: tuple[Path, VerifiedOnnx], pruned: Loaded
) -> None:
    place, verified = exported
    assert verified.path == str(place)
    assert verified.logit_difference < 1e-4
    ((rows, tokens), (one, fewer)) = verified.shapes
    assert (rows, one) == (2, 1)
    assert fewer < tokens
    language = pruned.model.model.language_model
    weights = [*language.layers.parameters(), *language.norm.parameters()]
    weights += [*pruned.model.lm_head.parameters()]
    assert 0 <= verified.parameters - sum(weight.numel() for weight in weights) < 100
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert __file__.encode() not in place.read_bytes()


@pytest.mark.parametrize(("rows", "tokens", "padding"), [(1, 1, 0), (1, 70, 0), (5, 12, 4)])
def test_any_number_of_rows_and_tokens_will_do(
    exported: tuple[Path, VerifiedOnnx], pruned: Loaded, rows: int, tokens: int, padding: int
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    embeddings = torch.randn(rows, tokens, 36, generator=generator)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :padding] = 0
    with torch.no_grad():
        expected = pruned.model(inputs_embeds=embeddings, attention_mask=mask).logits
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    fed = {"inputs_embeds": embeddings.numpy(), "attention_mask": mask.numpy()}
    found = torch.from_numpy(session.run(["logits"], fed)[0])
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_a_file_of_another_model_is_refused(
    exported: tuple[Path, VerifiedOnnx], make_llava: Callable[..., Loaded]
) -> None:
    other = cut(make_llava("Qwen2Config", num_hidden_layers=2))
    with torch.no_grad():
        other.model.lm_head.weight[3] += 0.1
    with pytest.raises(ExportError, match="is another model: logits differ by") as caught:
        verify_onnx(other, exported[0])
    assert "Nothing was written" in caught.value.hint


def test_a_decoder_that_is_told_more_than_embeddings_is_refused(
    exported: tuple[Path, VerifiedOnnx], make_llava: Callable[..., Loaded]
) -> None:
    """As in families whose picture tokens have positions of their own."""
    other = cut(make_llava("Qwen2Config", num_hidden_layers=2))

    def move(
        _: object, inputs: tuple[()], named: dict[str, torch.Tensor]
    ) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        tokens = named["inputs_embeds"].shape[1]
        return inputs, named | {"position_ids": 2 * torch.arange(tokens)[None]}

    other.model.model.language_model.register_forward_pre_hook(move, with_kwargs=True)
    with pytest.raises(ExportError, match="is another model"):
        verify_onnx(other, exported[0])


def test_a_damaged_file_is_refused_in_one_line(
    exported: tuple[Path, VerifiedOnnx], pruned: Loaded, tmp_path: Path
) -> None:
    place = tmp_path / "a.onnx"
    place.write_bytes(exported[0].read_bytes()[:-1000])
    with pytest.raises(
        ExportError, match=r"onnxruntime .* does not run the ONNX export"
    ) as caught:
        verify_onnx(pruned, place)
    assert "\n" not in str(caught.value)


def test_what_is_there_is_not_overwritten(pruned: Loaded, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("years of work")
    (tmp_path / "b.onnx.data").write_text("years of work")
    (tmp_path / "c.onnx").mkdir()
    for name, overwrite in [("a.onnx", False), ("b.onnx", False), ("c.onnx", True)]:
        with pytest.raises(ExportError, match=f"{name} is there already. Choose another name"):
            export_onnx(pruned, tmp_path / name, overwrite=overwrite)
    assert len(list(tmp_path.iterdir())) == 3


def test_bfloat16_is_refused_with_the_cure(
    make_llava: Callable[..., Loaded], tmp_path: Path
) -> None:
    half = make_llava()
    half.model.to(torch.bfloat16)
    with pytest.raises(ExportError, match=r'torch.bfloat16, .* Load it with dtype="float32"'):
        export_onnx(half, tmp_path / "a.onnx")


def test_a_missing_package_is_named_with_its_extra(
    pruned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NEEDED", ("onnx", "no_such_runtime"))
    message = r"no_such_runtime, which is not installed. .*'effllava-optuna\[onnx\]'"
    with pytest.raises(ExportError, match=message):
        export_onnx(pruned, tmp_path / "a.onnx")


@pytest.mark.slow
def test_an_export_that_onnxruntime_does_not_confirm_is_not_kept(
    make_llava: Callable[..., Loaded], tmp_path: Path
) -> None:
    pruned = cut(make_llava(num_hidden_layers=2))

    def answer_otherwise(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits if torch.compiler.is_exporting() else logits + 1

    pruned.model.lm_head.register_forward_hook(answer_otherwise)
    (tmp_path / "a.onnx").write_text("an earlier one")
    with pytest.raises(ExportError, match="is another model"):
        export_onnx(pruned, tmp_path / "a.onnx", overwrite=True)
    assert (tmp_path / "a.onnx").read_text() == "an earlier one"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_decoder_that_cannot_be_traced_is_refused_in_one_line(
    make_llava: Callable[..., Loaded], tmp_path: Path
) -> None:
    pruned = cut(make_llava(num_hidden_layers=2))

    def branch(_: object, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].sum() > 0:
            inputs[0].neg_()

    pruned.model.lm_head.register_forward_pre_hook(branch)
    with pytest.raises(ExportError, match=r"cannot be traced: .* Export it natively") as caught:
        export_onnx(pruned, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("text_config", ["LlamaConfig", "Qwen3Config", "MistralConfig"])
def test_large_weights_lie_beside_the_file(
    make_llava: Callable[..., Loaded],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_config: str,
) -> None:
    monkeypatch.setattr(module, "_ONE_FILE", 0)
    pruned = cut(make_llava(text_config, num_hidden_layers=2))
    verified = export_onnx(pruned, tmp_path / "a.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.onnx", "a.onnx.data"]
    assert verify_onnx(pruned, tmp_path / "a.onnx") == verified
    export_onnx(pruned, tmp_path / "a.onnx", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
