"""What calibration measures of image tokens, and which models it refuses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.calibration.calibration import Calibration
from effllava_optuna.calibration.calibration_run import calibrate, pruning_options
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import ModelError
from effllava_optuna.objectives import encode_samples
from effllava_optuna.policy import IMAGE_TOKENS
from effllava_optuna.surgery import (
    CalibrationBatch,
    CompensatedRanking,
    EncodedInputs,
    LoadedModel,
    answer_logits,
    describe_image_tokens,
    estimate_residuals,
    reduced_tokens,
)
from effllava_optuna.surgery.visual_tokens import token_selection
from effllava_optuna.tasks import Split
from tests.fixed_latency import DENSE_MS, TEXT
from tests.study_fixtures import write_tiny
from tests.surgery.family_models import text_decoder

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.config.schema import StudyConfig


def config_with(shares: str, checkpoint: Path, tmp_path: Path) -> StudyConfig:
    changes = (f"pruning.visual_tokens={shares}", 'latency.table="tables.json"')
    return load_config(write_tiny(checkpoint, tmp_path), (*changes, "search.speedup=1.2"))


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> StudyConfig:
    return config_with("[0.5, 0.25]", checkpoint, tmp_path)


def calibrated(config: StudyConfig, loaded: LoadedModel) -> tuple[Calibration, list[str]]:
    stages: list[str] = []
    with study_inputs(config, loaded) as inputs:
        found = calibrate(inputs, inputs.stopwatch(), lambda stage, _: stages.append(stage))
    return found, stages


def test_there_is_one_latency_table_for_each_share(config: StudyConfig, tiny: LoadedModel) -> None:
    latency = calibrated(config, tiny)[0].latency
    assert sorted(latency.fewer) == [25, 50]
    prompts = {100: latency.origin["prompt_tokens"]}
    for percent, table in latency.fewer.items():
        assert table.origin["visual_tokens"]["ratio"] == percent / 100
        prompts[percent] = table.origin["prompt_tokens"]
        share = TEXT + (1 - TEXT) * percent / 100
        assert table.dense_ms["prefill"] == pytest.approx(share * DENSE_MS["prefill"])
    assert prompts[100] - prompts[50] == 8  # of 16 image tokens
    assert prompts[50] - prompts[25] == 4


def test_a_stored_table_is_reused_with_its_shares(
    config: StudyConfig,
    tiny: LoadedModel,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, stages = calibrated(config, tiny)
    assert "reading latencies from latency.table" not in stages

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("timed again")

    for name in ("measure_table", "measure_token_ratios"):
        monkeypatch.setattr(f"effllava_optuna.calibration.calibration_run.{name}", refuse)
    second, stages = calibrated(config, tiny)
    assert "reading latencies from latency.table" in stages
    assert second.latency == first.latency
    other = config_with("[0.75, 0.25]", checkpoint, tmp_path)
    with pytest.raises(AssertionError, match="timed again"):
        calibrated(other, tiny)


@torch.no_grad()
def test_what_a_share_costs_is_the_mean_squared_change_of_the_margin(
    config: StudyConfig, tiny: LoadedModel
) -> None:
    found, _ = calibrated(config, tiny)
    residuals = found.residuals[IMAGE_TOKENS.id]
    assert residuals[100] == 0.0

    with study_inputs(config, tiny) as inputs:
        samples = inputs.task.samples(Split.PROXY)

    def logits_of(loaded: LoadedModel) -> list[torch.Tensor]:
        rows = []
        for sample in samples:  # one by one
            (encoded,) = encode_samples(loaded, [sample], batch_size=1)
            last = loaded.model(**encoded.batch.inputs).logits[0, -1]
            assert encoded.batch.targets is not None
            rows.append(last[encoded.batch.targets[0]])
        return rows

    whole, most = logits_of(tiny), 0.0
    for percent in (50, 25):
        with reduced_tokens(tiny, percent / 100) as reduced:
            fewer = logits_of(reduced)
        changes = []
        for before, after in zip(whole, fewer, strict=True):
            first, second = before.topk(2).indices
            changes.append(float((after - before)[first] - (after - before)[second]) ** 2)
        most = max(most, sum(changes) / len(changes))
        assert residuals[percent] == pytest.approx(most, rel=1e-3)
    assert most > 0


def test_each_share_has_residuals_of_the_widths(config: StudyConfig, tiny: LoadedModel) -> None:
    """Those of a model that reads so many tokens, under the ranking and dampings of the study."""
    found, stages = calibrated(config, tiny)
    assert "estimating residuals with fewer image tokens" in stages
    assert sorted(found.reduced_residuals) == [25, 50]
    restored = Calibration.restored(tiny.structure, found.facts(), found.tensors())
    assert restored.reduced_residuals == found.reduced_residuals
    ranked = CompensatedRanking(
        found.ranking,
        found.compensations,
        found.damping,
        found.effective_tokens,
        {each: curve for each, curve in found.residuals.items() if each != IMAGE_TOKENS.id},
    )
    for percent, curves in found.reduced_residuals.items():
        assert curves.keys() == ranked.residuals.keys()
        with (
            study_inputs(config, tiny) as inputs,
            reduced_tokens(tiny, percent / 100) as reduced,
        ):
            batches = []
            for sample in inputs.task.samples(Split.PROXY):  # one by one
                (encoded,) = encode_samples(reduced, [sample], batch_size=1)
                batch = encoded.batch
                batches.append(CalibrationBatch(batch.inputs, batch.targets, batch.answers))
            options = pruning_options(config)
            expected = estimate_residuals(reduced, batches, found.widths, ranked, options)
        for component, curve in curves.items():
            assert dict(curve) == pytest.approx(dict(expected[component]), rel=1e-3)
    changed = [
        component
        for component, curve in found.reduced_residuals[25].items()
        if dict(curve) != pytest.approx(dict(found.residuals[component]), rel=0.02)
    ]
    assert changed


@pytest.mark.parametrize(
    "changes", [("search.speedup=1.2",), ("pruning.visual_tokens=[0.5]", "search.keep_ratio=0.5")]
)
def test_without_shares_or_a_budget_of_latency_there_are_no_other_residuals(
    tiny: LoadedModel, checkpoint: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    found, stages = calibrated(load_config(write_tiny(checkpoint, tmp_path), changes), tiny)
    assert found.reduced_residuals == {}
    assert "estimating residuals with fewer image tokens" not in stages
    before = {name: fact for name, fact in found.facts().items() if name != "reduced_residuals"}
    assert Calibration.restored(tiny.structure, before, found.tensors()).reduced_residuals == {}


def test_a_share_without_finite_answers_is_refused(
    config: StudyConfig, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss would be taken for none."""

    def overflowing(loaded: LoadedModel, encoded: EncodedInputs) -> torch.Tensor:
        factor = 1.0 if loaded.visual_tokens is None else float("nan")
        return answer_logits(loaded, encoded) * factor

    monkeypatch.setattr("effllava_optuna.calibration.token_residuals.answer_logits", overflowing)
    with pytest.raises(ModelError, match="no finite logits with 50 % of its image tokens"):
        calibrated(config, tiny)


def test_a_family_whose_code_fails_with_fewer_tokens_is_refused_with_its_error(
    config: StudyConfig, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("'NoneType' object is not iterable")

    monkeypatch.setattr(token_selection, "reduced_features", fail)
    reason = r"its code does not compute with 50% of them \(TypeError: 'NoneType' object is not"
    assert re.search(f"cannot be reduced: {reason}", describe_image_tokens(tiny))
    with pytest.raises(ModelError, match=reason), study_inputs(config, tiny):
        pass


def test_models_whose_tokens_cannot_be_reduced_are_refused_before_anything_is_measured(
    config: StudyConfig, tiny: LoadedModel
) -> None:
    text = LoadedModel.of(text_decoder("LlamaConfig"), tiny.processor.tokenizer, "text")
    with (
        pytest.raises(ModelError, match=r"of text cannot be reduced: it takes no pictures"),
        study_inputs(config, text),
    ):
        pass
    with (
        reduced_tokens(tiny, 0.5) as reduced,
        pytest.raises(ModelError, match=r"already keeps 0\.5 of its image tokens"),
        study_inputs(config, reduced),
    ):
        pass
