"""A published calibration is restored exactly, for every kind of compensation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.calibration.calibration import Calibration
from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import StudyError
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
