"""Every family, pruned at random in all towers, stays one function and can be exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.policy import Kind, Policy
from effllava_optuna.surgery import (
    LoadedModel,
    masked,
    narrowed,
    pad_to_stock_sizes,
    restrict_to_stock_sizes,
    sliced,
    verify_structure,
)
from effllava_optuna.surgery.apply.reduced_model import find_obstacle
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.comparison import (
    compute_outputs,
    write_expected,
)
from tests.page_tables import check_table
from tests.surgery.export.pruned_models import state_of
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import (
    CLOSE,
    assert_reloaded,
    compute_logits,
    families,
    load_family,
    policies,
    random_policy,
    rebuilt,
)
from tests.surgery.visual_tokens.pictured_families import PICTURED, load_pictured

if TYPE_CHECKING:
    pass

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize("name", families())
def test_masked_narrowed_and_sliced_are_one_function(name: str) -> None:
    loaded, inputs = load_family(name), FAMILIES[name].inputs()
    dense = compute_logits(loaded.model, inputs)
    before = {key: weight.clone() for key, weight in loaded.model.state_dict().items()}
    config = loaded.model.config.to_dict()
    for seed in range(2):
        policy, ranking = random_policy(loaded.structure, seed)
        with masked(loaded, policy, ranking):
            expected = compute_logits(loaded.model, inputs)
            tokens = loaded.model.generate(**inputs, **GREEDY)
        # The mask has an effect, so agreement with it is informative.
        assert (expected - dense).abs().max() > 0.1
        with narrowed(loaded, policy, ranking):
            torch.testing.assert_close(compute_logits(loaded.model, inputs), expected, **CLOSE)
            assert torch.equal(loaded.model.generate(**inputs, **GREEDY), tokens)
        small = sliced(loaded, policy, ranking).model
        torch.testing.assert_close(compute_logits(small, inputs), expected, **CLOSE)
        assert torch.equal(small.generate(**inputs, **GREEDY), tokens)
    static = small.generate(**inputs, **GREEDY, cache_implementation="static")
    assert torch.equal(static, tokens)
    assert torch.equal(compute_logits(loaded.model, inputs), dense)
    assert loaded.model.config.to_dict() == config
    after = loaded.model.state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


@pytest.mark.parametrize("name", families())
def test_whatever_can_be_chosen_can_be_exported(name: str) -> None:
    loaded, inputs = load_family(name), FAMILIES[name].inputs()
    _, ranking = random_policy(loaded.structure, 0)
    for policy in policies(loaded.structure):
        small = sliced(loaded, policy, ranking)
        logits = compute_logits(small.model, inputs)
        torch.testing.assert_close(compute_logits(rebuilt(small), inputs), logits, **CLOSE)


@pytest.mark.families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_half_precision_agrees_within_its_rounding(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    model = family.build().to(dtype)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in family.inputs().items()
    }
    loaded = verify_structure(LoadedModel.of(model, None, name, towers=None, depth=True), inputs)
    assert len(loaded.structure.components) == len(load_family(name).structure.components)
    policy, ranking = random_policy(loaded.structure, 0)
    with masked(loaded, policy, ranking):
        expected = compute_logits(model, inputs)
    with narrowed(loaded, policy, ranking):
        logits = compute_logits(model, inputs)
    rounding = 0.1 if dtype is torch.bfloat16 else 0.02
    assert (logits - expected).abs().max() < rounding * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", families())
def test_half_precision_is_compared_in_float32(name: str, dtype: torch.dtype) -> None:
    """Converted block by block, a model computes the same as a copy that is converted at once."""
    model, inputs = FAMILIES[name].build().to(dtype), FAMILIES[name].inputs()
    outputs = compute_outputs(model, inputs)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    expected = compute_outputs(copy.deepcopy(model).float(), inputs)
    torch.testing.assert_close(outputs, expected, **CLOSE)


@pytest.mark.parametrize("name", families(["llava", "qwen2_vl", "gemma3", "mllama"]))
def test_the_attention_kernel_does_not_matter(name: str) -> None:
    loaded, inputs = load_family(name), FAMILIES[name].inputs()
    policy, ranking = random_policy(loaded.structure, 1)
    small = sliced(loaded, policy, ranking).model
    expected = compute_logits(small, inputs)
    small.set_attn_implementation("eager")
    torch.testing.assert_close(compute_logits(small, inputs), expected, **CLOSE)


def test_the_unread_block_of_llava_is_omitted_without_an_effect() -> None:
    loaded, inputs = load_family("llava"), FAMILIES["llava"].inputs()
    _, ranking = random_policy(loaded.structure, 0)
    small = sliced(loaded, Policy.dense(loaded.structure), ranking)
    dense_logits = compute_logits(loaded.model, inputs)
    assert torch.equal(compute_logits(small.model, inputs), dense_logits)
    assert small.model.config.vision_feature_layer == -1
    assert small.model.config.vision_config.num_hidden_layers == 2
    assert loaded.model.config.vision_feature_layer == -2
    unread = loaded.model.model.vision_tower.encoder.layers[2]
    saved = loaded.model.num_parameters() - small.model.num_parameters()
    assert saved == sum(weight.numel() for weight in unread.parameters())


@pytest.mark.families
def test_every_family_can_be_exported_and_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    """Write all of them in both forms; one process loads them, to import transformers once."""
    for name, family in FAMILIES.items():
        loaded = load_family(name)
        small = sliced(loaded, *random_policy(loaded.structure, 0))
        inputs = family.inputs()
        compute_logits(small.model, inputs)  # the first forward pass installs hooks
        before = state_of(small)
        for form in ("native", "portable"):
            exported = pad_to_stock_sizes(small) if form == "portable" else small
            plan = size_plan(exported)
            directory = tmp_path / name / form
            assert bool(plan["linears"]) == (form == "native"), name
            write_checkpoint(exported, directory, plan if form == "native" else None)
            write_expected(small.model, exported.model, inputs, directory)
        assert state_of(small) == before, name
    assert_reloaded(tmp_path, "*/*", 2 * len(FAMILIES))


@pytest.mark.families
def test_the_docs_list_what_can_be_pruned(request: pytest.FixtureRequest) -> None:
    """``pytest -m families --write-tables`` writes the table that is compared otherwise."""
    write = request.config.getoption("--write-tables")
    check_table("models", "families", _table(), write=write)


def _table() -> list[str]:
    columns = {
        "decoder heads": ("language", Kind.ATTN),
        "decoder MLPs": ("language", Kind.MLP),
        "blocks": ("language", Kind.BLOCK),
        "tower heads": ("vision", Kind.ATTN),
        "tower MLPs": ("vision", Kind.MLP),
        "projector": ("projector", Kind.MLP),
    }
    rows = [
        f"| family | {' | '.join(columns)} | image tokens | without padding |",
        f"|---|{'---|' * (len(columns) + 2)}",
    ]
    for name in FAMILIES:
        loaded = load_family(name)
        cells = [_cell(loaded, tower, kind) for tower, kind in columns.values()]
        handles = restrict_to_stock_sizes(loaded).handles
        unpadded = {(handle.component.tower, handle.component.kind) for handle in handles}
        labels = [label for label, group in columns.items() if group in unpadded]
        cells += [_image_tokens(name), ", ".join(labels)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _image_tokens(name: str) -> str:
    """Return whether image tokens can be reduced; families without a processor here borrow one."""
    if not FAMILIES[name].image:
        return ""
    if name in PICTURED:
        loaded = load_pictured(name)
        obstacle = find_obstacle(loaded.model, loaded.processor)
        return f"no: {obstacle}" if obstacle else "yes"
    processor = copy.copy(load_pictured("llava").processor)
    if name == "mistral3":
        processor.image_break_token = "[IMG_BREAK]"
    obstacle = find_obstacle(load_family(name).model, processor)
    return f"no: {obstacle}" if obstacle else "not tested"


def _cell(loaded: LoadedModel, tower: str, kind: Kind) -> str:
    prunable = [c for c in loaded.structure.components if (c.tower, c.kind) == (tower, kind)]
    unprunable = [
        part
        for part in loaded.unprunable
        if part.id.startswith(tower) and part.id.endswith(f".{kind}")
    ]
    if not prunable:
        return "no" if unprunable else ""
    return f"{len(prunable)} of {len(prunable) + len(unprunable)}" if unprunable else "yes"
