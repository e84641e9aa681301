"""Recovery distils the dense model, and never uses validation or test samples."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import LeakError, ModelError, TaskError
from effllava_optuna.surgery import LoadedModel, projector, reduced_tokens
from effllava_optuna.surgery.structure.inspection import language_model
from effllava_optuna.tasks import Digits, Split
from effllava_optuna.training import (
    Adaptation,
    DistillationOptions,
    JointAdaptation,
    LoraAdaptation,
    ProjectorAdaptation,
    adaptation,
    distil,
    distillation_set,
    recover,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.tasks import Batch, Sample

ADAPTATIONS = [
    ProjectorAdaptation(),
    LoraAdaptation(rank=4),
    JointAdaptation(LoraAdaptation(rank=4)),
]
QUICK = DistillationOptions(steps=8, every=4, batch_size=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return Digits(proxy=40).samples(Split.PROXY)


@pytest.fixture
def pruned(tiny: LoadedModel) -> LoadedModel:
    return sliced(tiny, Policy.uniform(tiny.structure, ratio=0.7), rank_units(tiny))


def test_a_model_with_fewer_image_tokens_is_recovered_with_the_whole_one(
    tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    with reduced_tokens(tiny, 0.25) as reduced:
        small = sliced(reduced, Policy.dense(tiny.structure), rank_units(tiny))
    before = weights_of(small)
    result = recover(small, tiny, samples, ProjectorAdaptation(), QUICK)
    assert result.before > 0.001  # the dense model has read all tokens
    assert 0 < result.after < result.before
    assert changed(before, small)


def weights_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in loaded.model.state_dict().items()}


def changed(before: Mapping[str, torch.Tensor], loaded: LoadedModel) -> set[int]:
    """Return the addresses of the parameters that have changed."""
    assert loaded.model.state_dict().keys() == before.keys()
    return {
        weight.data_ptr()
        for name, weight in loaded.model.state_dict().items()
        if not torch.equal(weight, before[name])
    }


def test_the_projector_alone_is_trained(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    before, dense = weights_of(pruned), weights_of(tiny)
    done = recover(pruned, tiny, samples, ProjectorAdaptation(), QUICK)
    assert done.steps > 0
    assert done.after < done.before
    allowed = {weight.data_ptr() for weight in projector(pruned.model).parameters()}
    assert changed(before, pruned) == allowed
    assert not changed(dense, tiny)
    assert done.weights == sum(w.numel() for w in projector(pruned.model).parameters())


def test_adapters_are_merged_into_the_linear_layers_of_the_decoder(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...], batch: Batch
) -> None:
    before = weights_of(pruned)
    done = recover(pruned, tiny, samples, LoraAdaptation(rank=4), QUICK)
    assert done.after < 0.95 * done.before
    assert done.after == pytest.approx(min(loss for _, loss in done.held_out), rel=1e-4)
    linears = [
        module
        for module in language_model(pruned.model).modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert changed(before, pruned) == {module.weight.data_ptr() for module in linears}
    assert done.weights == 4 * sum(m.in_features + m.out_features for m in linears)
    assert not any(weight.requires_grad for weight in pruned.model.parameters())
    assert all(handle.linear(handle.output).weight.grad is None for handle in pruned.handles)
    with torch.no_grad():
        assert pruned.model(**batch.inputs).logits.isfinite().all()


def test_both_train_the_projector_and_the_decoder(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    before = weights_of(pruned)
    done = recover(pruned, tiny, samples, JointAdaptation(LoraAdaptation(rank=4)), QUICK)
    assert done.after < 0.95 * done.before
    linears = [
        module.weight
        for module in language_model(pruned.model).modules()
        if isinstance(module, torch.nn.Linear)
    ]
    trained = [*linears, *projector(pruned.model).parameters()]
    assert changed(before, pruned) == {weight.data_ptr() for weight in trained}
    assert not any(weight.requires_grad for weight in pruned.model.parameters())


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_the_same_samples_and_seed_give_the_same_result(
    tiny: LoadedModel, samples: tuple[Sample, ...], adaptation: Adaptation
) -> None:
    results = []
    for seed in (0, 0, 1):
        policy = Policy.uniform(tiny.structure, ratio=0.5)
        small = sliced(tiny, policy, rank_units(tiny))
        results.append(
            recover(small, tiny, samples, adaptation, replace(QUICK, steps=4, seed=seed))
        )
    assert results[0].held_out == results[1].held_out
    assert results[0].held_out != results[2].held_out


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_weights_that_do_not_generalise_are_not_kept(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...], adaptation: Adaptation
) -> None:
    before = weights_of(pruned)
    wild = DistillationOptions(steps=60, every=2, patience=3, batch_size=16, learning_rate=30.0)
    done = recover(pruned, tiny, samples, adaptation, wild)
    assert (done.steps, [steps for steps, _ in done.held_out]) == (0, [0, 2, 4, 6])
    assert done.after == done.before
    assert not changed(before, pruned)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_an_interruption_leaves_the_model_unchanged(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...], adaptation: Adaptation
) -> None:
    before = weights_of(pruned)

    def stop(finished: float) -> None:
        if finished > 0.5:  # the steps have begun
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(pruned, tiny, samples, adaptation, QUICK, stop)
    assert not changed(before, pruned)
    assert not any(weight.requires_grad for weight in pruned.model.parameters())


def test_the_progress_includes_the_answers_of_the_dense_model(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    finished: list[float] = []
    recover(pruned, tiny, samples, ProjectorAdaptation(), QUICK, finished.append)
    share = len(samples) / (len(samples) + 3 * QUICK.steps * QUICK.batch_size)
    batches = [fraction for fraction in finished if fraction <= share]
    assert len(batches) == 3  # two of training samples, one of held-out ones
    assert batches[-1] == pytest.approx(share)
    assert finished == sorted(finished)
    assert finished[-1] == 1.0


def test_one_set_of_answers_recovers_several_copies(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    answered = distillation_set(pruned, tiny, samples, QUICK.batch_size, QUICK.seed)
    copy = sliced(tiny, Policy.uniform(tiny.structure, ratio=0.7), rank_units(tiny))
    assert weights_of(copy).keys() == weights_of(pruned).keys()
    for each in (pruned, copy):
        distil(each, answered, LoraAdaptation(rank=4), QUICK)
    alone = sliced(tiny, Policy.uniform(tiny.structure, ratio=0.7), rank_units(tiny))
    result = recover(alone, tiny, samples, LoraAdaptation(rank=4), QUICK)
    assert result.after < result.before
    for name, weight in weights_of(alone).items():
        assert torch.equal(weight, weights_of(pruned)[name])
        assert torch.equal(weight, weights_of(copy)[name])


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_validation_and_test_samples_are_refused(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...], split: Split
) -> None:
    other = Digits().samples(split)[0]
    with pytest.raises(LeakError, match=f"Recovery was given {split} sample '{split}-0000'"):
        recover(pruned, tiny, (*samples, other))


def test_one_group_cannot_be_split(
    pruned: LoadedModel, tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    alone = [replace(sample, group="one") for sample in samples]
    with pytest.raises(TaskError, match=r"was given 40 samples of 1 groups\. Use samples of at"):
        recover(pruned, tiny, alone)


def test_a_dense_model_with_another_vocabulary_is_refused(
    pruned: LoadedModel, make_llava: Callable[..., LoadedModel], samples: tuple[Sample, ...]
) -> None:
    other = make_llava(vocab_size=64)
    with pytest.raises(ModelError, match=r"vocabulary of 64 tokens, .* Use the dense model that"):
        recover(pruned, other, samples)


def test_a_missing_peft_is_named_with_its_extra(
    pruned: LoadedModel,
    tiny: LoadedModel,
    samples: tuple[Sample, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adaptation, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"'effllava-optuna\[recover\]'"):
        recover(pruned, tiny, samples, LoraAdaptation())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_recovers_through_adapters_in_single(
    tiny: LoadedModel, samples: tuple[Sample, ...], dtype: torch.dtype
) -> None:
    policy = Policy.uniform(tiny.structure, ratio=0.7)
    small = sliced(tiny, policy, rank_units(tiny))
    small.model.to(dtype)
    done = recover(small, tiny, samples, LoraAdaptation(rank=4), QUICK)
    assert done.after < done.before
    assert {weight.dtype for weight in small.model.parameters()} == {dtype}


@pytest.mark.parametrize("adaptation", [ProjectorAdaptation(), JointAdaptation()])
def test_a_language_model_has_no_projector_to_train(adaptation: Adaptation) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    loaded = LoadedModel.of(LlamaForCausalLM(config), None, "text")
    before = weights_of(loaded)
    with (
        pytest.raises(ModelError, match=r"no module that could be its projector.*--part lora"),
        adaptation.trainable_weights(loaded, 0),
    ):
        pass
    assert not changed(before, loaded)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_step_in_parts_is_the_same_step(
    pruned: LoadedModel,
    tiny: LoadedModel,
    samples: tuple[Sample, ...],
    adaptation: Adaptation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the memory of a backward pass, the gradients of the parts add up."""
    other = sliced(tiny, Policy.uniform(tiny.structure, ratio=0.7), rank_units(tiny))
    whole = distillation_set(pruned, tiny, samples, QUICK.batch_size, QUICK.seed)
    module = importlib.import_module("effllava_optuna.training.distillation_set")
    monkeypatch.setattr(module, "samples_per_backward", lambda *_: 5)
    parts = distillation_set(other, tiny, samples, QUICK.batch_size, QUICK.seed)
    assert [len(step) for step in whole.train] == [1] * len(whole.train)
    assert max(len(part.dense) for step in parts.train for part in step) == 5
    assert len(parts.train) == len(whole.train)
    assert parts.samples == whole.samples
    results = [
        distil(each, answered, adaptation, QUICK)
        for each, answered in ((pruned, whole), (other, parts))
    ]
    first, second = ([loss for _, loss in result.held_out] for result in results)
    assert second == pytest.approx(first, rel=1e-3)
