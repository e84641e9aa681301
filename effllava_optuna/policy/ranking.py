"""The ranking of units: which units a policy of given widths keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy.component import UNRANKED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from effllava_optuna.policy.component import Component, ComponentId
    from effllava_optuna.policy.structure import ModelStructure


@dataclass(frozen=True)
class Ranking:
    """The ranking of the units of every component.

    Attributes:
        structure: Digest of the model structure.
        method: Criterion of the ranking, such as ``taylor``.
        units: For each component, shape ``(width,)``: unit indices, most important first.
    """

    structure: str
    method: str
    units: Mapping[ComponentId, NDArray[np.int64]]

    def __post_init__(self) -> None:
        for component, units in self.units.items():
            if not np.array_equal(np.sort(units), np.arange(len(units))):
                raise PolicyError(
                    f"The {self.method} ranking of {component} does not contain each unit once.",
                    hint="Rank the units again; a stored ranking may be damaged.",
                )

    @staticmethod
    def from_scores(
        structure: ModelStructure, method: str, scores: Mapping[ComponentId, NDArray[np.float64]]
    ) -> Ranking:
        """Rank units by score; the highest comes first, and ties keep the order of the model.

        Args:
            structure: The structure of the model.
            method: Criterion that the scores were computed by.
            scores: For each component, shape ``(width,)``; finite. Blocks need none.

        Raises:
            PolicyError: The scores of a component are missing, too few or not finite.
        """
        units = {}
        for component in structure.components:
            default = np.zeros(component.width if component.kind in UNRANKED else 0)
            units[component.id] = rank_component(
                component, method, np.asarray(scores.get(component.id, default))
            )
        return Ranking(structure.digest, method, units)

    @cached_property
    def digest(self) -> str:
        """Return a hash of the content."""
        content = hashlib.sha256(f"{self.structure} {self.method}".encode())
        for component in sorted(self.units):
            content.update(component.encode())
            content.update(self.units[component].astype("<i8").tobytes())
        return content.hexdigest()[:16]


def rank_component(
    component: Component, method: str, scores: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Rank the units of one component; see `Ranking.from_scores`.

    Args:
        component: The component.
        method: Criterion that the scores were computed by.
        scores: Shape ``(width,)``; finite.

    Returns:
        Shape ``(width,)``: unit indices, the highest score first.

    Raises:
        PolicyError: The scores are too few or not finite.
    """
    if scores.shape != (component.width,) or not np.isfinite(scores).all():
        raise PolicyError(
            f"{component.id} needs {component.width} finite {method} scores.",
            hint="Check that the model computes finite numbers on the calibration samples.",
        )
    return np.argsort(-scores, kind="stable").astype(np.int64)
