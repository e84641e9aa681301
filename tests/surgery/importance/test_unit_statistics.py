"""Unit statistics, compared with references that go sample by sample and token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import (
    CalibrationBatch,
    LoadedModel,
    Moments,
    WeightedSums,
    collect_statistics,
    load,
)
from effllava_optuna.tasks import Digits, GradingRule, Split, encode_with_answers
from tests.surgery.twins import ReferenceObservation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import Array


def weights_of(observation: ReferenceObservation, tokens: str) -> Array:
    """Compute the token weights from their definition; their mean is 1."""
    if tokens == "gradient":
        g2 = (observation.margin**2).sum(1)
        weights: Array = 0.9 * g2 / g2.mean() + 0.1
    else:
        counts = observation.text if tokens == "text" else np.ones(len(observation.x))
        weights = counts / counts.mean()
    return weights


@pytest.mark.parametrize("tokens", ["gradient", "all", "text"])
def test_moments_are_means_over_single_tokens(
    tiny: LoadedModel, batch: Batch, twin: dict[ComponentId, ReferenceObservation], tokens: str
) -> None:
    handles = [tiny.handles[0], tiny.handles[3]]
    samples = CalibrationBatch(batch.inputs, batch.targets)
    full = collect_statistics(tiny, handles, [samples], tokens=tokens)
    diagonal = collect_statistics(tiny, handles, [samples], tokens=tokens, full=False)
    assert [*full] == [handle.component.id for handle in handles]
    for handle in handles:
        component = handle.component.id
        x = twin[component].x
        weights = weights_of(twin[component], tokens)
        matrix = (x * weights[:, None]).T @ x / len(x)
        mean = (x * weights[:, None]).mean(0)
        close = {"rtol": 1e-3, "atol": 1e-4 * matrix.max()}
        whole = full[component].moments
        np.testing.assert_allclose(whole.matrix, matrix, **close)
        np.testing.assert_allclose(whole.mean, mean, rtol=1e-3, atol=1e-4 * abs(mean).max())
        for moments in (whole, diagonal[component].moments):
            np.testing.assert_allclose(moments.mean_squares, matrix.diagonal(), **close)
            assert moments.effective_tokens == pytest.approx(
                weights.sum() ** 2 / (weights**2).sum(), rel=1e-3
            )
        assert whole.effective_tokens <= len(x) == int(batch.inputs["attention_mask"].sum())
    assert (tokens == "all") == all(
        statistics.moments.effective_tokens > len(twin[component].x) - 1e-6
        for component, statistics in full.items()
    )


@pytest.mark.parametrize("tokens", ["gradient", "text"])
def test_statistics_of_parts_add_up_to_those_of_the_whole(
    tiny: LoadedModel, batch: Batch, singles: list[Batch], tokens: str
) -> None:
    handle = tiny.handles[1]
    component = handle.component.id
    single_samples = [CalibrationBatch(single.inputs, single.targets) for single in singles]
    whole = collect_statistics(
        tiny, [handle], [CalibrationBatch(batch.inputs, batch.targets)], tokens=tokens
    )[component]
    parts = [
        collect_statistics(tiny, [handle], [sample], tokens=tokens)[component]
        for sample in single_samples
    ]
    for added in (
        sum(parts[1:], start=parts[0]),
        collect_statistics(tiny, [handle], single_samples, tokens=tokens)[component],
    ):
        assert added.moments.effective_tokens == pytest.approx(
            whole.moments.effective_tokens, rel=1e-3
        )
        torch.testing.assert_close(added.effect, whole.effect, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            added.moments.matrix, whole.moments.matrix, rtol=1e-3, atol=1e-4
        )


def test_tokens_without_any_gradient_have_equal_weights() -> None:
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniform = WeightedSums.of(x, torch.ones(10, dtype=torch.float64), full=True)
    no_gradient = WeightedSums.of(x, torch.zeros(10, dtype=torch.float64), full=True)
    moments = Moments(no_gradient, uniform)
    torch.testing.assert_close(moments.matrix, x.T @ x / 10)
    assert moments.effective_tokens == pytest.approx(10)


def test_a_component_that_the_answer_does_not_depend_on_has_no_effect(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    loaded = make_llava()
    for handle in loaded.handles[2:]:
        handle.linear(handle.output).weight.zero_()
    loaded.handles[1].linear("up_proj").weight.zero_()
    samples = CalibrationBatch(batch.inputs, batch.targets)
    statistics = collect_statistics(loaded, loaded.handles, [samples])
    assert [bool(statistics[handle.component.id].effect.any()) for handle in loaded.handles] == [
        True,
        *[False] * 5,
    ]


OPEN = [
    replace(sample, targets=(text,), answer=None, rule=GradingRule("any", lambda *_: 0.0))
    for sample, text in zip(
        Digits(proxy=8).samples(Split.PROXY),
        ("7", "top left", "the sum of the digits"),
        strict=False,
    )
]


@pytest.mark.parametrize("goal", ["margin", "loss"])
def test_the_goal_of_an_open_question_is_summed_over_the_tokens_of_its_answer(
    tiny: LoadedModel, goal: str
) -> None:
    handle = tiny.handles[1]
    expected = torch.zeros(handle.component.width, dtype=torch.float64)
    for sample in OPEN:
        (alone,) = encode_with_answers(tiny.processor, [sample])
        assert alone.answers is not None
        captured: list[torch.Tensor] = []

        def capture(_: object, inputs: tuple[torch.Tensor], into: list[torch.Tensor]) -> None:
            into.append(inputs[0].requires_grad_())

        hook = handle.linear(handle.output).register_forward_pre_hook(
            lambda module, inputs, into=captured: capture(module, inputs, into)
        )
        with torch.enable_grad():
            logits = tiny.model(**alone.inputs).logits[0]
            total = torch.zeros(())
            for position, token in enumerate(alone.answers[0].tolist()):
                row = logits[len(logits) - alone.positions + position]
                first, second = row.topk(2).values
                total = total + (
                    first - second if goal == "margin" else -row.log_softmax(-1)[token]
                )
            (gradient,) = torch.autograd.grad(total, captured)
        hook.remove()
        change = (captured[0] * gradient).detach().double().sum(1)[0]
        expected += change.reshape(handle.component.width, -1).sum(1).pow(2)
    (batch,) = encode_with_answers(tiny.processor, OPEN)
    samples = CalibrationBatch(batch.inputs, batch.targets, batch.answers)
    statistics = collect_statistics(tiny, [handle], [samples], goal=goal)[handle.component.id]
    torch.testing.assert_close(statistics.effect, expected, rtol=1e-3, atol=1e-6)


def test_samples_without_pictures_do_not_count_in_a_vision_tower(checkpoint: Path) -> None:
    both = load(checkpoint, device="cpu", towers=("vision", "language"))
    parts = encode_with_answers(both.processor, [OPEN[0], replace(OPEN[1], image=None)])
    with_picture, without_picture = (
        CalibrationBatch(part.inputs, part.targets, part.answers) for part in parts
    )
    together = collect_statistics(both, both.handles, [with_picture, without_picture])
    alone = collect_statistics(both, both.handles, [with_picture])
    for handle in both.handles:
        component = handle.component
        same = torch.equal(together[component.id].effect, alone[component.id].effect)
        assert same == (component.tower == "vision")
    with pytest.raises(ModelError, match=r"vision\.00\.attn is not run by the calibration"):
        collect_statistics(both, both.handles, [without_picture])


def test_an_unknown_token_weight_or_goal_and_missing_answers_are_refused(
    tiny: LoadedModel, batch: Batch
) -> None:
    samples = CalibrationBatch(batch.inputs, batch.targets)
    with pytest.raises(
        ModelError, match=r"'some' is not a token weight\. Use gradient, all, text"
    ):
        collect_statistics(tiny, tiny.handles, [samples], tokens="some")
    with pytest.raises(ModelError, match=r"'gain' is not a goal\. Use margin or loss"):
        collect_statistics(
            tiny, tiny.handles, [replace(samples, answers=batch.answers)], goal="gain"
        )
    with pytest.raises(
        ModelError, match=r"'loss' needs the right answers .* Use CalibrationBatch"
    ):
        collect_statistics(tiny, tiny.handles, [samples], goal="loss")


def test_a_component_that_never_runs_is_refused(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    loaded = make_llava()
    idle = loaded.handles[3]
    idle.module.forward = lambda x: x
    with pytest.raises(ModelError, match=r"language\.01\.mlp is not run by the calibration"):
        collect_statistics(loaded, loaded.handles, [CalibrationBatch(batch.inputs, batch.targets)])


def test_collecting_statistics_leaves_the_model_unchanged(tiny: LoadedModel, batch: Batch) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    collect_statistics(
        tiny,
        tiny.handles,
        [CalibrationBatch(batch.inputs, batch.targets, batch.answers)],
        goal="loss",
    )
    assert all(torch.equal(w, before[n]) for n, w in tiny.model.state_dict().items())
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


def test_inputs_that_are_not_finite_are_refused(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    broken = make_llava()
    broken.handles[2].linear("v_proj").weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"language\.01\.attn computes NaN or infinity"):
        collect_statistics(broken, broken.handles, [CalibrationBatch(batch.inputs, batch.targets)])
    assert not any(module._forward_pre_hooks for module in broken.model.modules())
