"""What calibration publishes comes back as it was, whatever the refit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.errors import StudyError
from effllava_optuna.study.bundle import Bundle
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.spec import read_spec
from effllava_optuna.study.workbench import Workbench
from tests.study.conftest import write_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import Loaded


@pytest.mark.parametrize(
    ("changes", "parts", "damped"),
    [
        (('pruning.refit="none"', 'pruning.order="random"'), set(), False),
        (
            ('pruning.refit="bias"', 'pruning.order="flap"', 'pruning.tokens="all"'),
            {"bias"},
            False,
        ),
        (('pruning.order="obs"',), {"weight"}, True),
        (('pruning.order="taylor-loss"', 'pruning.tokens="text"'), {"weight"}, True),
    ],
)
def test_a_bundle_comes_back_as_it_was(
    tiny: Loaded,
    checkpoint: Path,
    tmp_path: Path,
    changes: tuple[str, ...],
    parts: set[str],
    damped: bool,
) -> None:
    spec = read_spec(write_tiny(checkpoint, tmp_path), changes)
    said: list[Any] = []
    with Workbench(spec, tiny) as bench:
        bundle = calibrate(bench, lambda *what: said.append(what))
        tensors = bundle.tensors()
        again = Bundle.restored(bench.anatomy, bundle.facts(), tensors)
        assert again.order.digest == bundle.order.digest
        assert again.order.method == spec.pruning.order
        stored = {name.rsplit("/", 1)[1] for name in tensors if name.startswith("refit/")}
        assert stored == parts
        assert bool(bundle.damping) == damped
        assert [refit is None for refit in again.refits] == [not parts] * 3
        for mine, other in zip(bundle.refits, again.refits, strict=True):
            for place, fitted in (mine or {}).items():
                back = (other or {})[place]
                for part in ("weight", "bias"):
                    before, after = getattr(fitted, part), getattr(back, part)
                    assert (before is None) == (after is None)
                    assert before is None or torch.equal(before, after)
        assert bundle.dense.memory_mb * 1e6 == pytest.approx(
            sum(t.nbytes for name, t in tensors.items() if name.startswith("refit/"))
        )
        older = {name: fact for name, fact in bundle.facts().items() if name != "format"}
        with pytest.raises(StudyError, match=r"has format 1, this version reads 3\. Go on with"):
            Bundle.restored(bench.anatomy, older, tensors)
        bench.adopt(again, "b")
        basis = bench.basis()
        half = bundle.narrowest(bench.anatomy)
        assert 0 <= bench.measure(half, basis).accuracy <= 1
    assert said[-1][0] == "measuring the dense model"
    assert ("ranking and fitting", 1.0) in said
