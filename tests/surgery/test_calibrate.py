"""What the samples tell, against twins that go sample by sample and token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import Loaded, Moments, Probe, Sums, load, survey
from effllava_optuna.tasks import Digits, Rule, Split, encode
from tests.surgery.twins import Told

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.policy import SiteId
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import Array


def weights_of(mine: Told, tokens: str) -> Array:
    """Weigh each token by the book; the mean weight is 1."""
    if tokens == "gradient":
        g2 = (mine.margin**2).sum(1)
        weights: Array = 0.9 * g2 / g2.mean() + 0.1
    else:
        counts = mine.text if tokens == "text" else np.ones(len(mine.x))
        weights = counts / counts.mean()
    return weights


@pytest.mark.parametrize("tokens", ["gradient", "all", "text"])
def test_moments_are_means_over_single_tokens(
    tiny: Loaded, batch: Batch, twin: dict[SiteId, Told], tokens: str
) -> None:
    handles = [tiny.handles[0], tiny.handles[3]]
    probe = Probe(batch.inputs, batch.targets)
    full = survey(tiny, handles, [probe], tokens=tokens)
    slim = survey(tiny, handles, [probe], tokens=tokens, full=False)
    assert [*full] == [handle.site.id for handle in handles]
    for handle in handles:
        site = handle.site.id
        mine = twin[site]
        weights = weights_of(mine, tokens)
        matrix = (mine.x * weights[:, None]).T @ mine.x / len(mine.x)
        mean = (mine.x * weights[:, None]).mean(0)
        close = {"rtol": 1e-3, "atol": 1e-4 * matrix.max()}
        found = full[site].moments
        np.testing.assert_allclose(found.matrix, matrix, **close)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-3, atol=1e-4 * abs(mean).max())
        for moments in (found, slim[site].moments):
            np.testing.assert_allclose(moments.squares, matrix.diagonal(), **close)
            assert moments.effective_tokens == pytest.approx(
                weights.sum() ** 2 / (weights**2).sum(), rel=1e-3
            )
        assert found.effective_tokens <= len(mine.x) == int(batch.inputs["attention_mask"].sum())
    kish = {site: mine.moments.effective_tokens for site, mine in full.items()}
    assert (tokens == "all") == all(kish[site] > len(twin[site].x) - 1e-6 for site in kish)


@pytest.mark.parametrize("tokens", ["gradient", "text"])
def test_what_parts_tell_adds_up_to_what_the_whole_tells(
    tiny: Loaded, batch: Batch, singles: list[Batch], tokens: str
) -> None:
    handle = tiny.handles[1]
    site = handle.site.id
    probes = [Probe(single.inputs, single.targets) for single in singles]
    whole = survey(tiny, [handle], [Probe(batch.inputs, batch.targets)], tokens=tokens)[site]
    parts = [survey(tiny, [handle], [probe], tokens=tokens)[site] for probe in probes]
    for added in (
        sum(parts[1:], start=parts[0]),
        survey(tiny, [handle], probes, tokens=tokens)[site],
    ):
        assert added.moments.effective_tokens == pytest.approx(
            whole.moments.effective_tokens, rel=1e-3
        )
        torch.testing.assert_close(added.effect, whole.effect, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            added.moments.matrix, whole.moments.matrix, rtol=1e-3, atol=1e-4
        )


def test_tokens_that_nothing_depends_on_all_weigh_the_same() -> None:
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = Sums.of(x, torch.ones(10, dtype=torch.float64), full=True)
    silent = Moments(Sums.of(x, torch.zeros(10, dtype=torch.float64), full=True), every)
    torch.testing.assert_close(silent.matrix, x.T @ x / 10)
    assert silent.effective_tokens == pytest.approx(10)


def test_a_site_that_the_answer_does_not_depend_on_has_no_effect(
    make_llava: Callable[..., Loaded], batch: Batch
) -> None:
    loaded = make_llava()
    for handle in loaded.handles[2:]:
        handle.linear(handle.output).weight.zero_()
    loaded.handles[1].linear("up_proj").weight.zero_()
    found = survey(loaded, loaded.handles, [Probe(batch.inputs, batch.targets)])
    assert [bool(found[handle.site.id].effect.any()) for handle in loaded.handles] == [
        True,
        *[False] * 5,
    ]


OPEN = [
    replace(sample, targets=(text,), answer=None, rule=Rule("any", lambda *_: 0.0))
    for sample, text in zip(
        Digits(proxy=8).samples(Split.PROXY),
        ("7", "top left", "the sum of the digits"),
        strict=False,
    )
]


@pytest.mark.parametrize("goal", ["margin", "loss"])
def test_of_a_read_answer_every_token_counts(tiny: Loaded, goal: str) -> None:
    """The effect is that of the sum over the answer's tokens, sample by sample."""
    handle = tiny.handles[1]
    expected = torch.zeros(handle.site.width, dtype=torch.float64)
    for sample in OPEN:
        (alone,) = encode(tiny.processor, [sample])
        assert alone.answers is not None
        caught: list[torch.Tensor] = []

        def catch(_: object, inputs: tuple[torch.Tensor], caught: list[torch.Tensor]) -> None:
            caught.append(inputs[0].requires_grad_())

        hook = handle.linear(handle.output).register_forward_pre_hook(
            lambda module, inputs, caught=caught: catch(module, inputs, caught)
        )
        with torch.enable_grad():
            logits = tiny.model(**alone.inputs).logits[0]
            total = torch.zeros(())
            for place, token in enumerate(alone.answers[0].tolist()):
                row = logits[len(logits) - alone.positions + place]
                first, second = row.topk(2).values
                total = total + (
                    first - second if goal == "margin" else -row.log_softmax(-1)[token]
                )
            (slope,) = torch.autograd.grad(total, caught)
        hook.remove()
        change = (caught[0] * slope).detach().double().sum(1)[0]
        expected += change.reshape(handle.site.width, -1).sum(1).pow(2)
    (batch,) = encode(tiny.processor, OPEN)
    probe = Probe(batch.inputs, batch.targets, batch.answers)
    found = survey(tiny, [handle], [probe], goal=goal)[handle.site.id].effect
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_samples_without_pictures_tell_nothing_of_a_tower(checkpoint: Path) -> None:
    both = load(checkpoint, device="cpu", towers=("vision", "language"))
    seen, unseen = encode(both.processor, [OPEN[0], replace(OPEN[1], image=None)])
    probes = [Probe(part.inputs, part.targets, part.answers) for part in (seen, unseen)]
    found, alone = survey(both, both.handles, probes), survey(both, both.handles, probes[:1])
    for handle in both.handles:
        site = handle.site
        same = torch.equal(found[site.id].effect, alone[site.id].effect)
        assert same == (site.tower == "vision")
    with pytest.raises(ModelError, match=r"vision\.00\.attn is not run by the calibration"):
        survey(both, both.handles, probes[1:])


def test_what_cannot_be_asked_is_refused(tiny: Loaded, batch: Batch) -> None:
    probe = Probe(batch.inputs, batch.targets)
    with pytest.raises(ModelError, match=r"no token weight 'some'\. Use gradient, all, text"):
        survey(tiny, tiny.handles, [probe], tokens="some")
    with pytest.raises(ModelError, match=r"no goal 'gain'\. Use margin or loss"):
        survey(tiny, tiny.handles, [replace(probe, answers=batch.answers)], goal="gain")
    with pytest.raises(ModelError, match=r"The loss needs the right answers\. Pass Probe"):
        survey(tiny, tiny.handles, [probe], goal="loss")


def test_a_site_that_never_runs_is_named(make_llava: Callable[..., Loaded], batch: Batch) -> None:
    loaded = make_llava()
    idle = loaded.handles[3]
    idle.module.forward = lambda x: x
    with pytest.raises(ModelError, match=r"language\.01\.mlp is not run by the calibration"):
        survey(loaded, loaded.handles, [Probe(batch.inputs, batch.targets)])


def test_calibration_leaves_the_model_as_it_was(tiny: Loaded, batch: Batch) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    survey(tiny, tiny.handles, [Probe(batch.inputs, batch.targets, batch.answers)], goal="loss")
    assert all(torch.equal(w, before[n]) for n, w in tiny.model.state_dict().items())
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


def test_numbers_that_are_not_finite_are_refused(
    make_llava: Callable[..., Loaded], batch: Batch
) -> None:
    broken = make_llava()
    broken.handles[2].linear("v_proj").weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"language\.01\.attn computes NaN or infinity"):
        survey(broken, broken.handles, [Probe(batch.inputs, batch.targets)])
    assert not any(module._forward_pre_hooks for module in broken.model.modules())
