"""Models with fewer image tokens: what they compute, and what they leave unchanged."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from effllava_optuna.errors import ModelError
from effllava_optuna.objectives import encode_samples
from effllava_optuna.policy import IMAGE_TOKENS, Policy, Ranking
from effllava_optuna.surgery import (
    LoadedModel,
    TokenChoice,
    answer_logits,
    build_example_inputs,
    describe_image_tokens,
    encode_images,
    masked,
    narrowed,
    projector,
    reduced_tokens,
    sliced,
)
from effllava_optuna.surgery.apply.reduced_model import find_obstacle
from effllava_optuna.surgery.structure.generated_code import PROCESSING
from effllava_optuna.surgery.structure.native_files import complete_processor_files
from effllava_optuna.surgery.visual_tokens.token_selection import diverse_tokens, kept_tokens
from effllava_optuna.tasks import Digits, Split
from effllava_optuna.tasks.prompts import build_model_inputs
from tests.surgery.families import FAMILIES
from tests.surgery.visual_tokens.pictured_families import (
    PICTURED,
    load_pictured,
    pictured_inputs,
    random_pictures,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)


@torch.no_grad()
def last_logits(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs).logits[:, -1]
    return logits


def attributes(loaded: LoadedModel) -> dict[str, set[str]]:
    return {path: set(vars(module)) for path, module in loaded.model.named_modules()}


def test_a_ratio_of_one_changes_nothing(tiny: LoadedModel) -> None:
    with reduced_tokens(tiny, 1.0) as same:
        assert same is tiny
    text = replace(tiny, processor=tiny.processor.tokenizer)  # which has nothing to reduce
    with reduced_tokens(text, 1.0) as same:
        assert same is text


def test_everything_is_restored(tiny: LoadedModel) -> None:
    inputs = build_example_inputs(tiny.processor)
    before, processor = attributes(tiny), copy.copy(vars(tiny.processor))
    expected = last_logits(tiny.model, inputs)
    with reduced_tokens(tiny, 0.5) as reduced:
        shorter = build_example_inputs(reduced.processor)
        assert last_logits(reduced.model, shorter).shape == expected.shape
    with pytest.raises(ZeroDivisionError), reduced_tokens(tiny, 0.5):
        raise ZeroDivisionError
    assert attributes(tiny) == before
    assert vars(tiny.processor) == processor
    assert torch.equal(last_logits(tiny.model, build_example_inputs(tiny.processor)), expected)


def test_dropping_equals_masking_the_others_at_the_same_positions(tiny: LoadedModel) -> None:
    """The whole prompt, with the tokens that are dropped hidden from all others."""
    inputs = build_example_inputs(tiny.processor)
    with torch.no_grad():
        features = torch.stack(
            list(tiny.model.get_image_features(inputs["pixel_values"]).pooler_output)
        )
    kept = diverse_tokens(features, 8)
    mask = inputs["attention_mask"].clone()
    image = inputs["input_ids"] == tiny.model.config.image_token_id
    for row, index in enumerate(kept):
        places = image[row].nonzero().flatten()
        hidden = torch.ones(len(places), dtype=torch.bool)
        hidden[index] = False
        mask[row, places[hidden]] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = last_logits(
        tiny.model, inputs | {"attention_mask": mask, "position_ids": positions}
    )
    with reduced_tokens(tiny, 0.5) as reduced:
        logits = last_logits(reduced.model, build_example_inputs(reduced.processor))
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert (logits - last_logits(tiny.model, inputs)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_tokens_of_a_grid_keep_their_positions(name: str) -> None:
    """The whole prompt at its positions, with the tokens that are dropped hidden from all."""
    loaded = load_pictured(name)
    inputs = pictured_inputs(name, loaded.processor)
    owner, ids, mask = loaded.model.model, inputs["input_ids"], inputs["attention_mask"].clone()
    with torch.no_grad():
        pictures = owner.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"]
        ).pooler_output
        positions, _ = owner.get_rope_index(
            ids,
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=mask,
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )
    places = (ids == loaded.model.config.image_token_id).nonzero()
    for picture in pictures:
        hidden = torch.ones(len(picture), dtype=torch.bool)
        kept = kept_tokens(len(picture), 0.4, "diversity")
        hidden[diverse_tokens(picture[None], kept)[0]] = False
        rows, columns = places[: len(picture)][hidden].T
        mask[rows, columns] = 0
        places = places[len(picture) :]
    expected = last_logits(
        loaded.model, inputs | {"attention_mask": mask, "position_ids": positions}
    )
    loaded.model.model.rope_deltas = None
    with reduced_tokens(loaded, 0.4) as reduced:
        fewer = pictured_inputs(name, reduced.processor)
        logits = last_logits(reduced.model, fewer)
        generated = reduced.model.generate(**fewer, **GREEDY)[:, -5:]
        assert torch.equal(generated[:, 0], logits.argmax(-1))
        # Token by token without a cache: the positions of what is generated are right.
        longer = dict(fewer)
        for token in generated.T[:3]:
            ends = {"input_ids": token, "attention_mask": 1, "mm_token_type_ids": 0}
            for key, end in ends.items():
                column = torch.zeros_like(longer[key][:, :1]) + (
                    end[:, None] if isinstance(end, torch.Tensor) else end
                )
                longer[key] = torch.cat([longer[key], column], 1)
        assert torch.equal(last_logits(reduced.model, longer).argmax(-1), generated[:, 3])
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("name", PICTURED)
def test_every_family_reads_fewer_tokens(name: str) -> None:
    loaded = load_pictured(name)
    whole = pictured_inputs(name, loaded.processor)
    token = loaded.model.config.image_token_id
    dense = last_logits(loaded.model, whole)
    with reduced_tokens(loaded, 0.5) as reduced:
        assert reduced.visual_tokens is not None
        inputs = pictured_inputs(name, reduced.processor)
        counts = [int((each["input_ids"] == token).sum()) for each in (whole, inputs)]
        assert abs(counts[1] - counts[0] / 2) <= 4  # each picture of a row is rounded
        logits = last_logits(reduced.model, inputs)
        encoded = encode_images(reduced, inputs)
        assert (encoded.vision is None) == name.startswith("qwen")
        torch.testing.assert_close(answer_logits(reduced, encoded)[:, -1], logits, **CLOSE)
        tokens = reduced.model.generate(**inputs, **GREEDY)
        static = reduced.model.generate(**inputs, **GREEDY, cache_implementation="static")
        assert torch.equal(static, tokens)
        for row, question in enumerate(("what", "at left ?")):  # padding changes nothing
            alone = pictured_inputs(name, reduced.processor, questions=[question])
            torch.testing.assert_close(last_logits(reduced.model, alone)[0], logits[row], **CLOSE)
            generated = reduced.model.generate(**alone, **GREEDY)[0, -5:]
            assert torch.equal(generated, tokens[row, -5:])
        one = pictured_inputs(name, reduced.processor, pictures=1)
        assert last_logits(reduced.model, one).isfinite().all()
    assert torch.equal(last_logits(loaded.model, whole), dense)


@pytest.mark.families
@pytest.mark.parametrize("name", PICTURED)
@torch.no_grad()
def test_rows_of_a_batch_may_have_unlike_numbers_of_pictures(name: str) -> None:
    loaded, shown = load_pictured(name), random_pictures()
    token = PICTURED[name].asked or PICTURED[name].token
    rows = [[shown[1]], [shown[1], shown[0]], [shown[0]]]
    if name != "paligemma":  # whose processor refuses a prompt without a picture
        rows.insert(1, [])
    prompts = [f"{f'{token} user ' * len(pictures)}what" for pictures in rows]
    with reduced_tokens(loaded, 0.5) as reduced:
        inputs = build_model_inputs(reduced.processor, prompts, rows)
        logits = last_logits(reduced.model, inputs)
        tokens = reduced.model.generate(**inputs, **GREEDY)[:, -5:]
        for row, (prompt, pictures) in enumerate(zip(prompts, rows, strict=True)):
            alone = build_model_inputs(reduced.processor, [prompt], [pictures])
            torch.testing.assert_close(last_logits(reduced.model, alone)[0], logits[row], **CLOSE)
            generated = reduced.model.generate(**alone, **GREEDY)[0, -5:]
            assert torch.equal(generated, tokens[row])


@pytest.mark.families
@pytest.mark.parametrize("name", PICTURED)
def test_the_code_of_a_processor_inserts_as_many_tokens(name: str, tmp_path: Path) -> None:
    """The module that an export has, loaded as transformers loads it."""
    loaded = load_pictured(name)
    stock = type(loaded.processor).__name__
    with reduced_tokens(loaded, 0.5) as reduced:
        assert reduced.visual_tokens is not None
        expected = pictured_inputs(name, reduced.processor)
        (tmp_path / "processor_config.json").write_text("{}")
        complete_processor_files(stock, reduced.visual_tokens, tmp_path)
    coded = get_class_from_dynamic_module(f"{PROCESSING}.{stock}", str(tmp_path))
    assert coded is not type(reduced.processor)
    processor = object.__new__(coded)  # as `__init__` demands what videos need
    vars(processor).update(vars(loaded.processor))
    inputs = pictured_inputs(name, processor)
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[key], expected[key]) for key in inputs)


@pytest.mark.parametrize("name", PICTURED)
def test_stored_pictures_serve_networks_that_read_fewer_tokens(name: str) -> None:
    model = load_pictured(name)
    linear = name in ("paligemma", "gemma3", "idefics3", "smolvlm")  # projectors of one layer
    towers = ["language"] if linear else ["language", "projector"]
    loaded = LoadedModel.of(model.model, model.processor, name, towers=towers)
    choosing = loaded.with_token_choice(TokenChoice((50, 100)))
    with reduced_tokens(loaded, 0.5) as reduced:
        shorter = pictured_inputs(name, reduced.processor)
        expected = last_logits(reduced.model, shorter)
    whole = pictured_inputs(name, loaded.processor)
    dense = last_logits(loaded.model, whole)
    encoded = encode_images(choosing, whole, fewer={0.5: shorter})
    policy = Policy.of(choosing.structure, {IMAGE_TOKENS.id: 50})
    for restricted in (narrowed, masked):
        with restricted(choosing, policy, random_ranking(choosing)) as network:
            logits = answer_logits(network, encoded)[:, -1]
        torch.testing.assert_close(logits, expected, **CLOSE)
    torch.testing.assert_close(answer_logits(choosing, encoded)[:, -1], dense, **CLOSE)


@pytest.mark.parametrize("selection", ["pooling", "random"])
def test_other_selections(tiny: LoadedModel, selection: str) -> None:
    with reduced_tokens(tiny, 0.25, selection=selection, seed=3) as reduced:
        inputs = build_example_inputs(reduced.processor)
        logits = last_logits(reduced.model, inputs)
        encoded = encode_images(reduced, inputs)
        torch.testing.assert_close(answer_logits(reduced, encoded)[:, -1], logits, **CLOSE)
    image = inputs["input_ids"] == tiny.model.config.image_token_id
    assert image.sum(1).tolist() == [4, 4]


def test_prompts_without_pictures_stay_as_they_are(tiny: LoadedModel) -> None:
    def logits(loaded: LoadedModel) -> torch.Tensor:
        return last_logits(loaded.model, loaded.processor(text=["what"], return_tensors="pt"))

    expected = logits(tiny)
    with reduced_tokens(tiny, 0.25) as reduced:
        assert torch.equal(logits(reduced), expected)


@pytest.mark.parametrize("selection", ["diversity", "pooling", "random"])
def test_the_projector_can_be_trained_through_the_selection(
    tiny: LoadedModel, selection: str
) -> None:
    module = projector(tiny.model).requires_grad_(requires_grad=True)
    try:
        with reduced_tokens(tiny, 0.25, selection=selection) as reduced:
            encoded = encode_images(reduced, build_example_inputs(reduced.processor))
            torch.autograd.backward(answer_logits(reduced, encoded).square().sum())
        gradients = [weight.grad for weight in module.parameters()]
    finally:
        module.requires_grad_(requires_grad=False)
        module.zero_grad()
    assert all(g is not None and bool(g.abs().max() > 0) for g in gradients)


def test_a_narrowed_and_a_sliced_model_have_fewer_tokens_too(
    tiny: LoadedModel, ranking: Ranking
) -> None:
    half = Policy.uniform(tiny.structure, ratio=0.5)
    with reduced_tokens(tiny, 0.25) as reduced:
        inputs = build_example_inputs(reduced.processor)
        with narrowed(reduced, half, ranking) as small:
            expected = last_logits(small.model, inputs)
        small = sliced(reduced, half, ranking)
    torch.testing.assert_close(last_logits(small.model, inputs), expected, **CLOSE)
    assert small.visual_tokens == reduced.visual_tokens
    assert torch.equal(build_example_inputs(small.processor)["input_ids"], inputs["input_ids"])
    with pytest.raises(ModelError, match=r"already keeps 0\.25"), reduced_tokens(small, 0.5):
        pass


@pytest.fixture
def choosing(tiny: LoadedModel) -> LoadedModel:
    """The tiny model with its image tokens among the components of a policy."""
    return tiny.with_token_choice(TokenChoice((25, 50, 100)))


def random_ranking(loaded: LoadedModel) -> Ranking:
    rng = np.random.default_rng(0)
    scores = {c.id: rng.random(c.width) for c in loaded.structure.components}
    return Ranking.from_scores(loaded.structure, "random", scores)


def test_a_policy_decides_how_many_image_tokens_its_network_reads(choosing: LoadedModel) -> None:
    structure, ranking = choosing.structure, random_ranking(choosing)
    half = {c.id: max(1, c.width // 2) for c in structure.components}
    policy = Policy.of(structure, {**half, IMAGE_TOKENS.id: 25})
    with narrowed(choosing, policy, ranking) as small:
        assert small.visual_tokens is not None
        inputs = build_example_inputs(small.processor)
        expected = last_logits(small.model, inputs)
    with masked(choosing, policy, ranking) as same:
        torch.testing.assert_close(last_logits(same.model, inputs), expected, **CLOSE)
    alone = sliced(choosing, policy, ranking)
    torch.testing.assert_close(last_logits(alone.model, inputs), expected, **CLOSE)
    assert torch.equal(build_example_inputs(alone.processor)["input_ids"], inputs["input_ids"])
    assert alone.visual_tokens == small.visual_tokens
    assert alone.pruning_record is not None
    assert alone.pruning_record.kept[IMAGE_TOKENS.id] == (25, 100)
    with narrowed(choosing, policy.with_all_tokens(), ranking) as whole:
        assert whole.visual_tokens is None
    assert choosing.visual_tokens is None


def test_samples_are_encoded_for_all_numbers_of_image_tokens(choosing: LoadedModel) -> None:
    samples = Digits(proxy=6).samples(Split.PROXY)
    (encoded,) = encode_samples(choosing, samples)
    assert set(encoded.seen.fewer) == {0.25, 0.5}
    assert encoded.seen.vision is not None
    ranking = random_ranking(choosing)
    for percent, ratio in ((25, 0.25), (50, 0.5), (100, 1.0)):
        policy = Policy.of(choosing.structure, {IMAGE_TOKENS.id: percent})
        with reduced_tokens(load_again(choosing), ratio) as reduced:
            (alone,) = encode_samples(reduced, samples)
            expected = answer_logits(reduced, alone.seen)
        with narrowed(choosing, policy, ranking) as network:
            logits = answer_logits(network, encoded.seen)
            rows = encoded.rows(samples[:2])
            assert rows is not None
            some = answer_logits(network, rows.seen)
        torch.testing.assert_close(logits, expected, **CLOSE)
        torch.testing.assert_close(some, expected[:2], **CLOSE)


def load_again(loaded: LoadedModel) -> LoadedModel:
    """Return the model as one whose policies do not decide about image tokens."""
    return replace(loaded, parts=replace(loaded.parts, tokens=None))


def test_a_reduced_model_can_be_copied(tiny: LoadedModel) -> None:
    with reduced_tokens(tiny, 0.25) as reduced:
        inputs = build_example_inputs(reduced.processor)
        expected = last_logits(reduced.model, inputs)
        twin = copy.deepcopy(reduced.model)
    assert torch.equal(last_logits(twin, inputs), expected)
    with torch.no_grad():  # the copy reads its own projector
        for weight in twin.model.multi_modal_projector.parameters():
            weight.zero_()
    assert not torch.equal(last_logits(twin, inputs), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.0}, "A share of 0 of the image tokens"),
        ({"ratio": 1.5}, "A share of 1.5 of the image tokens"),
        ({"ratio": float("nan")}, "A share of nan"),
        ({"ratio": 0.5, "selection": "attention"}, "no token selection 'attention'"),
    ],
)
def test_unusable_settings_are_refused(
    tiny: LoadedModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message), reduced_tokens(tiny, **arguments):
        pass


def test_pooling_refuses_tokens_that_are_no_square_grid() -> None:
    loaded = load_pictured("llava_next")  # tiles with line breaks
    with (
        reduced_tokens(loaded, 0.5, selection="pooling") as reduced,
        pytest.raises(ModelError, match="image tokens are no square grid"),
    ):
        pictured_inputs("llava_next", reduced.processor)


def test_families_that_cannot_do_it_are_refused_with_the_reason(
    tiny: LoadedModel, make_llava: Callable[..., LoadedModel]
) -> None:
    qwen = load_pictured("qwen2_vl")
    with (
        pytest.raises(ModelError, match="an average has no place"),
        reduced_tokens(qwen, 0.5, selection="pooling"),
    ):
        pass
    assert describe_image_tokens(replace(tiny, processor=tiny.processor.tokenizer)) == (
        "cannot be reduced: it takes no pictures"
    )
    text = FAMILIES["llama"].build()
    assert find_obstacle(text, tiny.processor.tokenizer) == "it takes no pictures"
    assert "does not read pictures" in find_obstacle(text, tiny.processor)
    rows = copy.copy(tiny.processor)
    rows.image_break_token = "<row>"
    loaded = replace(make_llava(), processor=rows)
    with pytest.raises(ModelError, match="line break"), reduced_tokens(loaded, 0.5):
        pass
