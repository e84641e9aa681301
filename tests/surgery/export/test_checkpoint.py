"""Native exports: a fresh process reloads the same model, and damaged ones are refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from effllava_optuna import export, load, load_pruned, narrowed, sliced
from effllava_optuna.errors import ExportError, ModelError
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import LoadedModel, VerifiedExport
from effllava_optuna.surgery.export.comparison import ReloadDifference
from effllava_optuna.surgery.loading.checksums import write_checksums
from tests.hub_cache import downloaded
from tests.surgery.export.conftest import SETTINGS
from tests.surgery.export.pruned_models import last_logits, prune, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch

PLAN = "effllava_plan"


@pytest.fixture(scope="module")
def states() -> list[object]:
    """States of the model before and after its export."""
    return []


@pytest.fixture(scope="module")
def exported(
    pruned: LoadedModel,
    batch: Batch,
    tmp_path_factory: pytest.TempPathFactory,
    states: list[object],
) -> tuple[Path, VerifiedExport]:
    """An export that was verified in a fresh process. Copy it before changing it."""
    directory = tmp_path_factory.mktemp("exports") / "new" / "digits"
    last_logits(pruned, batch)  # the first forward pass installs hooks
    states.append(state_of(pruned))
    verified = export(pruned, directory)
    states.append(state_of(pruned))
    return directory, verified


def test_all_files_of_an_export_have_one_mode(
    exported: tuple[Path, VerifiedExport],
) -> None:
    modes = {path.name: path.stat().st_mode for path in exported[0].iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {modes["config.json"]}


@pytest.fixture
def copied(exported: tuple[Path, VerifiedExport], tmp_path: Path) -> Path:
    return shutil.copytree(exported[0], tmp_path / "export")


def test_a_fresh_process_reloads_the_exported_model(
    exported: tuple[Path, VerifiedExport], pruned: LoadedModel
) -> None:
    directory, verified = exported
    assert verified.directory == str(directory)
    assert verified.parameters == pruned.model.num_parameters()
    assert verified.logit_difference < 1e-5
    assert verified.generation_equal
    assert verified.loader == ("load_pruned", "trust_remote_code")
    document = json.loads((directory / "verified.json").read_text())
    lists: dict[str, object] = {"loader": [*verified.loader], "engines": []}
    assert document | {"directory": str(directory)} == asdict(verified) | lists
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_an_export_names_no_path_of_this_machine(
    exported: tuple[Path, VerifiedExport], pruned: LoadedModel
) -> None:
    directory, _ = exported
    texts = [path for path in directory.rglob("*") if path.suffix in {".json", ".md", ".py"}]
    assert len(texts) > 5
    local = replace(pruned, source=str(directory.parent / "local"), pruning_record=None)
    assert local.base_name == "local"
    assert not [path for path in texts if str(directory.parent) in path.read_text()]


def test_an_export_does_not_change_the_model(
    exported: tuple[Path, VerifiedExport], pruned: LoadedModel, states: list[object]
) -> None:
    before, after = states
    assert before == after
    pruned.model.config.dtype = torch.float32
    assert state_of(pruned) != before  # so that equality is informative
    pruned.model.config.dtype = None


def test_an_export_has_the_generation_settings_of_the_checkpoint(
    exported: tuple[Path, VerifiedExport],
) -> None:
    """They end in errors, or in other generations, if the verification reads them."""
    document = json.loads((exported[0] / "generation_config.json").read_text())
    assert {name: document[name] for name in SETTINGS} == SETTINGS


def test_the_loaded_model_has_the_same_weights_and_logits(
    exported: tuple[Path, VerifiedExport], pruned: LoadedModel, batch: Batch
) -> None:
    for loaded in (load_pruned(exported[0], device="cpu"), load(exported[0], device="cpu")):
        assert loaded.structure == pruned.structure
        assert torch.equal(last_logits(loaded, batch), last_logits(pruned, batch))
        weights = loaded.model.state_dict()
        for name, weight in pruned.model.state_dict().items():
            assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("complete", [True, False])
def test_an_export_on_the_hub_is_loaded_without_running_its_code(
    exported: tuple[Path, VerifiedExport],
    pruned: LoadedModel,
    batch: Batch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    complete: bool,
) -> None:
    snapshot = downloaded("pruned", tmp_path, monkeypatch)
    shutil.copytree(exported[0], snapshot, dirs_exist_ok=True)
    for file in snapshot.glob("*.py"):
        file.write_text("raise RuntimeError('this code was run')")
    write_checksums(snapshot)
    if not complete:
        (snapshot / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
            load("someone/pruned", device="cpu")
        return
    for load_it in (load, load_pruned):
        loaded = load_it("someone/pruned", device="cpu")
        assert loaded.source == "someone/pruned"
        assert loaded.pruning_record == load_pruned(exported[0], device="cpu").pruning_record
        assert torch.equal(last_logits(loaded, batch), last_logits(pruned, batch))


def test_an_export_is_a_stock_checkpoint_except_for_its_sizes(
    exported: tuple[Path, VerifiedExport], checkpoint: Path
) -> None:
    directory, _ = exported
    config = json.loads((directory / "config.json").read_text())
    stock = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == stock["model_type"]
    names = load_file(directory / "model.safetensors").keys()
    biases = {name for name in names if name.endswith("bias")}
    gained_biases = {name for name in biases if "down_proj" in name}
    assert [name.partition("layers")[2] for name in gained_biases] == [".2.mlp.down_proj.bias"]
    stock_names = load_file(checkpoint / "model.safetensors").keys()
    assert names - biases == {name for name in stock_names if not name.endswith("bias")}
    assert {p.suffix for p in directory.iterdir()} <= {
        ".json",
        ".jinja",
        ".md",
        ".safetensors",
        ".py",
    }
    assert "import effllava" not in (directory / "modeling_effllava.py").read_text()


def test_stock_transformers_refuses_an_export_instead_of_initialising_weights(
    exported: tuple[Path, VerifiedExport],
) -> None:
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForImageTextToText.from_pretrained(exported[0], trust_remote_code=False)


def test_an_export_can_be_pruned_further(
    exported: tuple[Path, VerifiedExport], batch: Batch
) -> None:
    loaded = load_pruned(exported[0], device="cpu")
    component = loaded.structure.components[4]
    scores = {s.id: torch.ones(s.width).numpy() for s in loaded.structure.components}
    ranking = Ranking.from_scores(loaded.structure, "equal", scores)
    policy = Policy.of(loaded.structure, {component.id: 1})
    with narrowed(loaded, policy, ranking) as small:
        expected = last_logits(small, batch)
    torch.testing.assert_close(last_logits(sliced(loaded, policy, ranking), batch), expected)
    assert (expected - last_logits(loaded, batch)).abs().max() > 0.01


def change_plan(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        config[PLAN] |= changes
        (directory / "config.json").write_text(json.dumps(config))

    return change


def replace_plan(plan: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {PLAN: plan}))

    return change


def resize_plan(ending: str, size: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        linears = config[PLAN]["linears"]
        path = next(path for path in linears if path.endswith(ending))
        linears[path] = size
        (directory / "config.json").write_text(json.dumps(config))

    return change


def change_policy(**parts: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        policy = json.loads((directory / "policy.json").read_text())
        (directory / "policy.json").write_text(json.dumps(policy | parts))

    return change


def change_tensor(
    ending: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        name = next(name for name in weights if name.endswith(ending))
        changed = change(weights.pop(name))
        if changed is not None:
            weights[name] = changed
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return apply


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (replace_plan([]), "config.json has a damaged 'effllava_plan'. Export"),
        (replace_plan({}), "has a damaged 'effllava_plan'"),
        (replace_plan("format"), "has a damaged 'effllava_plan'"),
        (change_plan(format=3), "has a plan of format 3; this version reads 1 and 2. Use"),
        (change_plan(base="NoSuchModel"), "was pruned from a NoSuchModel, which transformers"),
        (change_plan(base="pipeline"), "was pruned from a pipeline, which transformers"),
        (change_plan(linears={}), "1 unexpected keys, such as .*2.mlp.down_proj.bias"),
        (change_plan(linears=[1]), "does not load"),
        (change_plan(linears={"model.nothing": [1, 1]}), "does not load: KeyError.*model.nothing"),
        (resize_plan("0.mlp.down_proj", [36, 8]), "1 mismatched keys, such as .*0.mlp.down_proj"),
        (resize_plan("0.mlp.down_proj", [36, -8]), "does not load"),
        (resize_plan("0.mlp.down_proj", ["a", "b"]), "does not load"),
        (change_plan(counts={"lm_head": {"forward": 1}}), "lm_head.forward is not a head count"),
        (change_plan(counts={"lm_head": {"in_features": "1"}}), "in_features is not a head count"),
        (change_tensor("0.mlp.up_proj.weight", lambda _: None), "1 missing keys, such as .*up_pr"),
        (change_tensor("0.mlp.up_proj.weight", lambda w: w[:-1].clone()), "1 mismatched keys"),
        (
            lambda directory: (directory / "model.safetensors").write_bytes(b"\0" * 99),
            "does not load",
        ),
        (lambda directory: (directory / "model.safetensors").unlink(), "does not load"),
        (
            change_policy(components={"language.00.mlp": 1}),
            "policy.json' does not load: TypeError",
        ),
    ],
)
def test_an_export_that_does_not_fit_together_is_refused_in_one_line(
    copied: Path, tamper: Callable[[Path], object], message: str
) -> None:
    """Checksums do not protect against an export that was written by hand."""
    tamper(copied)
    write_checksums(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load_pruned(copied, device="cpu")
    assert str(copied) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def cut_short(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_one_byte(directory: Path) -> None:
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (cut_short, "model.safetensors is not the file that was exported. Copy or export"),
        (change_one_byte, "model.safetensors is not the file that was exported"),
        (change_plan(version="1"), "config.json is not the file that was exported"),
        (
            lambda directory: (directory / "model.safetensors").unlink(),
            "model.safetensors is missing",
        ),
        (lambda directory: (directory / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (
            lambda directory: (directory / "checksums.json").unlink(),
            "has no readable checksums.json",
        ),
        (
            lambda directory: (directory / "checksums.json").write_text("{"),
            "has no readable checksums.json",
        ),
        (
            lambda directory: (directory / "checksums.json").write_text("[]"),
            "has no readable checksums.json",
        ),
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


def test_files_added_to_an_export_are_ignored(
    copied: Path, pruned: LoadedModel, batch: Batch
) -> None:
    (copied / "notes.txt").write_text("served since Monday")
    assert torch.equal(
        last_logits(load_pruned(copied, device="cpu"), batch), last_logits(pruned, batch)
    )


def test_an_export_describes_itself(
    exported: tuple[Path, VerifiedExport], pruned: LoadedModel
) -> None:
    directory, _ = exported
    policy = json.loads((directory / "policy.json").read_text())
    assert (policy["format"], policy["form"]) == (2, "native")
    assert policy["base_model"] == pruned.base_name
    assert pruned.pruning_record is not None
    assert {
        s: (e["kept"], e["of"]) for s, e in policy["components"].items()
    } == pruned.pruning_record.kept
    assert load_pruned(directory, device="cpu").pruning_record == pruned.pruning_record
    assert all(entry["kept"] <= entry["of"] for entry in policy["components"].values())
    card = (directory / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: transformers\npipeline_tag: "image-text-to-text"\n')
    assert "| language.00 | " in card


def test_foreign_files_and_exports_are_not_overwritten(
    pruned: LoadedModel, copied: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("years of work")
    for directory, overwrite in [(folder, False), (folder, True), (file, True), (copied, False)]:
        with pytest.raises(
            ExportError, match=f"{directory} is not empty. Choose another directory"
        ):
            export(pruned, directory, overwrite=overwrite)
    assert (folder / "thesis.txt").read_text() == file.read_text() == "years of work"


def test_a_file_that_was_added_to_an_export_is_not_overwritten(
    pruned: LoadedModel, copied: Path
) -> None:
    (copied / "model-Q4_K_M.gguf").write_text("hours of work")
    with pytest.raises(ExportError, match=r"Q4_K_M\.gguf is not of the earlier export"):
        export(pruned, copied, overwrite=True)
    assert (copied / "model-Q4_K_M.gguf").read_text() == "hours of work"


def test_an_unknown_form_is_refused(pruned: LoadedModel, tmp_path: Path) -> None:
    form: Any = "gguf"
    with pytest.raises(ExportError, match=r"form is 'gguf'\. Use native or portable"):
        export(pruned, tmp_path / "small", form=form)


def test_without_a_processor_inputs_must_be_given(pruned: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no processor to create example inputs"):
        export(replace(pruned, processor=None), tmp_path / "small")
    assert not any(tmp_path.iterdir())


def test_a_directory_that_cannot_be_created_is_named(pruned: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/new cannot be written: .*\. Choose another"):
        export(pruned, tmp_path / "file" / "new")


def test_a_model_that_is_only_narrowed_is_not_exported(
    tiny: LoadedModel, ranking: Ranking, tmp_path: Path
) -> None:
    half = Policy.uniform(tiny.structure, ratio=0.5)
    message = "q_proj is narrowed at present. Export the result of `sliced`"
    with narrowed(tiny, half, ranking) as small, pytest.raises(ExportError, match=message):
        export(small, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def reported(**difference: Any) -> str:
    """Return a shell command that prints a difference, as the verification does."""
    none = ReloadDifference(0.0, 3.0, generation_equal=True, changed_weights=())
    document = {"difference": asdict(none) | difference, "parameters": 1, "loader": []}
    return f"echo '{json.dumps(document)}'"


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (
            "echo 'No module named torch' >&2; exit 1",
            "does not load in a fresh process: No module",
        ),
        ("exit 3", "does not load in a fresh process: no message"),
        (
            reported(logits=0.5),
            "does not reload as the same model: logits differ by 0.5, same tokens: True",
        ),
        (reported(logits=math.nan), "does not reload as the same model: logits differ by nan"),
        (
            reported(generation_equal=False),
            "does not reload as the same model: .* same tokens: False",
        ),
        (
            reported(changed_weights=["a.weight", "b.weight"]),
            "does not reload as the same model: 2 weights differ, such as a.weight",
        ),
    ],
)
def test_an_export_that_does_not_reload_is_not_kept(
    pruned: LoadedModel,
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
    for directory in (copied.parent / "new", copied):
        with pytest.raises(ExportError, match=message) as caught:
            export(pruned, directory, overwrite=True)
        assert "Nothing was written" in caught.value.hint
    assert sorted(path.name for path in copied.parent.iterdir()) == ["export", "python"]
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.families
def test_an_export_in_half_precision_can_be_pruned_and_exported_over_itself(
    make_llava: Callable[..., LoadedModel], batch: Batch, tmp_path: Path
) -> None:
    dtype = "bfloat16"
    dense = make_llava("Qwen2Config", head_dim=6, tie_word_embeddings=True)
    dense.model.lm_head.weight = dense.model.get_input_embeddings().weight
    dense.model.to(getattr(torch, dtype))
    export(prune(dense), tmp_path)
    once = load_pruned(tmp_path, device="cpu", dtype=dtype)
    scores = {s.id: torch.ones(s.width).numpy() for s in once.structure.components}
    ranking = Ranking.from_scores(once.structure, "equal", scores)
    twice = sliced(once, Policy.of(once.structure, [1, 5, 2, 20, 1, 3]), ranking)
    assert export(twice, tmp_path, overwrite=True).generation_equal
    again = load_pruned(tmp_path, device="cpu", dtype=dtype)
    assert again.structure == twice.structure
    assert torch.equal(last_logits(again, batch), last_logits(twice, batch))
