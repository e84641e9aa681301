"""The calibration of a study: what is published once, before trial 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from effllava_optuna.calibration.latency_file import by_width, facts_of, restored_table
from effllava_optuna.errors import StudyError
from effllava_optuna.policy import IMAGE_TOKENS, ComponentId, Kind, Policy, Ranking
from effllava_optuna.storage.names import CALIBRATION_FORMAT
from effllava_optuna.surgery import (
    WeightState,
    nearest_stock_widths,
    table_tensors,
    tables_of,
)
from effllava_optuna.tasks import answers_from_json, answers_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import Costs, ModelStructure
    from effllava_optuna.surgery import CompensationTable, LoadedModel
    from effllava_optuna.tasks import DenseAnswer

_TABLES = "compensation/"  # names of the tensors of compensation tables begin with it


@dataclass(frozen=True)
class Dense:
    """Values of the dense model.

    Attributes:
        accuracy: Share of right answers on the proxy; of its own answers: 1.
        expected: Mean probability of the right answer on the proxy; of its own answers: 1.
        latency_ms: Milliseconds of the workload, from the latency table.
        parameters: Number of parameters of the whole model.
        gflops: GFLOPs of projector and decoder for the prefill of the workload.
        memory_mb: Memory of the compensation tables.
    """

    accuracy: float
    expected: float
    latency_ms: float
    parameters: int
    gflops: float
    memory_mb: float


@dataclass(frozen=True)
class TimedWidths:
    """The part of a calibration that determines which budgets can be met.

    Attributes:
        structure: The structure of the model.
        widths: Allowed widths of epoch 0, by component.
        latency: The latency table.
    """

    structure: ModelStructure
    widths: Mapping[ComponentId, tuple[int, ...]]
    latency: LatencyTable

    @property
    def dense_ms(self) -> float:
        """Return the latency of the dense model."""
        return self.latency.dense_total_ms

    @property
    def narrowest(self) -> Policy:
        """Return the policy with the narrowest allowed width everywhere."""
        return narrowest_policy(self.structure, self.widths)

    @property
    def reach(self) -> float:
        """Return how many times as fast as the dense model the narrowest policy is."""
        return self.dense_ms / self.latency.predict(self.narrowest)


@dataclass(frozen=True)
class Calibration(TimedWidths):
    """Ranking, compensation tables, latency and risk tables, and the values of the dense model.

    Attributes:
        ranking: The ranking of the units.
        compensations: Compensation tables: fitted on the whole proxy, then without each fold.
            None if the study file asks for no compensation.
        risk: Contribution of each component to Omega, by width.
        damping: Damping chosen for each component.
        effective_tokens: Effective number of tokens of each component, under its token weights.
        residuals: By component and allowed width, the estimated mean squared change of the answer
            margin if the component alone has this width, in squared logits; 0 at the dense width,
            non-decreasing as the width falls. Missing for a block of which attention or MLP
            cannot be pruned; empty if neither ranking nor compensation uses samples.
        reduced_residuals: The same of networks that read fewer image tokens, by their width;
            empty if policies do not decide it, and without a budget of latency.
        dense: Values of the dense model.
        reference: Reference point of the hypervolume: chance accuracy, and 1.05 times the dense
            latency.
        answers: Answers of the dense model to the proxy set; empty if correct ones are known.
    """

    ranking: Ranking
    compensations: tuple[CompensationTable | None, ...]
    risk: Mapping[ComponentId, Mapping[int, float]]
    damping: Mapping[ComponentId, float]
    effective_tokens: Mapping[ComponentId, float]
    residuals: Costs
    dense: Dense
    reference: tuple[float, float]
    answers: Mapping[str, DenseAnswer] = field(default_factory=dict)
    reduced_residuals: Mapping[int, Costs] = field(default_factory=dict)

    def weight_state(self, digest: str) -> WeightState:
        """Return the weight state of epoch 0, with the projector of the model as it was loaded.

        Args:
            digest: Hash of the calibration.
        """
        projectors = (None,) * len(self.compensations)
        return WeightState(digest, self.ranking, self.compensations, projectors)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the part that is stored as tensors."""
        rankings = {
            f"ranking/{component}": torch.from_numpy(units)
            for component, units in self.ranking.units.items()
        }
        tables = table_tensors(self.compensations)
        return rankings | {f"{_TABLES}{name}": tensor for name, tensor in tables.items()}

    def facts(self) -> dict[str, Any]:
        """Return the part that is stored as JSON."""
        return {
            "format": CALIBRATION_FORMAT,
            "method": self.ranking.method,
            "fits": [compensation is not None for compensation in self.compensations],
            "widths": {component: list(widths) for component, widths in self.widths.items()},
            "risk": self.risk,
            "latency": facts_of(self.latency),
            "damping": self.damping,
            "effective_tokens": self.effective_tokens,
            "residuals": self.residuals,
            "reduced_residuals": self.reduced_residuals,
            "dense": asdict(self.dense),
            "reference": list(self.reference),
            "answers": answers_to_json(self.answers),
        }

    @staticmethod
    def restored(
        structure: ModelStructure, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> Calibration:
        """Read what `facts` and `tensors` returned.

        Raises:
            StudyError: Another version of the package wrote it.
        """
        if facts.get("format") != CALIBRATION_FORMAT:
            raise StudyError(
                f"The calibration of this study has format {facts.get('format', 1)}, this version "
                f"reads {CALIBRATION_FORMAT}.",
                hint="Use the version that began the study, or start a new study.",
            )
        units = {
            component.id: tensors[f"ranking/{component.id}"].numpy().astype(np.int64)
            for component in structure.components
        }
        tables = {
            name.removeprefix(_TABLES): tensor
            for name, tensor in tensors.items()
            if name.startswith(_TABLES)
        }
        return Calibration(
            structure=structure,
            ranking=Ranking(structure.digest, facts["method"], units),
            compensations=tables_of(tables, facts["fits"]),
            widths={
                ComponentId(component): tuple(widths)
                for component, widths in facts["widths"].items()
            },
            risk=by_width(facts["risk"]),
            latency=restored_table(facts["latency"]),
            damping=facts["damping"],
            effective_tokens=facts["effective_tokens"],
            residuals=by_width(facts["residuals"]),
            reduced_residuals={
                int(tokens): by_width(residuals)
                for tokens, residuals in facts.get("reduced_residuals", {}).items()
            },
            dense=Dense(**facts["dense"]),
            reference=(facts["reference"][0], facts["reference"][1]),
            answers=answers_from_json(facts.get("answers", {})),
        )


def narrowest_policy(
    structure: ModelStructure, widths: Mapping[ComponentId, Sequence[int]]
) -> Policy:
    """Return the policy with the narrowest allowed width everywhere."""
    return Policy.of(structure, {component: allowed[0] for component, allowed in widths.items()})


def widths_of(loaded: LoadedModel, config: StudyConfig) -> dict[ComponentId, tuple[int, ...]]:
    """Return the allowed widths of each component; the dense width is always among them.

    If all blocks of a tower have the same widths, a stock configuration can express each of them.
    Those of the image tokens are missing.
    """
    widths = independent_widths(loaded.structure, config)
    if not config.pruning.tied:
        return widths
    return nearest_stock_widths(loaded, widths, multiple_of=config.pruning.multiple_of)


def allowed_widths(loaded: LoadedModel, config: StudyConfig) -> dict[ComponentId, tuple[int, ...]]:
    """Return the allowed widths of each component, those of the image tokens, too."""
    tokens = {} if loaded.parts.tokens is None else {IMAGE_TOKENS.id: loaded.parts.tokens.widths}
    return widths_of(loaded, config) | tokens


def independent_widths(
    structure: ModelStructure, config: StudyConfig
) -> dict[ComponentId, tuple[int, ...]]:
    """Return the allowed widths of each component if no two need to be equal, see `widths_of`."""
    return {
        component.id: (0, 1)
        if component.kind is Kind.BLOCK
        else _widths(
            component.width,
            component.floor,
            _step(component.kind, config),
            config.pruning.width_ratios,
        )
        for component in structure.components
        if component.kind is not Kind.TOKENS
    }


def _step(kind: Kind, config: StudyConfig) -> int:
    return config.pruning.multiple_of if kind is Kind.MLP else 1


def _widths(width: int, floor: int, step: int, width_ratios: Sequence[float]) -> tuple[int, ...]:
    counts = {
        max(floor, min(step, width), round(share * width / step) * step) for share in width_ratios
    }
    return tuple(sorted({count for count in counts if count < width} | {width}))
