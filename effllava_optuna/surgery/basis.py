"""What turns a policy into a network: order, refit tables, projector weights."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.surgery.features import projecting
from effllava_optuna.surgery.narrow import narrowed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from effllava_optuna.policy import Order, Policy
    from effllava_optuna.surgery.loaded import Loaded
    from effllava_optuna.surgery.refit import Refit

WHOLE = 0  # the fit for use; fit f + 1 is for scoring the samples of fold f, which it never saw


@dataclass(frozen=True)
class Basis:
    """Order, refits and projectors of one epoch.

    Attributes:
        digest: Identifies the content.
        order: Which units stay.
        refits: Output matrices and biases by site and count: first those fitted on the whole
            proxy, then for each fold those fitted without it. None: no refit.
        projectors: Projector weights in the same places. None: those of the model as loaded.
    """

    digest: str
    order: Order
    refits: tuple[Refit | None, ...]
    projectors: tuple[Mapping[str, torch.Tensor] | None, ...]

    @property
    def folds(self) -> int:
        """Count the folds of the proxy."""
        return len(self.refits) - 1


@contextmanager
def running(loaded: Loaded, basis: Basis, policy: Policy, fit: int = WHOLE) -> Iterator[Loaded]:
    """Turn ``loaded`` into the network of ``policy`` under ``basis`` for a while.

    Args:
        loaded: The model, best inside ``arranged(loaded, basis.order)``.
        basis: The policy's basis.
        policy: What to keep.
        fit: Which refit and projector; `WHOLE` for use, ``fold + 1`` for scoring that fold.
    """
    with (
        projecting(loaded, basis.projectors[fit]),
        narrowed(loaded, policy, basis.order, basis.refits[fit]) as network,
    ):
        yield network
