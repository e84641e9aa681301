"""Every family: cut at random, in all towers, it stays one function, and comes back from disk."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Anatomy, Kind, Order, Policy
from effllava_optuna.surgery import (
    Discovery,
    Loaded,
    Refusal,
    discover,
    examined,
    masked,
    narrowed,
    portable,
    sayable,
    sliced,
)
from effllava_optuna.surgery.export import _plan, _write, respond
from effllava_optuna.surgery.load import read
from tests.surgery.families import FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# Logits are near 3. The same sums in another order, in float32.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def towers_of(found: Discovery) -> list[str]:
    return list(dict.fromkeys(handle.site.tower for handle in found.handles))


@functools.cache
def understood(name: str) -> Loaded:
    """All of a family that can be cut, put to the test. Whoever changes it changes it back."""
    model = FAMILIES[name].build()
    loaded = Loaded.of(model, None, name, towers=towers_of(discover(model)), depth=True)
    return examined(loaded, FAMILIES[name].inputs())


def drawn(anatomy: Anatomy, seed: int) -> tuple[Policy, Order]:
    """Draw a policy and an order; of the blocks, about a third go."""
    rng = np.random.default_rng(seed)
    keep = [
        int(rng.random() > 0.35) if s.kind is Kind.BLOCK else int(rng.integers(1, s.width + 1))
        for s in anatomy.sites
    ]
    scores = {site.id: rng.random(site.width) for site in anatomy.sites}
    return Policy.of(anatomy, keep), Order.from_scores(anatomy, "random", scores)


@torch.no_grad()
def logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model(**inputs).logits.float()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_narrowed_and_sliced_are_one_function(name: str) -> None:
    loaded, inputs = understood(name), FAMILIES[name].inputs()
    dense = logits(loaded.model, inputs)
    before = {key: weight.clone() for key, weight in loaded.model.state_dict().items()}
    settings = loaded.model.config.to_dict()
    for seed in range(2):
        policy, order = drawn(loaded.anatomy, seed)
        with masked(loaded, policy, order):
            expected = logits(loaded.model, inputs)
            tokens = loaded.model.generate(**inputs, **GREEDY)
        # The mask does something, so that agreeing with it says something.
        assert (expected - dense).abs().max() > 0.1
        with narrowed(loaded, policy, order):
            torch.testing.assert_close(logits(loaded.model, inputs), expected, **CLOSE)
            assert torch.equal(loaded.model.generate(**inputs, **GREEDY), tokens)
        small = sliced(loaded, policy, order).model
        torch.testing.assert_close(logits(small, inputs), expected, **CLOSE)
        assert torch.equal(small.generate(**inputs, **GREEDY), tokens)
    static = small.generate(**inputs, **GREEDY, cache_implementation="static")
    assert torch.equal(static, tokens)
    assert torch.equal(logits(loaded.model, inputs), dense)
    assert loaded.model.config.to_dict() == settings
    after = loaded.model.state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_half_precision_agrees_within_its_rounding(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    model = family.build().to(dtype)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in family.inputs().items()
    }
    parts = discover(model)
    loaded = examined(Loaded.of(model, None, name, towers=towers_of(parts), depth=True), inputs)
    assert len(loaded.anatomy.sites) == len(understood(name).anatomy.sites)
    policy, order = drawn(loaded.anatomy, 0)
    with masked(loaded, policy, order):
        expected = logits(model, inputs)
    with narrowed(loaded, policy, order):
        found = logits(model, inputs)
    rounding = 0.1 if dtype is torch.bfloat16 else 0.02
    assert (found - expected).abs().max() < rounding * expected.abs().max()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "mllama"])
def test_the_attention_kernel_does_not_matter(name: str) -> None:
    loaded, inputs = understood(name), FAMILIES[name].inputs()
    policy, order = drawn(loaded.anatomy, 1)
    small = sliced(loaded, policy, order).model
    expected = logits(small, inputs)
    small.set_attn_implementation("eager")
    torch.testing.assert_close(logits(small, inputs), expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("internvl (6B tower)", "vision.00.attn", "a norm over all heads"),
        ("blip-2", "vision.00.attn", "a forward pass that relies on its size (RuntimeError"),
        ("gemma4", "language.01.block", "a forward pass that relies on its size (RuntimeError"),
        ("qwen3_5", "language.00.attn", "no attention that is understood"),
        ("qwen3_vl", "language.01.block", "features of the vision tower added behind it"),
        ("llava", "vision.02", "nothing reads what it gives"),
    ],
)
def test_what_cannot_be_cut_is_said_with_the_reason(name: str, place: str, reason: str) -> None:
    refused = {refusal.place: refusal.reason for refusal in understood(name).refused}
    assert refused[place].startswith(reason)
    assert "\n" not in refused[place]


def test_a_norm_over_all_heads_is_caught_even_where_its_name_hides_it() -> None:
    """The structural rule looks for weights of a norm; the test, at what is computed."""

    class Hidden(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.pow(2).mean(-1, keepdim=True).rsqrt()

    family = FAMILIES["internvl (6B tower)"]
    model = family.build()
    for block in model.model.vision_tower.encoder.layer:
        block.attention.q_norm = block.attention.k_norm = Hidden()
    loaded = Loaded.of(model, None, "disguised", towers=["vision", "language"])
    assert any(site.id == "vision.00.attn" for site in loaded.anatomy.sites)
    refused = examined(loaded, family.inputs()).refused
    assert [r.place for r in refused] == [f"vision.{layer:02d}.attn" for layer in range(3)]
    assert all(r.reason.startswith("units that are not independent") for r in refused)


def text(config: str, **more: Any) -> Any:
    """Make a text decoder with other settings than those of its family."""
    return Family(config, {**FAMILIES["llama"].parts, **more}, {}).build()


def understood_text(model: Any) -> Loaded:
    return examined(Loaded.of(model, None, "text", depth=True), FAMILIES["llama"].inputs())


def test_blocks_of_one_class_with_another_function_are_tested_apart() -> None:
    """A function is no module: only its identity tells that a softmax makes channels depend."""

    class Gated(nn.Module):
        def __init__(self, gate: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (
                nn.Linear(*size, bias=False) for size in ((64, 96), (64, 96), (96, 64))
            )
            self.gate = gate
            for weight in self.parameters():
                nn.init.normal_(weight, std=0.12, generator=torch.Generator().manual_seed(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = self.down_proj(self.gate(self.gate_proj(x)) * self.up_proj(x))
            return given

    model = text("LlamaConfig")
    for block, gate in zip(
        model.model.layers, (nn.functional.silu, sums_to_one, nn.functional.silu), strict=True
    ):
        block.mlp = Gated(gate)
    refused = [r.place for r in understood_text(model).refused]
    assert refused == ["language.00.block", "language.01.mlp"]


def sums_to_one(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


@torch.no_grad()
def test_units_that_are_all_zero_do_not_make_a_site_idle() -> None:
    """Padding of a portable export may be all that the first half silences."""
    for padded in (0, 1):
        model = text("LlamaConfig")
        for block in model.model.layers[:2]:
            block.self_attn.o_proj.weight[:, 32 * padded : 32 * padded + 32] = 0
        sites = [site.id for site in understood_text(model).anatomy.sites]
        assert {f"language.{layer:02d}.attn" for layer in range(3)} <= set(sites)
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    idle = [
        r.place for r in understood_text(model).refused if r.reason == "no influence on the answer"
    ]
    assert idle == ["language.00.attn"]


_SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("Qwen3MoeConfig", {**_SPARSE, "mlp_only_layers": [0, 2, 4]}),
        (
            "Glm4MoeConfig",
            {
                **_SPARSE, "first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1,
                "topk_group": 1,
            },
        ),
    ],
)  # fmt: skip
def test_fields_that_number_sparse_blocks_follow(
    config: str, more: dict[str, Any], tmp_path: Path
) -> None:
    loaded = understood_text(text(config, num_hidden_layers=5, **more))
    assert [block.site.layer for block in loaded.blocks] == [1, 2, 3, 4]
    keep = [0 if site.id == "language.01.block" else site.width for site in loaded.anatomy.sites]
    small = sliced(loaded, Policy.of(loaded.anatomy, keep), drawn(loaded.anatomy, 0)[1])
    _write(small, tmp_path / "small", _plan(small))
    back = read(tmp_path / "small", "small").eval()
    inputs = FAMILIES["llama"].inputs()
    torch.testing.assert_close(logits(back, inputs), logits(small.model, inputs), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
def test_what_a_block_has_of_its_own_moves_with_it(groups: int, tmp_path: Path) -> None:
    """A gemma4 says by number which blocks have another head size or other key heads."""
    family = FAMILIES["gemma4"]
    changes = {
        "hidden_size_per_layer_input": 0,
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        "attention_k_eq_v": groups == 1,
        "num_global_key_value_heads": groups,
    }
    parts = {**family.parts, "text_config": family.parts["text_config"] | changes}
    model = family._replace(parts=parts).build()
    inputs, settings = family.inputs(), model.config.to_dict()
    loaded = examined(Loaded.of(model, None, "gemma4", depth=True), inputs)
    assert [block.site.layer for block in loaded.blocks] == [1, 2, 3]
    gone = ("language.01.block", "language.02.block")
    keep = [0 if s.id in gone else max(s.width // 2, 1) for s in loaded.anatomy.sites]
    policy, order = Policy.of(loaded.anatomy, keep), drawn(loaded.anatomy, 0)[1]
    with masked(loaded, policy, order):
        expected = logits(model, inputs)
    small = sliced(loaded, policy, order)
    torch.testing.assert_close(logits(small.model, inputs), expected, **CLOSE)
    for leaving in (small, portable(small)):
        plan = _plan(leaving)
        assert leaving is small or not plan["linears"]
        _write(leaving, tmp_path / "small", plan if leaving is small else None)
        back = read(tmp_path / "small", "small").eval()
        torch.testing.assert_close(logits(back, inputs), expected, **CLOSE)
    assert model.config.to_dict() == settings


def test_a_block_whose_absence_no_field_can_say_stays() -> None:
    """Of one sparse block in two, only the last of all can go."""
    model = text("Qwen3MoeConfig", num_hidden_layers=5, decoder_sparse_step=2, **_SPARSE)
    loaded = understood_text(model)
    assert [block.site.layer for block in loaded.blocks] == [4]
    reasons = {refusal.place: refusal.reason for refusal in loaded.refused}
    assert reasons["language.02.block"].startswith("a place that the configuration gives to")


@pytest.mark.parametrize("queries", [[1, 4, 2], [4, 1, 1]])
def test_one_query_head_of_one_key_head_is_still_a_query_head(queries: list[int]) -> None:
    loaded = understood_text(text("LlamaConfig", num_key_value_heads=1))
    keep = [
        queries[site.layer] if site.kind is Kind.ATTN else site.width
        for site in loaded.anatomy.sites
    ]
    small = sliced(loaded, Policy.of(loaded.anatomy, keep), drawn(loaded.anatomy, 0)[1])
    wide = portable(small)
    assert not _plan(wide)["linears"]
    inputs = FAMILIES["llama"].inputs()
    torch.testing.assert_close(logits(wide.model, inputs), logits(small.model, inputs), **CLOSE)


def test_what_the_test_refused_stays_refused_in_a_slice() -> None:
    loaded = understood("blip-2")
    policy, order = drawn(loaded.anatomy, 0)
    small = sliced(loaded, policy, order)
    assert {r.place for r in small.refused} >= {f"vision.{layer:02d}.attn" for layer in range(3)}
    assert not any(s.tower == "vision" and s.kind is Kind.ATTN for s in small.anatomy.sites)


def test_refusals_are_renumbered_with_the_blocks() -> None:
    whole = understood("llama")
    refused = [Refusal(f"language.{layer:02d}.attn", "a reason") for layer in (1, 2)]
    loaded = replace(whole, parts=whole.parts.without(refused))
    widths = {site.id: site.width for site in loaded.anatomy.sites}
    policy = Policy.of(loaded.anatomy, widths | {"language.01.block": 0})
    small = sliced(loaded, policy, drawn(loaded.anatomy, 0)[1])
    assert [r.place for r in small.refused if r.reason == "a reason"] == ["language.01.attn"]
    assert [s.id for s in small.anatomy.sites if s.kind is Kind.ATTN] == ["language.00.attn"]


def test_a_model_that_cannot_answer_is_refused() -> None:
    loaded = understood("llava")
    with pytest.raises(ModelError, match=r"llava cannot answer a question: \w+Error: "):
        examined(loaded, {"input_ids": torch.tensor([[1, 3, 3, 7]]), **FAMILIES["llava"].pictures})


def test_the_dead_block_of_llava_is_left_out_for_free() -> None:
    loaded, inputs = understood("llava"), FAMILIES["llava"].inputs()
    dense = Policy.dense(loaded.anatomy)
    _, order = drawn(loaded.anatomy, 0)
    small = sliced(loaded, dense, order)
    assert torch.equal(logits(small.model, inputs), logits(loaded.model, inputs))
    assert small.model.config.vision_feature_layer == -1
    assert small.model.config.vision_config.num_hidden_layers == 2
    assert loaded.model.config.vision_feature_layer == -2
    gone = loaded.model.model.vision_tower.encoder.layers[2]
    saved = loaded.model.num_parameters() - small.model.num_parameters()
    assert saved == sum(weight.numel() for weight in gone.parameters())


@pytest.mark.slow
def test_every_family_leaves_and_comes_back(tmp_path: Path) -> None:
    """Write all of them in both forms; one fresh process reads them back."""
    for name, family in FAMILIES.items():
        loaded = understood(name)
        small = sliced(loaded, *drawn(loaded.anatomy, 0))
        inputs = family.inputs()
        expected = respond(small.model, inputs)
        for form in ("native", "portable"):
            leaving = portable(small) if form == "portable" else small
            plan = _plan(leaving)
            place = tmp_path / name / form
            assert bool(plan["linears"]) == (form == "native"), name
            _write(leaving, place, plan if form == "native" else None)
            save_file({k: v.contiguous() for k, v in inputs.items()}, place / "in")
            save_file(expected, place / "out")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from effllava_optuna.surgery.verify import main\n"
        "for place in sorted(Path(sys.argv[1]).glob('*/*')):\n"
        "    print(place)\n"
        "    main(str(place), str(place / 'in'), str(place / 'out'), 'cpu', 'float32')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2 * len(FAMILIES)
    for line in map(json.loads, lines):
        assert line["logit_difference"] < 1e-4
        assert line["generation_equal"]


def test_the_docs_say_what_can_be_cut(request: pytest.FixtureRequest) -> None:
    """``pytest --write-tables`` writes the table; without it, it must be the one that is there."""
    table = "\n".join(_table())
    begin, end = "<!-- families: pytest --write-tables -->\n", "\n<!-- end of families -->"
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    found, _, tail = rest.partition(end)
    if request.config.getoption("--write-tables"):
        PAGE.write_text(f"{head}{begin}{table}{end}{tail}", encoding="utf-8")
    else:
        assert found == table


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
        f"| family | {' | '.join(columns)} | without padding |",
        f"|---|{'---|' * (len(columns) + 1)}",
    ]
    for name in FAMILIES:
        loaded = understood(name)
        cells = [_cell(loaded, tower, kind) for tower, kind in columns.values()]
        plain = {(h.site.tower, h.site.kind) for h in sayable(loaded).handles}
        said = [label for label, group in columns.items() if group in plain]
        rows.append(f"| {name} | {' | '.join(cells)} | {', '.join(said)} |")
    return rows


def _cell(loaded: Loaded, tower: str, kind: Kind) -> str:
    sites = [site for site in loaded.anatomy.sites if (site.tower, site.kind) == (tower, kind)]
    end = f".{kind}"
    refused = [r for r in loaded.refused if r.place.startswith(tower) and r.place.endswith(end)]
    if not sites:
        return "no" if refused else ""
    return f"{len(sites)} of {len(sites) + len(refused)}" if refused else "yes"
