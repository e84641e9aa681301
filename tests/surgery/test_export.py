"""Exported checkpoints come back in a fresh process: promise 4."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from effllava_optuna import export, load, load_pruned, narrowed, rank_units, sliced
from effllava_optuna.errors import ExportError, ModelError
from effllava_optuna.policy import Kind, Order, Policy
from effllava_optuna.surgery import Card, Fitted, Loaded, Metric, Verified, portable
from effllava_optuna.surgery.card import written
from effllava_optuna.surgery.seal import seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch

PLAN = "effllava_plan"


def respond(loaded: Loaded, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**batch.inputs).logits[:, -1]
    return logits


def cut(dense: Loaded) -> Loaded:
    """Slice to another number of heads in each block, some of it refitted."""
    scores = {s.id: torch.arange(s.width).numpy() * 1.0 for s in dense.anatomy.sites}
    order = Order.from_scores(dense.anatomy, "reversed", scores)
    sites = [site.id for site in dense.anatomy.sites]
    refit = {
        (sites[1], 7): Fitted(torch.full((36, 7), 0.1)),
        (sites[5], 16): Fitted(bias=torch.linspace(-1, 1, 36)),
    }
    return sliced(dense, Policy.of(dense.anatomy, [1, 7, 3, 24, 2, 16]), order, refit)


@pytest.fixture(scope="module")
def pruned(make_llava: Callable[..., Loaded]) -> Loaded:
    return cut(make_llava(attention_bias=True))


@pytest.fixture(scope="module")
def exported(pruned: Loaded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verified]:
    """A real export, verified in a process of its own. Copy it before changing it."""
    place = tmp_path_factory.mktemp("exports") / "new" / "digits"
    return place, export(pruned, place)


@pytest.fixture
def copied(exported: tuple[Path, Verified], tmp_path: Path) -> Path:
    return shutil.copytree(exported[0], tmp_path / "export")


def test_a_fresh_process_finds_the_model_that_was_exported(
    exported: tuple[Path, Verified], pruned: Loaded
) -> None:
    place, verified = exported
    assert verified.directory == str(place)
    assert verified.parameters == pruned.model.num_parameters()
    assert verified.logit_difference < 1e-5
    assert verified.generation_equal
    assert verified.loader == ("load_pruned", "trust_remote_code")
    written = json.loads((place / "verified.json").read_text())
    assert written == asdict(verified) | {"loader": [*verified.loader]}
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_it_loads_back_as_the_same_model(
    exported: tuple[Path, Verified], pruned: Loaded, batch: Batch
) -> None:
    for loaded in (load_pruned(exported[0], device="cpu"), load(exported[0], device="cpu")):
        assert loaded.anatomy == pruned.anatomy
        assert torch.equal(respond(loaded, batch), respond(pruned, batch))
        weights = loaded.model.state_dict()
        for name, weight in pruned.model.state_dict().items():
            assert torch.equal(weights[name], weight), name


def test_it_is_a_stock_checkpoint_but_for_its_sizes(
    exported: tuple[Path, Verified], checkpoint: Path
) -> None:
    place, _ = exported
    config = json.loads((place / "config.json").read_text())
    stock = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == stock["model_type"]
    names = load_file(place / "model.safetensors").keys()
    biases = {name for name in names if name.endswith("bias")}
    gained = {name for name in biases if "down_proj" in name}
    assert [name.partition("layers")[2] for name in gained] == [".2.mlp.down_proj.bias"]
    stock_names = load_file(checkpoint / "model.safetensors").keys()
    assert names - biases == {name for name in stock_names if not name.endswith("bias")}
    assert {p.suffix for p in place.iterdir()} <= {".json", ".jinja", ".md", ".safetensors", ".py"}
    assert "import effllava" not in (place / "modeling_effllava.py").read_text()


def test_stock_transformers_refuses_it_rather_than_filling_in_weights(
    exported: tuple[Path, Verified],
) -> None:
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForImageTextToText.from_pretrained(exported[0], trust_remote_code=False)


def test_it_can_be_pruned_further(exported: tuple[Path, Verified], batch: Batch) -> None:
    loaded = load_pruned(exported[0], device="cpu")
    site = loaded.anatomy.sites[4]
    scores = {s.id: torch.ones(s.width).numpy() for s in loaded.anatomy.sites}
    order = Order.from_scores(loaded.anatomy, "as is", scores)
    policy = Policy.of(loaded.anatomy, {site.id: 1})
    with narrowed(loaded, policy, order) as small:
        expected = respond(small, batch)
    torch.testing.assert_close(respond(sliced(loaded, policy, order), batch), expected)
    assert (expected - respond(loaded, batch)).abs().max() > 0.01


def change_plan(**changes: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        config = json.loads((place / "config.json").read_text())
        config[PLAN] |= changes
        (place / "config.json").write_text(json.dumps(config))

    return change


def replace_plan(plan: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {PLAN: plan}))

    return change


def resize_plan(ending: str, size: object) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        config = json.loads((place / "config.json").read_text())
        linears = config[PLAN]["linears"]
        path = next(path for path in linears if path.endswith(ending))
        linears[path] = size
        (place / "config.json").write_text(json.dumps(config))

    return change


def change_policy(**parts: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        policy = json.loads((place / "policy.json").read_text())
        (place / "policy.json").write_text(json.dumps(policy | parts))

    return change


def change_tensor(
    ending: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        weights = load_file(place / "model.safetensors")
        name = next(name for name in weights if name.endswith(ending))
        changed = change(weights.pop(name))
        if changed is not None:
            weights[name] = changed
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})

    return apply


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (replace_plan([]), "has a damaged 'effllava_plan' in its config.json. Export"),
        (replace_plan({}), "has a damaged 'effllava_plan'"),
        (replace_plan("format"), "has a damaged 'effllava_plan'"),
        (change_plan(format=2), "has a plan of format 2, this version reads 1. Use the version"),
        (change_plan(base="NoSuchModel"), "was cut from a NoSuchModel, which transformers"),
        (change_plan(base="pipeline"), "was cut from a pipeline, which transformers"),
        (change_plan(linears={}), "1 unexpected keys, such as .*2.mlp.down_proj.bias"),
        (change_plan(linears=[1]), "does not load"),
        (change_plan(linears={"model.nothing": [1, 1]}), "does not load: KeyError.*model.nothing"),
        (resize_plan("0.mlp.down_proj", [36, 8]), "1 mismatched keys, such as .*0.mlp.down_proj"),
        (resize_plan("0.mlp.down_proj", [36, -8]), "does not load"),
        (resize_plan("0.mlp.down_proj", ["a", "b"]), "does not load"),
        (change_plan(counts={"lm_head": {"forward": 1}}), "lm_head.forward is no head count"),
        (change_plan(counts={"lm_head": {"in_features": "1"}}), "in_features is no head count"),
        (change_tensor("0.mlp.up_proj.weight", lambda _: None), "1 missing keys, such as .*up_pr"),
        (change_tensor("0.mlp.up_proj.weight", lambda w: w[:-1].clone()), "1 mismatched keys"),
        (lambda place: (place / "model.safetensors").write_bytes(b"\0" * 99), "does not load"),
        (lambda place: (place / "model.safetensors").unlink(), "does not load"),
        (change_policy(sites={"language.00.mlp": 1}), "policy.json' does not load: TypeError"),
    ],
)
def test_an_export_that_does_not_fit_together_is_refused_in_one_line(
    copied: Path, tamper: Callable[[Path], object], message: str
) -> None:
    """Whoever writes one by hand can seal it, too."""
    tamper(copied)
    seal(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load_pruned(copied, device="cpu")
    assert str(copied) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def cut_short(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_one_byte(place: Path) -> None:
    file = place / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (cut_short, "model.safetensors is not the file that was exported. Copy or export"),
        (change_one_byte, "model.safetensors is not the file that was exported"),
        (change_plan(version="1"), "config.json is not the file that was exported"),
        (lambda place: (place / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda place: (place / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda place: (place / "checksums.json").unlink(), "has no checksums.json that can"),
        (lambda place: (place / "checksums.json").write_text("{"), "has no checksums.json that"),
        (lambda place: (place / "checksums.json").write_text("[]"), "has no checksums.json that"),
    ],
)
def test_a_truncated_or_tampered_export_is_refused_by_its_hash(
    copied: Path, tamper: Callable[[Path], object], message: str
) -> None:
    tamper(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load_pruned(copied, device="cpu")
    assert str(copied) in caught.value.message
    assert "\n" not in str(caught.value)


def test_what_was_added_to_an_export_does_not_matter(
    copied: Path, pruned: Loaded, batch: Batch
) -> None:
    (copied / "notes.txt").write_text("served since Monday")
    assert torch.equal(respond(load_pruned(copied, device="cpu"), batch), respond(pruned, batch))


def test_an_export_says_what_it_is(exported: tuple[Path, Verified], pruned: Loaded) -> None:
    place, _ = exported
    policy = json.loads((place / "policy.json").read_text())
    assert (policy["format"], policy["form"], policy["base_model"]) == (1, "native", pruned.source)
    assert pruned.cut is not None
    assert {s: (e["kept"], e["of"]) for s, e in policy["sites"].items()} == pruned.cut.kept
    assert load_pruned(place, device="cpu").cut == pruned.cut
    assert all(entry["kept"] <= entry["of"] for entry in policy["sites"].values())
    card = (place / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert "load_pruned(" in card
    assert "| language.00 | " in card


def test_a_card_has_what_was_measured_and_on_what(pruned: Loaded) -> None:
    card = Card("64 questions.", (Metric("accuracy, test", 0.9, 0.85, 0.95), Metric("ms", 2.5)))
    text = written(pruned, card, "portable")
    assert "| accuracy, test | 0.900 [0.850, 0.950] |" in text
    assert "| ms | 2.500 |" in text
    assert "64 questions." in text
    assert "load_pruned" not in text
    assert "AutoProcessor" in text
    decoder = written(replace(pruned, processor=pruned.processor.tokenizer), card, "portable")
    assert "AutoModelForCausalLM" in decoder
    assert "AutoProcessor" not in decoder


def test_what_is_there_is_not_overwritten(pruned: Loaded, copied: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("years of work")
    for place, overwrite in [(folder, False), (folder, True), (file, True), (copied, False)]:
        with pytest.raises(ExportError, match=f"{place} is not empty. Choose another directory"):
            export(pruned, place, overwrite=overwrite)
    assert (folder / "thesis.txt").read_text() == file.read_text() == "years of work"


def test_without_a_processor_inputs_must_be_given(pruned: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no processor to make a question with"):
        export(replace(pruned, processor=None), tmp_path / "small")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_made_is_named(pruned: Loaded, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/new cannot be written: .*\. Choose a directory"):
        export(pruned, tmp_path / "file" / "new")


def test_a_model_that_is_only_narrowed_is_not_exported(
    tiny: Loaded, order: Order, tmp_path: Path
) -> None:
    half = Policy.uniform(tiny.anatomy, keep=0.5)
    message = "q_proj is narrowed at present. Export what `sliced` gives"
    with narrowed(tiny, half, order) as small, pytest.raises(ExportError, match=message):
        export(small, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (
            "echo 'No module named torch' >&2; exit 1",
            "does not load in a fresh process: No module",
        ),
        ("exit 3", "does not load in a fresh process: no message"),
        (
            """echo '{"logit_difference": 0.5, "generation_equal": true}'""",
            "comes back as another model: logits differ by 0.5, same tokens: True",
        ),
        (
            """echo '{"logit_difference": NaN, "generation_equal": true}'""",
            "comes back as another model: logits differ by nan",
        ),
        (
            """echo '{"logit_difference": 0.0, "generation_equal": false}'""",
            "comes back as another model: .* same tokens: False",
        ),
    ],
)
def test_an_export_that_does_not_come_back_is_not_kept(
    pruned: Loaded,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: str,
    message: str,
) -> None:
    python = copied.parent / "python"
    python.write_text(f"#!/bin/sh\n{process}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for place in (copied.parent / "new", copied):
        with pytest.raises(ExportError, match=message) as caught:
            export(pruned, place, overwrite=True)
        assert "Nothing was written" in caught.value.hint
    assert sorted(path.name for path in copied.parent.iterdir()) == ["export", "python"]
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_bias_that_the_stock_model_does_not_have_is_not_portable(
    pruned: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"biases that its configuration cannot say.* native"):
        export(pruned, tmp_path / "it", form="portable")
    assert not [*tmp_path.iterdir()]


def test_a_portable_export_loads_in_stock_transformers(
    make_llava: Callable[..., Loaded], tmp_path: Path, batch: Batch
) -> None:
    dense = make_llava(attention_bias=True, mlp_bias=True)
    small = cut(dense)
    place = tmp_path / "portable"
    verified = export(small, place, form="portable")
    assert verified.loader == ("AutoModelForImageTextToText",)
    assert verified.generation_equal
    assert 0 < verified.padded < 1
    loaded = load(place, device="cpu")
    assert type(loaded.model) is type(dense.model)
    assert PLAN not in json.loads((place / "config.json").read_text())
    torch.testing.assert_close(respond(loaded, batch), respond(small, batch))
    widths = {(site.kind, site.width) for site in loaded.anatomy.sites}
    assert len(widths) == 2
    change_one_byte(place)
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file"):
        load(place, device="cpu")


def test_a_uniform_policy_is_portable_without_padding(
    make_llava: Callable[..., Loaded],
) -> None:
    dense = make_llava()
    anatomy = dense.anatomy
    policy = Policy.of(anatomy, [2 if site.kind is Kind.ATTN else 9 for site in anatomy.sites])
    small = sliced(dense, policy, rank_units(dense))
    whole = portable(small).model
    assert whole.num_parameters() == small.model.num_parameters()
    config = whole.config.text_config
    assert (config.num_key_value_heads, config.num_attention_heads) == (2, 4)
    assert (config.head_dim, config.intermediate_size) == (8, 9)


@pytest.mark.slow
def test_an_export_in_half_precision_can_be_cut_and_exported_over_itself(
    make_llava: Callable[..., Loaded], batch: Batch, tmp_path: Path
) -> None:
    dtype = "bfloat16"
    dense = make_llava("Qwen2Config", head_dim=6, tie_word_embeddings=True)
    dense.model.lm_head.weight = dense.model.get_input_embeddings().weight
    dense.model.to(getattr(torch, dtype))
    export(cut(dense), tmp_path)
    once = load_pruned(tmp_path, device="cpu", dtype=dtype)
    scores = {s.id: torch.ones(s.width).numpy() for s in once.anatomy.sites}
    order = Order.from_scores(once.anatomy, "as is", scores)
    twice = sliced(once, Policy.of(once.anatomy, [1, 5, 2, 20, 1, 3]), order)
    assert export(twice, tmp_path, overwrite=True).generation_equal
    again = load_pruned(tmp_path, device="cpu", dtype=dtype)
    assert again.anatomy == twice.anatomy
    assert torch.equal(respond(again, batch), respond(twice, batch))
