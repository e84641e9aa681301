"""Reloaded native exports: saved again by transformers, pickled, and run with every cache."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    ContinuousBatchingConfig,
    GenerationConfig,
)

from effllava_optuna import Policy, export, load_pruned, rank_units, sliced
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery import build_example_inputs, reduced_tokens
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.structure import reloaded_class
from effllava_optuna.surgery.structure.pruned_class import auto_class
from effllava_optuna.surgery.structure.reloaded_class import pruned_class
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import CLOSE, compute_logits, load_family, random_policy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from effllava_optuna.policy import Ranking
    from effllava_optuna.surgery import LoadedModel

pytestmark = [
    pytest.mark.exports,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
LOADERS = ("own", "coded")
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}


@pytest.fixture(autouse=True)
def modules_are_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the code of checkpoints out of the user's cache."""
    folder = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)


@pytest.fixture(scope="module")
def text() -> LoadedModel:
    """A decoder whose layers have different numbers of heads."""
    loaded = load_family("llama")
    widths = {"language.00.attn": 1, "language.01.block": 0, "language.02.mlp": 50}
    policy = Policy.of(loaded.structure, widths)
    return sliced(loaded, policy, random_policy(loaded.structure, 0)[1])


@pytest.fixture(scope="module")
def text_export(text: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text") / "export"
    write_checkpoint(text, directory, size_plan(text))
    return directory


@pytest.fixture(scope="module")
def reduced(tiny: LoadedModel, ranking: Ranking) -> LoadedModel:
    """A pruned model that reads a quarter of the image tokens."""
    with reduced_tokens(tiny, 0.25) as fewer:
        return sliced(fewer, Policy.uniform(tiny.structure, ratio=0.5), ranking)


@pytest.fixture(scope="module")
def reduced_export(reduced: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reduced") / "export"
    export(reduced, directory)
    return directory


def read_text(directory: Path, loader: str) -> Any:
    if loader == "own":
        return pruned_class(directory).from_pretrained(directory).eval()
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()


def read_pictured(directory: Path, loader: str) -> tuple[Any, Any]:
    """Return model and processor."""
    if loader == "own":
        loaded = load_pruned(directory, device="cpu")
        return loaded.model, loaded.processor
    model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True)
    return model.eval(), AutoProcessor.from_pretrained(directory, trust_remote_code=True)


@pytest.mark.parametrize("loader", LOADERS)
def test_what_transformers_saves_loads_in_both_ways(
    text: LoadedModel, text_export: Path, tmp_path: Path, loader: str
) -> None:
    read_text(text_export, loader).save_pretrained(tmp_path / "copy")
    config = (tmp_path / "copy" / "config.json").read_text()
    assert '"per_layer_config"' in config
    assert '"AutoModel"' in config
    expected = compute_logits(text.model, FAMILIES["llama"].inputs())
    for each in LOADERS:
        model = read_text(tmp_path / "copy", each)
        logits = compute_logits(model, FAMILIES["llama"].inputs())
        torch.testing.assert_close(logits, expected, **CLOSE)
    assert keys_in(tmp_path / "copy") == keys_in(text_export)


def keys_in(directory: Path) -> set[str]:
    return set(load_file(directory / "model.safetensors"))


@pytest.mark.families
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_saved_and_pickled(name: str, tmp_path: Path) -> None:
    loaded, inputs = load_family(name), FAMILIES[name].inputs()
    small = sliced(loaded, *random_policy(loaded.structure, 0))
    write_checkpoint(small, tmp_path / "export", size_plan(small))
    model = pruned_class(tmp_path / "export").from_pretrained(tmp_path / "export").eval()
    expected = compute_logits(model, inputs)
    same = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(compute_logits(same, inputs), expected, **CLOSE)
    model.save_pretrained(tmp_path / "copy")
    auto = auto_class(model.config)
    for copied in (
        pruned_class(tmp_path / "copy").from_pretrained(tmp_path / "copy").eval(),
        auto.from_pretrained(tmp_path / "copy", trust_remote_code=True).eval(),
    ):
        torch.testing.assert_close(compute_logits(copied, inputs), expected, **CLOSE)
    assert keys_in(tmp_path / "copy") == keys_in(tmp_path / "export")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_saved_copy_reads_as_few_image_tokens(
    reduced: LoadedModel, reduced_export: Path, tmp_path: Path, loader: str
) -> None:
    model, processor = read_pictured(reduced_export, loader)
    model.save_pretrained(tmp_path / "copy")
    processor.save_pretrained(tmp_path / "copy")
    inputs = build_example_inputs(reduced.processor)
    expected = compute_logits(reduced.model, inputs)
    for each in LOADERS:
        copied, copied_processor = read_pictured(tmp_path / "copy", each)
        encoded = build_example_inputs(copied_processor)
        assert torch.equal(encoded["input_ids"], inputs["input_ids"])
        torch.testing.assert_close(compute_logits(copied, encoded), expected, **CLOSE)


def test_a_model_that_was_pruned_further_is_saved_with_its_new_sizes(
    reduced_export: Path, tmp_path: Path
) -> None:
    once = load_pruned(reduced_export, device="cpu")
    policy = Policy.uniform(once.structure, ratio=0.5)
    twice = sliced(once, policy, rank_units(once, importance="magnitude"))
    twice.model.save_pretrained(tmp_path)
    twice.processor.save_pretrained(tmp_path)
    again = load_pruned(tmp_path, device="cpu")
    assert again.structure == twice.structure
    assert again.pruning_record is None
    assert again.visual_tokens == twice.visual_tokens
    inputs = build_example_inputs(twice.processor)
    expected = compute_logits(twice.model, inputs)
    torch.testing.assert_close(compute_logits(again.model, inputs), expected, **CLOSE)


def test_a_save_that_would_upload_no_code_is_refused(text_export: Path, tmp_path: Path) -> None:
    model = read_text(text_export, "own")
    with pytest.raises(ExportError, match=r"does not upload the code .* Use push_to_hub\(\)"):
        model.save_pretrained(tmp_path / "copy", push_to_hub=True)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_reloaded_model_can_be_pickled_and_copied(reduced_export: Path, loader: str) -> None:
    model, processor = read_pictured(reduced_export, loader)
    inputs = build_example_inputs(processor)
    expected = compute_logits(model, inputs)
    for same in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(same) is type(model)
        torch.testing.assert_close(compute_logits(same, inputs), expected, **CLOSE)
        owner = next(part for part in same.children() if hasattr(part, "get_image_features"))
        assert owner.get_image_features.args[0].__self__ is owner
    encoded = build_example_inputs(pickle.loads(pickle.dumps(processor)))
    assert torch.equal(encoded["input_ids"], inputs["input_ids"])


def test_another_process_reads_a_pickled_model(
    text: LoadedModel, text_export: Path, tmp_path: Path
) -> None:
    inputs = FAMILIES["llama"].inputs()
    torch.save((read_text(text_export, "own"), inputs), tmp_path / "model.pt")
    program = (
        "import sys, torch\n"
        "model, inputs = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.save(model(**inputs).logits.detach(), sys.argv[2])\n"
    )
    files = [str(tmp_path / name) for name in ("model.pt", "logits.pt")]
    command = [sys.executable, "-c", program, *files]
    subprocess.run(command, check=True, capture_output=True)
    expected = compute_logits(text.model, inputs)
    torch.testing.assert_close(torch.load(files[1]), expected, **CLOSE)


def test_classes_of_other_names_are_not_created() -> None:
    created = reloaded_class.PrunedLlamaForCausalLM
    assert created is reloaded_class.PrunedLlamaForCausalLM
    for name in ("PrunedPipeline", "Prunedpipeline", "LlamaForCausalLM"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(reloaded_class, name)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_every_cache_of_generate_holds_layers_of_different_heads(
    text: LoadedModel, text_export: Path, loader: str, chunk: int | None
) -> None:
    model, inputs = read_text(text_export, loader), FAMILIES["llama"].inputs()
    expected = text.model.generate(**inputs, **GREEDY)
    for cache in ("dynamic", "static"):
        tokens = model.generate(
            **inputs, **GREEDY, cache_implementation=cache, prefill_chunk_size=chunk
        )
        assert torch.equal(tokens, expected)


def in_a_batch(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Generate with continuous batching and its paged cache."""
    answers: Mapping[str, Any] = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(**GREEDY),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64),
    )
    assert [answer.error for answer in answers.values()] == [None] * len(prompts)
    return [answer.generated_tokens for answer in answers.values()]


@pytest.mark.parametrize("loader", LOADERS)
def test_continuous_batching_needs_the_heads_of_the_configuration(
    text_export: Path, tmp_path: Path, loader: str
) -> None:
    with pytest.raises(ValueError, match="reserves a cache for one number of key/value heads"):
        in_a_batch(read_text(text_export, loader), [[5, 6, 7]])
    loaded = load_family("llama")
    widths = {c.id: max(c.width // 2, 1) for c in loaded.structure.components if c.kind == "mlp"}
    ranking = random_policy(loaded.structure, 0)[1]
    small = sliced(loaded, Policy.of(loaded.structure, widths), ranking)
    write_checkpoint(small, tmp_path / "export", size_plan(small))
    prompts = [[5, 6, 7], [8, 9, 10, 11]]
    answers = in_a_batch(read_text(tmp_path / "export", loader), prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = small.model.generate(torch.tensor([prompt]), **GREEDY)
        assert answer == expected[0, len(prompt) :].tolist()
