"""Published epochs of a study: the search space, the weight state and the first policies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import Policy, Space
from effllava_optuna.samplers import Seed
from effllava_optuna.storage.control_study import EpochPublication, latency_factor_of
from effllava_optuna.surgery import table_tensors, tables_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from optuna.trial import FrozenTrial

    from effllava_optuna.search.epochs.context_round import ContextTrial
    from effllava_optuna.storage.artifact_store import ArtifactStore
    from effllava_optuna.storage.control_study import ControlStudy
    from effllava_optuna.surgery import WeightState
    from effllava_optuna.training import ProjectorUpdate


@dataclass(frozen=True)
class Epoch:
    """One epoch of a search.

    Attributes:
        space: The allowed widths.
        weight_state: Ranking, compensation tables and projector of its policies.
        seeds: Policies that it measures first.
        centre: The policy that its sensitivity curves are measured around; None: it has none.
        latency_factor: Share of the savings in the latency table that is expected; 1 in epoch 0.
    """

    space: Space
    weight_state: WeightState
    seeds: tuple[Seed, ...]
    centre: Policy | None = None
    latency_factor: float = 1.0


@dataclass(frozen=True)
class NextEpoch:
    """A new epoch, and the projector training that led to it.

    Attributes:
        epoch: The epoch.
        accuracy: Mean accuracy on the proxy of the front that led to it.
        update: The trained projectors and how they were trained; None: nothing was trained.
        latency_errors: Relative errors of the latencies that the epoch before had predicted for
            policies of its front: predicted over measured, minus 1, both relative to the dense
            model.
        in_context: The comparison with compensation tables in context; None: nothing was compared.
    """

    epoch: Epoch
    accuracy: float
    update: ProjectorUpdate | None = None
    latency_errors: tuple[float, ...] = ()
    in_context: ContextTrial | None = None

    def publication(
        self, artifact_store: ArtifactStore, former_tables: str | None
    ) -> EpochPublication:
        """Store projectors and new tables, and return what the control study publishes.

        Args:
            artifact_store: Where they are stored.
            former_tables: Name of the tables of the epoch before; None: those of the calibration.
        """
        update, in_context = self.update, self.in_context
        facts: dict[str, Any] = {
            "weight_state": self.epoch.weight_state.digest,
            "space": self.epoch.space.to_json(),
            "seeds": [asdict(seed) for seed in self.epoch.seeds],
            "centre": None if self.epoch.centre is None else list(self.epoch.centre.widths),
            "latency_factor": self.epoch.latency_factor,
            "latency_errors": list(self.latency_errors),
            "steps": 0 if update is None else update.steps,
            "in_context": None if in_context is None else in_context.facts(),
        }
        if update is not None:
            facts |= _facts_of(update)
        tables = former_tables
        if in_context is not None and in_context.kept:
            compensations = self.epoch.weight_state.compensations
            tables = artifact_store.write_tensors(table_tensors(compensations))
        return EpochPublication(
            value=self.accuracy if update is None else update.best.accuracy,
            attributes=facts,
            artifact=None if update is None else artifact_store.write_tensors(_tensors_of(update)),
            label="projector.safetensors",
            tables=tables,
        )


def _facts_of(update: ProjectorUpdate) -> dict[str, Any]:
    """Return what the control study says of a trained projector."""
    first, best = update.held_out[0], update.best
    return {
        "seconds": update.seconds,
        "proxy_accuracy_before": update.before.accuracy,
        "proxy_accuracy_after": update.after.accuracy,
        "proxy_loss_before": update.before.loss,
        "proxy_loss_after": update.after.loss,
        "crossfit_accuracy_before": first.accuracy,
        "crossfit_accuracy_after": best.accuracy,
        "crossfit_loss_before": first.loss,
        "crossfit_loss_after": best.loss,
        "crossfit_curve": [asdict(loss) for loss in update.held_out],
    }


def _tensors_of(update: ProjectorUpdate) -> dict[str, torch.Tensor]:
    return {
        f"{fit}/{name}": tensor
        for fit, state in enumerate(update.projectors)
        for name, tensor in state.items()
    }


class EpochRegistry:
    """The published epochs of a study. What this process has made or read stays in memory.

    Compensation tables may take gigabytes: beside those of the calibration, only the tables of the
    epoch that was made or read last stay in memory.

    Args:
        control_study: Where epochs are published.
        artifact_store: Where projectors are stored.
        first: Epoch 0.
    """

    def __init__(
        self, control_study: ControlStudy, artifact_store: ArtifactStore, first: Epoch
    ) -> None:
        self.control_study = control_study
        self.artifact_store = artifact_store
        self._epochs: dict[int, Epoch] = {0: first}

    @property
    def latest(self) -> int:
        """Return the number of the latest published epoch."""
        return len(self.control_study.published_epochs()) - 1

    def epoch(self, number: int) -> Epoch:
        """Return a published epoch.

        Raises:
            StudyError: It is not published, or its projectors are missing.
        """
        if number not in self._epochs:
            attempt = self.control_study.published_attempt(number)
            if attempt is None:
                raise StudyError(
                    f"Epoch {number} is not published.", hint="Continue with `resume`."
                )
            self._remember(number, self._read(attempt))
        return self._epochs[number]

    def weight_state(self, digest: str) -> WeightState:
        """Return the weight state that the values of a trial belong to.

        Raises:
            StudyError: No published epoch has it.
        """
        for epoch in self._epochs.values():  # without a look at the storage
            if epoch.weight_state.digest == digest:
                return epoch.weight_state
        for number in range(self.latest + 1):
            if self.epoch(number).weight_state.digest == digest:
                return self.epoch(number).weight_state
        raise StudyError(
            f"No epoch of this study has weight state {digest}.",
            hint="Keep the control study and the artifacts together with the database.",
        )

    def check_artifacts(self) -> None:
        """Check that the tensors of all published epochs exist: this process has them in memory.

        Raises:
            StudyError: They were removed.
        """
        for attempt in self.control_study.published_epochs():
            for kind in ("artifact", "tables"):
                if attempt.user_attrs.get(kind) is not None:
                    self.artifact_store.require(attempt.user_attrs[kind])

    def publish(self, number: int, make: Callable[[], NextEpoch]) -> None:
        """Publish an epoch, unless another process does; ``make`` it if this process leads."""
        self.check_artifacts()
        made: list[Epoch] = []

        def publication() -> EpochPublication:
            following = make()
            made.append(following.epoch)
            return following.publication(self.artifact_store, self._tables_of(number - 1))

        published = self.control_study.publish_once(number, publication).user_attrs["weight_state"]
        if made and made[0].weight_state.digest == published:
            self._remember(number, made[0])

    def _tables_of(self, number: int) -> str | None:
        """Return the name of the tables of a published epoch; None: those of the calibration."""
        attempt = self.control_study.published_attempt(number)
        return None if attempt is None else attempt.user_attrs.get("tables")

    def _remember(self, number: int, epoch: Epoch) -> None:
        """Keep an epoch in memory, and forget those with tables that it does not have."""
        kept = {
            id(state.compensations) for state in (self._epochs[0].weight_state, epoch.weight_state)
        }
        self._epochs = {
            other: known
            for other, known in self._epochs.items()
            if id(known.weight_state.compensations) in kept
        } | {number: epoch}

    def _read(self, attempt: FrozenTrial) -> Epoch:
        first, facts = self._epochs[0], attempt.user_attrs
        structure, centre = first.space.structure, facts["centre"]
        weight_state = first.weight_state
        if facts.get("tables") is not None:
            tensors = self.artifact_store.read_tensors(facts["tables"])
            fits = [True] * len(weight_state.compensations)
            weight_state = weight_state.with_compensations(tables_of(tensors, fits))
        if facts["steps"]:
            projectors = _by_fit(self.artifact_store.read_tensors(facts["artifact"]))
            weight_state = weight_state.with_projectors(projectors)
        return Epoch(
            space=Space.from_json(facts["space"], structure),
            weight_state=weight_state,
            seeds=tuple(Seed(**seed) for seed in facts["seeds"]),
            centre=None if centre is None else Policy.of(structure, centre),
            latency_factor=latency_factor_of(attempt),
        )


def _by_fit(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Group stored projector weights by the fit that they belong to."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        fit, _, weight = name.partition("/")
        states.setdefault(int(fit), {})[weight] = tensor
    return [states[fit] for fit in sorted(states)]
