"""What an epoch has measured, in the form that a generation strategy reads."""

from __future__ import annotations

import dataclasses
import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import TrialState

from effllava_optuna.samplers._optuna_internals import CONSTRAINTS, GENOME
from effllava_optuna.samplers._proposals._selection import Elite, FloatArray, select
from effllava_optuna.samplers._slots import Slot, slot_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from effllava_optuna.samplers._level_grid import Genome, LevelGrid

VECTOR = "programme_vector"  # the user attribute of `ProposedGenome.vector`


@dataclass(frozen=True, slots=True)
class ProposedGenome:
    """A genome to measure, and how it was created.

    Args:
        params: One value for every gene.
        kind: That of a `Seed`, ``"random"``, ``"child"``, ``"screened"`` (a child or a level
            switch that a model has chosen); with CMA-ES also ``"sample"`` and ``"centre"``, with
            SPDY ``"weighted"``.
        origin: Number of the trial that is measured again.
        violation: Cost above the budget, negative within it; None if there is no budget.
        vector: What a `Programme` computed the genome from, its coefficients and then the
            position of the limit; None: it did not.
    """

    params: Mapping[str, int]
    kind: str
    origin: int | None
    violation: float | None
    vector: Sequence[float] | None = None


def proposed_genome_of(trial: FrozenTrial) -> ProposedGenome:
    """Return the genome that was proposed for the slot of a trial in any state."""
    attrs, violations = trial.user_attrs, trial.system_attrs.get(CONSTRAINTS)
    return ProposedGenome(
        params=trial.system_attrs.get(GENOME, trial.params),
        kind=attrs["kind"],
        origin=attrs.get("origin"),
        violation=None if violations is None else violations[0],
        vector=attrs.get(VECTOR),
    )


@dataclass(frozen=True, slots=True)
class History:
    """What an epoch has measured, in slot order.

    Args:
        slots: Slot of each COMPLETE trial, ascending.
        genomes: Genome of each COMPLETE trial.
        losses: Shape ``(trials, objectives)``; smaller is better.
        penalties: Shape ``(trials,)``; positive for infeasible trials.
        signs: Shape ``(objectives,)``; -1 for an objective that is maximised.
        pruned: Genomes of the PRUNED trials. They are neither parents nor measured again.
    """

    slots: Sequence[Slot]
    genomes: Sequence[Genome]
    losses: FloatArray
    penalties: FloatArray
    signs: FloatArray
    pruned: Mapping[Slot, Genome] = field(default_factory=dict)

    @classmethod
    def of(
        cls, grid: LevelGrid, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
    ) -> History:
        """Read COMPLETE and PRUNED trials that have a slot and all genes of a grid."""
        pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
        complete = [trial for trial in trials if trial.state != TrialState.PRUNED]
        signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
        values = np.array([trial.values for trial in complete], dtype=np.float64)
        return cls(
            slots=[slot for slot in map(slot_of, complete) if slot is not None],
            genomes=[grid.genome(trial.params) for trial in complete],
            losses=signs * values.reshape(-1, len(directions)),
            penalties=np.array([_penalty(trial) for trial in complete], dtype=np.float64),
            signs=signs,
            pruned={
                slot: grid.genome(proposed_genome_of(trial).params)
                for slot, trial in zip(map(slot_of, pruned), pruned, strict=True)
                if slot is not None
            },
        )

    def rows_of(self, generation: int) -> dict[int, int]:
        """Return the row of each COMPLETE trial of a generation, by the index of its slot."""
        rows = enumerate(self.slots)
        return {slot.index: row for row, slot in rows if slot.generation == generation}

    def before(self, generation: int) -> History:
        """Return what the generations before one have measured."""
        end = bisect_left(self.slots, generation, key=lambda slot: slot.generation)
        return History(
            slots=self.slots[:end],
            genomes=self.genomes[:end],
            losses=self.losses[:end],
            penalties=self.penalties[:end],
            signs=self.signs,
            pruned={
                slot: genome
                for slot, genome in self.pruned.items()
                if slot.generation < generation
            },
        )

    def penalty_losses(self, excess: float) -> FloatArray:
        """Return losses worse than every measured one, the more so for a larger ``excess``."""
        worst = self.losses.max(axis=0)
        span = worst - self.losses.min(axis=0)
        return np.asarray(worst + np.where(span > 0, span, 1.0) * (1 + excess))

    @property
    def digest(self) -> bytes:
        """Return a SHA-256 of everything that a strategy depends on."""
        slots = [dataclasses.astuple(slot) for slot in (*self.slots, *self.pruned)]
        parts = [np.array(slots).tobytes()]
        parts += [genome.tobytes() for genome in (*self.genomes, *self.pruned.values())]
        parts += [self.losses.tobytes(), self.penalties.tobytes()]
        return hashlib.sha256(b"".join(parts)).digest()

    @property
    def known_genomes(self) -> set[bytes]:
        """Return the bytes of all measured and pruned genomes."""
        return {genome.tobytes() for genome in (*self.genomes, *self.pruned.values())}

    def elite(self, size: int) -> tuple[list[int], Elite]:
        """Select the best among distinct genomes.

        Returns:
            The row of the first trial of each genome, and an elite whose members are positions in
            that list.
        """
        first: dict[bytes, int] = {}
        for row, genome in enumerate(self.genomes):
            first.setdefault(genome.tobytes(), row)
        rows = list(first.values())
        return rows, select(self.losses[rows], self.penalties[rows], size)


def _penalty(trial: FrozenTrial) -> float:
    return sum(max(0.0, violation) for violation in trial.constraints.values())
