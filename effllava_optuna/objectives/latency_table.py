"""The latency table: milliseconds of the workload by component and width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.policy import ComponentId

if TYPE_CHECKING:
    from effllava_optuna.policy import Policy

LEAST = 0.02  # of the dense decoder's time; no policy is predicted to be faster


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the workload, by component and width.

    The latency of a policy is ``vision + prefill + (new_tokens - 1) * decode``; the last two are
    the dense latency plus the (negative) changes of all components.

    Attributes:
        new_tokens: Tokens that the workload generates.
        vision_ms: Time of the vision tower; 0 if policies prune it, so that it is in the prefill.
        dense_ms: Time of the dense decoder by phase (``prefill``; ``decode``: one token).
        saved_ms: By phase, component and width: change against the dense component, at most 0.
        friendly: Widths by component that no wider one clearly beats; always the dense one.
        errors: Relative errors of random policies that were run whole: prediction over
            measurement, minus 1; each predicted with the factor fitted to the others.
        spread: Half the 95 % interval of a typical timing, relative to it; None if there were too
            few rounds.
        factor: By phase, the factor that is already in ``saved_ms``; fitted to whole runs.
        rounds: How often everything was run.
        launched: Phases that include the time to launch kernels, because they could not be
            captured as a CUDA graph.
        origin: What the table depends on; equal for the same model on the same machine.
        fewer: By percent of the image tokens that policies may keep, the table of the model that
            reads so many: tokens and widths multiply. Empty if all are read.
    """

    new_tokens: int
    vision_ms: float
    dense_ms: Mapping[str, float]
    saved_ms: Mapping[str, Mapping[ComponentId, Mapping[int, float]]]
    friendly: Mapping[ComponentId, tuple[int, ...]]
    errors: tuple[float, ...]
    spread: float | None
    factor: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 0
    launched: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    fewer: Mapping[int, LatencyTable] = field(default_factory=dict)

    def at_tokens(self, policy: Policy) -> LatencyTable:
        """Return the table of the image tokens that a policy keeps."""
        index = policy.structure.tokens
        return self if index is None else self.fewer.get(policy.widths[index], self)

    def relative_to(self, whole: LatencyTable, ratios: Mapping[str, float]) -> LatencyTable:
        """Return the table as if it had been measured beside another one.

        Args:
            whole: The other table.
            ratios: By phase, the dense latency of this table over that of the other, in turn.
        """
        factors = {
            phase: whole.dense_ms[phase] * ratios[phase] / ms
            for phase, ms in self.dense_ms.items()
        }
        return replace(
            self,
            vision_ms=whole.vision_ms,
            dense_ms={phase: factor * self.dense_ms[phase] for phase, factor in factors.items()},
            saved_ms={
                phase: {
                    component: {width: factors[phase] * ms for width, ms in row.items()}
                    for component, row in rows.items()
                }
                for phase, rows in self.saved_ms.items()
            },
        )

    @property
    def error(self) -> float:
        """Return the mean absolute error on the random policies that were run whole."""
        return float(np.mean(np.abs(self.errors))) if self.errors else 0.0

    @property
    def dense_total_ms(self) -> float:
        """Return the latency of the dense model for the whole workload, in ms."""
        decode = (self.new_tokens - 1) * self.dense_ms.get("decode", 0.0)
        return self.vision_ms + self.dense_ms["prefill"] + decode

    def predict(self, policy: Policy, factor: float = 1.0) -> float:
        """Predict the latency of ``policy`` for the whole workload, in ms.

        Args:
            policy: The policy.
            factor: The share of the predicted saving that is expected, as `fit_correction` finds
                it.
        """
        phases = self.phases(policy)
        total = self.vision_ms + phases["prefill"]
        total += (self.new_tokens - 1) * phases.get("decode", 0.0)
        dense = self.dense_total_ms
        return total if factor == 1 else max(dense + factor * (total - dense), LEAST * dense)

    def phases(self, policy: Policy) -> dict[str, float]:
        """Predict the latency of ``policy`` by phase, in ms."""
        latencies = {}
        table = self.at_tokens(policy)
        for phase, dense in table.dense_ms.items():
            # What a removed block saves is in the row of the block, not of its components.
            rows = table.saved_ms[phase]
            saved = sum(
                rows[component][width]
                for component, width in policy.active_widths.items()
                if width in rows.get(component, ())
            )
            # Components are timed one kind at a time: on a machine under load, the sum of the
            # savings can exceed the whole.
            latencies[phase] = max(dense + saved, LEAST * dense)
        return latencies

    def speedup_parts(self, policy: Policy) -> dict[str, tuple[float, float]]:
        """Return what image tokens and widths contribute to the predicted speed-up of a policy.

        Returns:
            By phase, two factors, whose product is the speed-up of that phase: of the dense model
            that reads the policy's share of the image tokens, and of the policy over it.
        """
        fewer = self.at_tokens(policy).dense_ms
        return {
            phase: (self.dense_ms[phase] / fewer[phase], fewer[phase] / ms)
            for phase, ms in self.phases(policy).items()
        }

    def saved(self, component: ComponentId, width: int) -> float:
        """Return the change of latency for the whole workload at a width, in ms, at most 0."""
        saved = self.saved_ms["prefill"][component][width]
        if self.new_tokens > 1:
            saved += (self.new_tokens - 1) * self.saved_ms["decode"][component][width]
        return saved
