"""A published calibration is restored exactly, for every kind of compensation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.calibration import calibration_run
from effllava_optuna.calibration.calibration import Calibration
from effllava_optuna.calibration.calibration_run import calibrate, calibration_folds
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import StudyError
from effllava_optuna.surgery import rank_and_compensate, samples_per_backward
from effllava_optuna.surgery.apply import backward_memory
from tests.study_fixtures import write_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel


@pytest.mark.parametrize(
    ("changes", "parts", "damped"),
    [
        (
            (
                'pruning.compensation="none"',
                'pruning.importance="random"',
                'search.curves="none"',
            ),
            set(),
            False,
        ),
        (
            ('pruning.compensation="bias"', 'pruning.importance="flap"', 'pruning.tokens="all"'),
            {"bias"},
            False,
        ),
        (('pruning.importance="obs"',), {"weight"}, True),
        (('pruning.importance="taylor-loss"', 'pruning.tokens="text"'), {"weight"}, True),
    ],
)
def test_a_calibration_is_restored_exactly(
    tiny: LoadedModel,
    checkpoint: Path,
    tmp_path: Path,
    changes: tuple[str, ...],
    parts: set[str],
    damped: bool,
) -> None:
    config = load_config(write_tiny(checkpoint, tmp_path), changes)
    stages: list[tuple[str, float]] = []
    with study_inputs(config, tiny) as inputs:
        calibration = calibrate(inputs, inputs.stopwatch(), lambda *stage: stages.append(stage))
    tensors = calibration.tensors()
    restored = Calibration.restored(tiny.structure, calibration.facts(), tensors)
    assert restored.ranking.digest == calibration.ranking.digest
    assert restored.ranking.method == config.pruning.importance
    assert restored.latency == calibration.latency
    assert restored.residuals == calibration.residuals
    assert bool(restored.residuals) == ('pruning.compensation="none"' not in changes)
    stored = {name.rsplit("/", 1)[1] for name in tensors if name.startswith("compensation/")}
    assert stored == parts
    assert bool(calibration.damping) == damped
    assert [table is None for table in restored.compensations] == [not parts] * 3
    for table, other in zip(calibration.compensations, restored.compensations, strict=True):
        for key, fitted in (table or {}).items():
            for part in ("weight", "bias"):
                before, after = getattr(fitted, part), getattr((other or {})[key], part)
                assert (before is None) == (after is None)
                assert before is None or torch.equal(before, after)
    assert calibration.dense.memory_mb * 1e6 == pytest.approx(
        sum(t.nbytes for name, t in tensors.items() if name.startswith("compensation/"))
    )
    older = {name: fact for name, fact in calibration.facts().items() if name != "format"}
    with pytest.raises(StudyError, match=r"has format 1, this version reads 5\. Use the version"):
        Calibration.restored(tiny.structure, older, tensors)
    assert stages[-1][0] == "measuring the dense model"
    assert ("ranking and fitting", 1.0) in stages


def test_batches_are_divided_for_the_memory_of_a_backward_pass(
    tiny: LoadedModel, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_tiny(checkpoint, tmp_path))
    with study_inputs(config, tiny) as inputs:
        whole = calibration_folds(inputs)
        monkeypatch.setattr(calibration_run, "samples_per_backward", lambda *_: 3)
        divided = calibration_folds(inputs)
        options = calibration_run.pruning_options(config)
        widths = {c.id: (c.width // 2,) for c in tiny.structure.components}
        results = [rank_and_compensate(tiny, folds, widths, options) for folds in (whole, divided)]
    sizes = [[len(batch.inputs["input_ids"]) for batch in fold] for fold in divided]
    assert max(map(max, sizes)) == 3
    for few, many in zip(sizes, whole, strict=True):
        assert len(few) > len(many)
        assert sum(few) == sum(len(batch.inputs["input_ids"]) for batch in many)
    first, second = results
    for component, units in first.ranking.units.items():
        assert units.tolist() == second.ranking.units[component].tolist()
    for table, other in zip(first.compensations, second.compensations, strict=True):
        for key, fitted in (table or {}).items():
            torch.testing.assert_close(
                fitted.weight, (other or {})[key].weight, rtol=1e-3, atol=1e-4
            )


def test_a_backward_pass_reads_what_fits_into_its_memory(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By count: twice what each linear layer of the decoder reads and writes."""
    config = tiny.model.config.text_config
    hidden, mlp = config.hidden_size, config.intermediate_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    queries, keys = heads * config.head_dim, groups * config.head_dim
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    numbers = 2 * config.num_hidden_layers * (attention + 3 * (hidden + mlp))
    monkeypatch.setattr(backward_memory, "_CPU_GB", 4 * numbers * 10 * 7.5 / 1e9)
    assert samples_per_backward(tiny, 10) == 7
    assert samples_per_backward(tiny, 75) == 1
    assert samples_per_backward(tiny, 10_000) == 1
