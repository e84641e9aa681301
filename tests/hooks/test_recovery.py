"""Recovery learns from the dense model's answers, and from nothing that is reported on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import LeakError, ModelError, TaskError
from effllava_optuna.hooks import Adaptation, Distillation, Lora, Projector, recover, recovery
from effllava_optuna.surgery import projector
from effllava_optuna.surgery.discover import language_model
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.surgery import Loaded
    from effllava_optuna.tasks import Batch, Sample

PARTS = [Projector(), Lora(rank=4)]
QUICK = Distillation(steps=8, every=4, batch_size=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return Digits(proxy=40).samples(Split.PROXY)


@pytest.fixture
def pruned(tiny: Loaded) -> Loaded:
    return sliced(tiny, Policy.uniform(tiny.anatomy, keep=0.7), rank_units(tiny))


def weights_of(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in loaded.model.state_dict().items()}


def changed(before: Mapping[str, torch.Tensor], loaded: Loaded) -> set[int]:
    """Give the parameters that are no longer what they were."""
    assert loaded.model.state_dict().keys() == before.keys()
    return {
        weight.data_ptr()
        for name, weight in loaded.model.state_dict().items()
        if not torch.equal(weight, before[name])
    }


def test_the_projector_alone_learns(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...]
) -> None:
    before, dense = weights_of(pruned), weights_of(tiny)
    done = recover(pruned, tiny, samples, Projector(), QUICK)
    assert done.steps > 0
    assert done.after < done.before
    allowed = {weight.data_ptr() for weight in projector(pruned.model).parameters()}
    assert changed(before, pruned) == allowed
    assert not changed(dense, tiny)
    assert done.weights == sum(w.numel() for w in projector(pruned.model).parameters())


def test_adapters_are_merged_into_the_linear_layers_of_the_decoder(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...], batch: Batch
) -> None:
    before = weights_of(pruned)
    done = recover(pruned, tiny, samples, Lora(rank=4), QUICK)
    assert done.after < 0.95 * done.before
    assert done.after == pytest.approx(min(loss for _, loss in done.looks), rel=1e-4)
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


@pytest.mark.parametrize("part", PARTS)
def test_the_same_samples_teach_the_same(
    tiny: Loaded, samples: tuple[Sample, ...], part: Adaptation
) -> None:
    found = []
    for seed in (0, 0, 1):
        policy = Policy.uniform(tiny.anatomy, keep=0.5)
        small = sliced(tiny, policy, rank_units(tiny))
        found.append(recover(small, tiny, samples, part, replace(QUICK, steps=4, seed=seed)))
    assert found[0].looks == found[1].looks
    assert found[0].looks != found[2].looks


@pytest.mark.parametrize("part", PARTS)
def test_what_does_not_generalise_is_not_kept(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...], part: Adaptation
) -> None:
    before = weights_of(pruned)
    wild = Distillation(steps=60, every=2, patience=3, batch_size=16, learning_rate=30.0)
    done = recover(pruned, tiny, samples, part, wild)
    assert (done.steps, [steps for steps, _ in done.looks]) == (0, [0, 2, 4, 6])
    assert done.after == done.before
    assert not changed(before, pruned)


@pytest.mark.parametrize("part", PARTS)
def test_an_interruption_leaves_the_model_as_it_was(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...], part: Adaptation
) -> None:
    before = weights_of(pruned)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(pruned, tiny, samples, part, QUICK, stop)
    assert not changed(before, pruned)
    assert not any(weight.requires_grad for weight in pruned.model.parameters())


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_nothing_is_learned_from_what_is_reported_on(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...], split: Split
) -> None:
    other = Digits().samples(split)[0]
    with pytest.raises(LeakError, match=f"Recovery was given {split} sample '{split}-0000'"):
        recover(pruned, tiny, (*samples, other))


def test_one_unit_cannot_teach_and_examine(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...]
) -> None:
    alone = [replace(sample, unit="one") for sample in samples]
    with pytest.raises(TaskError, match=r"was given 40 samples of 1 units\. Give it two units"):
        recover(pruned, tiny, alone)


def test_a_model_of_other_tokens_is_no_teacher(
    pruned: Loaded, make_llava: Callable[..., Loaded], samples: tuple[Sample, ...]
) -> None:
    teacher = make_llava(vocab_size=64)
    with pytest.raises(ModelError, match=r"answers in 64 tokens, .* Learn from the model that"):
        recover(pruned, teacher, samples)


def test_a_missing_peft_is_named_with_its_extra(
    pruned: Loaded, tiny: Loaded, samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"'effllava-optuna\[recover\]'"):
        recover(pruned, tiny, samples, Lora())


def test_half_precision_recovers_through_adapters_in_single(
    tiny: Loaded, samples: tuple[Sample, ...]
) -> None:
    policy = Policy.uniform(tiny.anatomy, keep=0.7)
    small = sliced(tiny, policy, rank_units(tiny))
    small.model.to(torch.bfloat16)
    done = recover(small, tiny, samples, Lora(rank=4), QUICK)
    assert done.after < done.before
    assert {weight.dtype for weight in small.model.parameters()} == {torch.bfloat16}
