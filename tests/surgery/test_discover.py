"""What is found by looking at structure, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import Loaded, Rows, discover, projector
from tests.surgery.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch


class Attention(nn.Module):
    """The attention of a block, with 4 query heads of size 2 in two groups."""

    head_dim = 2

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in ({"q_proj": 8, "k_proj": 4, "v_proj": 4} | sizes).items():
            setattr(self, name, nn.Linear(6, size))
        self.o_proj = nn.Linear(8, 6)


class Mlp(nn.Module):
    def __init__(self, gate: int = 5, up: int = 5) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, gate), nn.Linear(6, up)
        self.down_proj = nn.Linear(5, 6)


class Decoder(nn.Module):
    def __init__(self, *blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*block) for block in blocks)


class Vlm(nn.Module):
    """The outline of a vision-language model: something before a decoder."""

    def __init__(self, decoder: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        for name, part in (parts or {"connector": nn.Linear(3, 6)}).items():
            setattr(self, name, part)

    def get_decoder(self) -> nn.Module:
        return self.decoder


def test_sites_come_in_forward_order_with_the_sizes_of_the_weights(tiny: Loaded) -> None:
    ids = [f"language.{layer:02d}.{kind}" for layer in range(3) for kind in ("attn", "mlp")]
    assert [site.id for site in tiny.anatomy.sites] == ids
    assert [site.width for site in tiny.anatomy.sites] == [3, 24] * 3
    # Of a group: two query heads and one key and one value head of 8, and their columns of o.
    assert tiny.anatomy.sites[0].unit_params == (2 + 1 + 1) * 8 * 36 + 2 * 8 * 36
    assert tiny.anatomy.sites[1].unit_params == 3 * 36
    assert tiny.anatomy.kinds == (Kind.ATTN, Kind.MLP)


def test_the_parameters_of_all_units_are_those_of_the_blocks(
    make_llava: Callable[..., Loaded],
) -> None:
    loaded = make_llava(attention_bias=True, mlp_bias=True)
    blocks = [
        weight.numel()
        for handle in loaded.handles
        for name, weight in handle.module.named_parameters()
        # The bias of the output belongs to no unit.
        if name not in ("o_proj.bias", "down_proj.bias")
    ]
    assert loaded.anatomy.parameters == sum(blocks)


@pytest.mark.parametrize(
    ("config", "text", "width", "columns"),
    [
        ("LlamaConfig", {"num_key_value_heads": 6}, 6, 8),
        ("Qwen2Config", {"head_dim": 6}, 3, 12),
        ("Qwen3Config", {}, 3, 16),
        ("Gemma3TextConfig", {}, 3, 16),
    ],
)
def test_groups_are_read_off_the_shapes(
    make_llava: Callable[..., Loaded], config: str, text: dict[str, int], width: int, columns: int
) -> None:
    loaded = make_llava(config, **text)
    for handle in loaded.handles[::2]:
        assert (handle.site.width, handle.columns) == (width, columns)
        assert handle.linear("o_proj").in_features == width * columns
        assert handle.linear("q_proj").out_features == width * handle.inputs["q_proj"].each
        assert handle.linear("k_proj").out_features == width * handle.inputs["k_proj"].each


def test_the_projector_is_what_lies_between_tower_and_decoder(tiny: Loaded) -> None:
    assert projector(tiny.model) is tiny.model.model.multi_modal_projector


def test_a_model_is_frozen_and_in_evaluation_mode(tiny: Loaded) -> None:
    assert not tiny.model.training
    assert not any(weight.requires_grad for weight in tiny.model.parameters())


def test_where_all_query_heads_share_one_key_head_they_are_the_units(
    make_llava: Callable[..., Loaded],
) -> None:
    handle = make_llava(num_key_value_heads=1).handles[0]
    assert (handle.site.width, handle.columns) == (6, 8)
    assert handle.inputs == {"q_proj": Rows((8,))}
    assert handle.counts["num_key_value_groups"] == 1


def test_a_model_without_a_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no language decoder\. .* LLaVA check"):
        Loaded.of(nn.Linear(2, 2), None, "no model")


def test_a_text_decoder_has_no_tower() -> None:
    loaded = Loaded.of(FAMILIES["llama"].build(), None, "text only")
    assert {site.tower for site in loaded.anatomy.sites} == {"language"}
    with pytest.raises(ModelError, match=r"text only has nothing to cut in tower 'vision'\."):
        Loaded.of(FAMILIES["llama"].build(), None, "text only", towers=["vision"])


@pytest.mark.parametrize(
    ("config", "text", "reason"),
    [
        ("MixtralConfig", {"num_local_experts": 2}, "mlp: no MLP that is understood"),
        (
            "Qwen2MoeConfig",
            {
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 8,
                "shared_expert_intermediate_size": 8,
                "head_dim": 6,
            },
            "mlp: experts that could be its MLP",
        ),
        ("Olmo2Config", {"head_dim": 6}, "attn: a norm over all heads (Olmo2Attention)"),
    ],
)
def test_what_is_not_understood_of_a_decoder_is_left_as_it_is(
    make_llava: Callable[..., Loaded], config: str, text: dict[str, Any], reason: str
) -> None:
    loaded = make_llava(config, **text)
    kind = reason.partition(":")[0]
    assert [f"{r.place}: {r.reason}" for r in loaded.refused] == [
        f"language.{layer:02d}.{reason}" for layer in range(3)
    ]
    assert {site.kind for site in loaded.anatomy.sites} == {*Kind} - {Kind.BLOCK, Kind(kind)}


@pytest.mark.parametrize(
    ("config", "text", "rows"),
    [
        ("Phi3Config", {"head_dim": 6}, {"qkv_proj": (12, 6, 6), "gate_up_proj": (1, 1)}),
        (
            "Qwen3NextConfig",
            {"num_experts": 0, "layer_types": ["full_attention"] * 3},
            {"q_proj": (32,), "k_proj": (8,), "gate_proj": (1,)},
        ),
    ],
)
def test_fused_matrices_and_gates_are_read_off_the_shapes(
    make_llava: Callable[..., Loaded], config: str, text: dict[str, Any], rows: dict[str, Any]
) -> None:
    attention, mlp = (handle.inputs for handle in make_llava(config, **text).handles[:2])
    found = {**attention, **mlp}
    assert {name: found[name].parts for name in rows} == rows


def broken(**changes: Any) -> nn.Module:
    attention = Attention()
    for name, value in changes.items():
        setattr(attention, name, value)
    return attention


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ([Attention()], "no MLP that is understood"),
        ([Attention(), Mlp(), Mlp()], "2 modules that could be its MLP"),
        ([Attention(), Mlp(gate=11)], "inputs of another width than 5 (Mlp)"),
        ([Attention(), Mlp(gate=10)], "inputs of another width than 5 (Mlp)"),
        ([Attention(k_proj=6, v_proj=6), Mlp()], "4 query heads for 3 key/value heads"),
        ([Attention(v_proj=8), Mlp()], "queries or keys of another size than what is read"),
        ([broken(sinks=nn.Parameter(torch.zeros(4))), Mlp()], "weights of its own"),
        ([broken(k_norm=nn.LayerNorm(8)), Mlp()], "a norm over all heads"),
        ([broken(head_dim=None), Mlp()], "no head_dim"),
        ([broken(k_proj=None, v_proj=None), Mlp()], "keys and values of another block"),
    ],
)
def test_what_cannot_lose_units_exactly_is_refused(block: list[nn.Module], reason: str) -> None:
    found = discover(Vlm(Decoder(block)))
    assert len(found.handles) == 1
    (refusal,) = (refusal for refusal in found.refused if "block" not in refusal.place)
    assert refusal.reason.startswith(reason)


def test_weights_of_two_places_are_refused() -> None:
    """Each place would permute them into an order of its own."""
    mlp, tied = Mlp(), Mlp()
    tied.down_proj.weight = mlp.down_proj.weight
    for second in (mlp, tied):
        found = discover(Vlm(Decoder([Attention(), mlp], [Attention(), second])))
        refused = [r.place for r in found.refused if r.reason.startswith("weights that another")]
        assert refused == ["language.00.mlp", "language.01.mlp"]


def test_a_matrix_that_is_computed_is_refused() -> None:
    mlp = Mlp()
    weight_norm(mlp.up_proj)  # its parameter is not called weight any more
    found = discover(Vlm(Decoder([Attention(), mlp])))
    assert [handle.site.id for handle in found.handles] == ["language.00.attn"]
    assert "language.00.mlp" in [refusal.place for refusal in found.refused]


def test_a_decoder_of_which_nothing_can_be_cut_is_refused() -> None:
    message = r"Decoder has nothing that can be cut: language\.00\.attn has weights of its own"
    with pytest.raises(ModelError, match=message):
        discover(Vlm(Decoder([broken(sinks=nn.Parameter(torch.zeros(4)))])))


def test_norms_within_a_head_and_norms_that_do_nothing_are_fine() -> None:
    block = [broken(q_norm=nn.LayerNorm(2), k_norm=nn.Identity()), Mlp()]
    first, second = discover(Vlm(Decoder(block))).handles
    assert (first.site.width, first.columns, second.site.width) == (2, 4, 5)


def test_one_block_of_another_kind_is_named() -> None:
    whole: list[nn.Module] = [Attention(), Mlp()]
    found = discover(Vlm(Decoder(whole, [Mlp()])))
    assert [handle.site.id for handle in found.handles][2:] == ["language.01.mlp"]
    assert [refusal.place for refusal in found.refused if "attn" in refusal.place] == [
        "language.01.attn"
    ]


def test_head_counts_follow_the_width_only_where_they_are_counts() -> None:
    attention = broken(num_heads=4, num_key_value_heads=2, num_attention_heads=7, embed_dim=8)
    handle = discover(Vlm(Decoder([attention, Mlp()]))).handles[0]
    assert handle.counts == {"num_heads": 2, "num_key_value_heads": 1, "embed_dim": 4}


def test_without_a_part_between_tower_and_decoder_there_is_no_projector() -> None:
    tower = nn.Sequential(nn.ModuleList([nn.Linear(3, 3)]))
    model = Vlm(Decoder([Attention(), Mlp()]), tower=tower)
    with pytest.raises(ModelError, match=r"Vlm has no part that could be its projector\. Set"):
        projector(model)


def test_mlps_inside_a_tower_can_be_the_projector() -> None:
    model = FAMILIES["qwen3_vl"].build()
    merger, *deeper = projector(model).children()
    assert merger is model.model.visual.merger
    assert deeper == [*model.model.visual.deepstack_merger_list]


def test_a_child_that_is_no_linear_layer_is_named(tiny: Loaded) -> None:
    with pytest.raises(ModelError, match=r"language\.00\.mlp: act_fn is a \w+, not a Linear"):
        tiny.handles[1].linear("act_fn")


def test_a_model_that_is_not_in_memory_is_refused(make_llava: Callable[..., Loaded]) -> None:
    model = make_llava().model.to("meta")
    with pytest.raises(
        ModelError, match=r"mine: .* is offloaded \(meta device or disk\)\. Load the whole"
    ):
        Loaded.of(model, SimpleNamespace(), "mine")


def test_the_tiny_model_tells_inputs_apart(tiny: Loaded, batch: Batch) -> None:
    """Without this, no comparison of logits in these tests would mean anything."""
    with torch.no_grad():
        logits = tiny.model(**batch.inputs).logits[:, -1]
        dark = dict(batch.inputs) | {
            "pixel_values": torch.zeros_like(batch.inputs["pixel_values"])
        }
        blind = tiny.model(**dark).logits[:, -1]
    assert logits.std() > 0.3
    assert logits.std(0).mean() > 0.1
    assert (logits - blind).abs().max() > 0.1
