"""Layer dropping by cosine distance (ShortGPT), beside the methods that narrow components."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from _counting import evaluator_of
from _pretrained_search import raced_speedup
from torch.nn import functional

from effllava_optuna.policy import Policy
from effllava_optuna.surgery import load, narrowed, rank_units

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel


class LayerDropping:
    """Removes whole blocks, those first that change the hidden states least (ShortGPT).

    The influence of a block is 1 minus the mean cosine of the states before and after it (Men et
    al., 2024). The rest keeps its weights.

    Args:
        session: A study before its first trial; its proxy samples are read.
    """

    def __init__(self, session: SearchSession) -> None:
        self.session = session
        self.loaded = load(session.config.model.path, device="cpu", depth=True)
        self._ranking = rank_units(self.loaded)
        self.order = sorted(range(len(self.loaded.blocks)), key=self._influences().__getitem__)

    @torch.inference_mode()
    def _influences(self) -> list[float]:
        totals = [0.0] * len(self.loaded.blocks)
        mask = torch.ones(0, dtype=torch.bool)

        def add(index: int, inputs: Any, output: Any) -> None:
            before, after = inputs[0], output[0] if isinstance(output, tuple) else output
            cosines = functional.cosine_similarity(before, after, dim=-1)
            totals[index] += float((1 - cosines[mask]).sum())

        hooks = [
            block.module.register_forward_hook(
                lambda _, inputs, output, index=index: add(index, inputs, output)
            )
            for index, block in enumerate(self.loaded.blocks)
        ]
        for encoded in evaluator_of(self.session).proxy.likelihood:
            mask = encoded.batch.inputs["attention_mask"].bool()
            self.loaded.model(**encoded.batch.inputs)
        for hook in hooks:
            hook.remove()
        return totals

    def policy(self, removed: int) -> Policy:
        """Return the policy without the ``removed`` least influential blocks."""
        gone = {self.loaded.blocks[index].component.id for index in self.order[:removed]}
        return Policy.of(
            self.loaded.structure,
            [
                0 if component.id in gone else component.width
                for component in self.loaded.structure.components
            ],
        )

    @contextmanager
    def network(self, policy: Policy) -> Iterator[LoadedModel]:
        """Remove the blocks of a policy for the duration of the ``with``."""
        with narrowed(self.loaded, policy, self._ranking) as network:
            yield network

    def fastest_enough(self, speedup: float) -> tuple[int, float]:
        """Return how many blocks must go for a measured speed-up, and the one they have."""
        measured = 1.0
        for removed in range(1, len(self.order)):
            measured = raced_speedup(self.session, self.loaded, self.network, self.policy(removed))
            if measured >= speedup:
                return removed, measured
        return len(self.order) - 1, measured
