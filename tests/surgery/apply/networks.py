"""Policies, rankings and comparisons for the tests of narrowing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from effllava_optuna.policy import ModelStructure, Policy, Ranking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Batch

# Float32 sums of some dozen terms in another order; logits are near 1 and differ by more than
# 0.1 between policies.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def token_logits(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """Compute the logits at all tokens that are not padding."""
    moved = batch.to(loaded.device)
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**moved.inputs).logits
    return logits[moved.inputs["attention_mask"].bool()]


def random_ranking(structure: ModelStructure, seed: int) -> Ranking:
    rng = np.random.default_rng(seed)
    scores = {component.id: rng.random(component.width) for component in structure.components}
    return Ranking.from_scores(structure, "random", scores)


def uneven_policy(structure: ModelStructure) -> Policy:
    """Keep a different number of heads in each block."""
    return Policy.of(structure, [1, 7, 3, 24, 2, 16])


@contextmanager
def unchanged(loaded: LoadedModel) -> Iterator[None]:
    """Check that the `with` block restores parameters, buffers, head counts and hooks."""

    def state() -> list[Any]:
        weights = [*loaded.model.named_parameters(), *loaded.model.named_buffers()]
        return [
            [(name, id(weight), weight.data_ptr(), weight.shape) for name, weight in weights],
            [{n: getattr(h.module, n) for n in h.counts} for h in loaded.handles],
            [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in loaded.model.modules()],
        ]

    before = state()
    copies = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    yield
    assert state() == before
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, copies[name]), name
