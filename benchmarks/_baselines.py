"""Policies that need no sampler, measured under the weight state and the budget of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from _counting import evaluator_of
from _outcome import best, measure_choice

from effllava_optuna.allocation import (
    curve_policies,
    losses_by_widths,
    sensitivity_curves,
    uniform_policies,
)
from effllava_optuna.calibration.calibration_run import calibration_batch
from effllava_optuna.policy import Policy
from effllava_optuna.samplers import LevelGrid, repair, switch
from effllava_optuna.surgery import collect_statistics
from effllava_optuna.surgery.importance.criteria import score_units
from effllava_optuna.tasks import encode_with_answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.search.session import SearchSession

OFFSPRING = 16
MOST_SWITCHES = 3


class Baselines:
    """Chooses policies without a sampler, and counts what it measures.

    Args:
        session: A study before its first trial.
    """

    def __init__(self, session: SearchSession) -> None:
        self.session = session
        self.evaluator = evaluator_of(session)
        self.weight_state = session.epochs.epoch(0).weight_state
        self.structure = self.evaluator.structure
        self.widths = self.evaluator.calibration.widths

    def feasible(self, policies: Sequence[Policy]) -> list[Policy]:
        """Return the policies that are within the budget."""
        return [policy for policy in policies if self.session.costs.allows(policy)]

    def qualities(self, policies: Sequence[Policy]) -> dict[Policy, float]:
        """Measure the quality of policies on the proxy, cross-fitted."""
        return {
            policy: self.evaluator.measure(policy, self.weight_state).quality
            for policy in policies
        }

    def figures(self, policy: Policy) -> dict[str, Any]:
        """Return the costs of a policy, and its accuracy on validation and test."""
        return measure_choice(self.evaluator, policy, self.weight_state)

    def choose(self, qualities: Mapping[Policy, float]) -> dict[str, Any]:
        """Choose by validation among the best on the proxy, as a study does."""
        finalists = sorted(qualities, key=lambda policy: -qualities[policy])
        finalists = finalists[: self.session.config.report.finalists]
        return best(
            [self.figures(policy) | {"quality": qualities[policy]} for policy in finalists]
        )

    def sensitivity_curves(self, count: int) -> dict[str, dict[int, float]]:
        """Measure what narrowing one component alone adds to the loss, at ``count`` widths."""
        space = self.evaluator.first_space()
        losses = [(policy, self._loss(policy)) for policy in curve_policies(space, count)]
        dense = Policy.dense(self.structure)
        return sensitivity_curves(space, dense, losses_by_widths(losses))

    def _loss(self, policy: Policy) -> float:
        return -self.evaluator.measure(policy, self.weight_state).log_probability

    def flap_scores(self) -> dict[ComponentId, np.ndarray[Any, Any]]:
        """Score units as FLAP does, with the token weights of all other methods."""
        loaded = self.evaluator.loaded
        samples = self.evaluator.proxy.samples
        batches = [
            calibration_batch(batch) for batch in encode_with_answers(loaded.processor, samples)
        ]
        statistics = collect_statistics(loaded, loaded.handles, batches, full=False)
        return {
            handle.component.id: score_units(
                loaded, handle, "flap", statistics[handle.component.id]
            )
            for handle in loaded.handles
        }

    def level_switches(self, evaluations: int, seed: int) -> dict[Policy, float]:
        """Evolve one parent by level switches, from the largest feasible uniform policy.

        Returns:
            The qualities of the policies that were measured.
        """
        rng = np.random.default_rng([seed, 41])
        view = self.session.schedule.view_of(0)
        grid = LevelGrid.of(view)
        parent = max(
            self.feasible(uniform_policies(self.structure, self.widths)),
            key=lambda policy: policy.keep_ratio,
        )
        qualities = self.qualities([parent])
        while len(qualities) < evaluations:
            children: dict[Policy, None] = {}
            for _ in range(20 * OFFSPRING):
                if len(children) >= min(OFFSPRING, evaluations - len(qualities)):
                    break
                genome = grid.genome(view.space.encode(parent))
                # The smaller of two draws as in EvoPress: few switches are the most frequent.
                for _ in range(int(rng.integers(1, MOST_SWITCHES + 1, size=2).min())):
                    genome = switch(genome, grid, rng)
                params = grid.params(repair(genome, grid, rng))
                child = view.space.decode(params).policy
                if child not in qualities:
                    children[child] = None
            if not children:
                break
            qualities |= self.qualities([*children])
            parent = max(qualities, key=qualities.__getitem__)
        return qualities
