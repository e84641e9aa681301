"""The weights that a policy runs with: ranking, compensation tables and projector."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effllava_optuna.surgery.apply.compensation_table import table_tensors
from effllava_optuna.surgery.apply.narrowing import narrowed
from effllava_optuna.surgery.apply.projector_weights import use_projector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch

    from effllava_optuna.policy import Policy, Ranking
    from effllava_optuna.surgery.apply.compensation_table import CompensationTable
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

# Index of the fit on the whole proxy set, for use. Fit f + 1 is fitted without the samples of
# fold f, and scores them.
FULL_FIT = 0


@dataclass(frozen=True)
class WeightState:
    """Ranking, compensation tables and projectors of one epoch.

    Attributes:
        digest: Hash of the content.
        ranking: Order of the units of each component.
        compensations: One table per fit: the first is fitted on the whole proxy set, the others
            without one fold each. None: no compensation.
        projectors: Projector weights by parameter name, one per fit. None: those of the loaded
            model.
    """

    digest: str
    ranking: Ranking
    compensations: tuple[CompensationTable | None, ...]
    projectors: tuple[Mapping[str, torch.Tensor] | None, ...]

    def with_projectors(self, projectors: Sequence[Mapping[str, torch.Tensor]]) -> WeightState:
        """Return the same ranking and compensation tables with trained projectors.

        Args:
            projectors: Weights by parameter name, one per fit.
        """
        named = (pair for state in projectors for pair in sorted(state.items()))
        return replace(self, digest=self._digest_with(named), projectors=tuple(projectors))

    def with_compensations(self, compensations: Sequence[CompensationTable | None]) -> WeightState:
        """Return the same ranking and projectors with other compensation tables.

        Args:
            compensations: One table per fit. If they are the tables of this weight state, it is
                returned itself.
        """
        compensations = tuple(compensations)
        if all(new is old for new, old in zip(compensations, self.compensations, strict=True)):
            return self
        named = sorted(table_tensors(compensations).items())
        return replace(self, digest=self._digest_with(named), compensations=compensations)

    def _digest_with(self, named: Iterable[tuple[str, torch.Tensor]]) -> str:
        """Hash the digest of this weight state and further tensors with their names."""
        content = hashlib.sha256(self.digest.encode())
        for name, weight in named:
            content.update(name.encode())
            content.update(weight.cpu().float().numpy().tobytes())
        return content.hexdigest()

    @property
    def folds(self) -> int:
        """Count the folds of the proxy set."""
        return len(self.compensations) - 1


@contextmanager
def policy_network(
    loaded: LoadedModel, weight_state: WeightState, policy: Policy, fit: int = FULL_FIT
) -> Iterator[LoadedModel]:
    """Turn ``loaded`` into the network of ``policy`` for the duration of the ``with``.

    Args:
        loaded: The model; fastest inside ``arranged(loaded, weight_state.ranking)``.
        weight_state: The weight state of the policy.
        policy: Number of units kept at each component.
        fit: Index of the compensation table and projector; `FULL_FIT` for use, ``fold + 1`` to
            score the samples of a fold.
    """
    compensation = weight_state.compensations[fit]
    with (
        use_projector(loaded, weight_state.projectors[fit]),
        narrowed(loaded, policy, weight_state.ranking, compensation) as network,
    ):
        yield network
