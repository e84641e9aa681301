"""Epochs: calibrate once, and between epochs train the projector and move the space.

`Epochs` is where the study, the model and the ledger meet. What happens when is a function of
what is stored, never of how often something was called: an epoch opens when all slots of the one
before are finished, whoever notices it first.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from effllava_optuna.baselines import one_number, two_numbers
from effllava_optuna.errors import StudyError
from effllava_optuna.hooks import Lesson, Training
from effllava_optuna.objectives import ask, folds_of, units_of
from effllava_optuna.policy import Policy, Space, finalists, front_of
from effllava_optuna.samplers import (
    EpochCMASampler,
    EpochNSGAIISampler,
    EpochStockSampler,
    Seed,
    slot_of,
)
from effllava_optuna.study.artifacts import Vault
from effllava_optuna.study.budget import budget_of
from effllava_optuna.study.bundle import Bundle
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.database import guard
from effllava_optuna.study.grading import numbered, told_of
from effllava_optuna.study.ledger import Ledger, Publication
from effllava_optuna.study.manifest import settle
from effllava_optuna.study.records import trials_of
from effllava_optuna.study.storage import ANATOMY, OVER, TASK
from effllava_optuna.study.view import EpochView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from optuna import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.samplers import EpochSampler, Stock
    from effllava_optuna.study.budget import Budget
    from effllava_optuna.study.workbench import Say, Workbench
    from effllava_optuna.surgery import Basis

_ANCHORS = 6
_STOCK: dict[str, Stock] = {"stock-nsga2": "nsga2", "tpe": "tpe", "random": "random"}


class SearchOver(Exception):
    """The last epoch is finished: there is no slot for whoever asks for one."""


def silent(_: str, __: float) -> None:
    """Say nothing."""


class Epochs:
    """The epochs of one study on one workbench.

    Args:
        study: The study.
        bench: The model and the task.
        vault: Where tensors are kept.
        say: Is told what is under way.
        endless: Go on in the last epoch for as long as somebody asks, as ``study.optimize`` does
            with its ``n_trials``; otherwise whoever asks for more than is planned gets
            `SearchOver`.
    """

    def __init__(
        self,
        study: Study,
        bench: Workbench,
        vault: Vault,
        say: Say = silent,
        *,
        endless: bool = False,
    ) -> None:
        guard(study._storage)
        self.study = study
        self.bench = bench
        self.vault = vault
        self.say = say
        self.endless = endless
        self.spec = bench.spec
        self.ledger = Ledger(study._storage, study.study_name)
        self._bases: dict[str, Basis] = {}
        self._views: dict[int, EpochView] = {}

    def open(self, *, force: bool = False) -> None:
        """Calibrate, or adopt the calibration that is published.

        Args:
            force: Go on also where versions, machine, weights or samples have changed.

        Raises:
            StudyError: The model has another anatomy, or something has changed.
        """
        anatomy = self.study.user_attrs.get(ANATOMY)
        mine = self.bench.anatomy.to_json()
        if anatomy is None:
            self.study.set_user_attr(ANATOMY, mine)
        elif anatomy != mine:
            raise StudyError(
                f"Study {self.study.study_name!r} is of another model.",
                hint="Use the checkpoint that the study began with.",
            )
        settle(self.study, self.bench, force=force)
        if TASK not in self.study.user_attrs:
            units = numbered(units_of(self.bench.crossed))  # of the hits of a trial, in order
            told = told_of(self.spec, self.bench.task)
            self.study.set_user_attr(TASK, told | {"units": units})
        found = self.ledger.publish(0, lambda: self.publication(calibrate(self.bench, self.say)))
        facts, name = found.user_attrs, found.user_attrs["artifact"]
        bundle = Bundle.restored(self.bench.anatomy, facts["bundle"], self.vault.get(name))
        self.bench.adopt(bundle, name)
        _ = self.budget  # refuse an impossible one before the first trial

    def publication(self, bundle: Bundle) -> Publication:
        """Store a bundle as an artifact, ready to be published."""
        return Publication(
            bundle.dense.accuracy,
            {"bundle": bundle.facts()},
            self.vault.put(bundle.tensors()),
            "calibration.safetensors",
        )

    @cached_property
    def budget(self) -> Budget:
        """Give what a policy may cost."""
        return budget_of(self.spec, self.bench.anatomy, self.bench.bundle)

    @cached_property
    def sampler(self) -> EpochSampler:
        """Give the sampler of this study."""
        search = self.spec.search
        sizes: Any = {
            "population_size": search.population,
            "generations": search.generations,
            "seed": self.spec.study.seed,
        }

        def space(_: Study) -> EpochView:
            return self.view()

        if search.sampler == "nsga2":
            return EpochNSGAIISampler(space, **sizes)
        stock = self.bench.own.sampler or _STOCK.get(search.sampler)
        if stock is not None:
            return EpochStockSampler(space, stock, **sizes)
        limit = None
        if search.sampler == "sep-cma" and search.speedup is not None:
            limit = self.bench.bundle.dense.latency_ms / search.speedup
        return EpochCMASampler(space, kernels=search.kernels, limit=limit, **sizes)

    @property
    def epoch(self) -> int:
        """Give the epoch that is open."""
        return len(self.ledger.epochs()) - 1

    def view(self) -> EpochView:
        """Give the epoch that is open; open the next one first where that is due.

        Raises:
            SearchOver: All slots are finished.
        """
        self.advance()
        if not self.endless and self.finished:
            raise SearchOver
        return self.view_of(self.epoch)

    def view_of(self, epoch: int) -> EpochView:
        """Give a published epoch as the sampler sees it."""
        if epoch not in self._views:
            self._views[epoch] = EpochView(
                space=self.space(epoch),
                anatomy=self.bench.anatomy,
                budget_of_study=self.budget,
                seeds=self._seeds(epoch),
                basis=self.basis_of(epoch).digest,
                known=self._known,
            )
        return self._views[epoch]

    def _known(self, policy: Policy) -> dict[str, Any]:
        own = self.bench.own.term
        complaint = self.budget.complaint(self.bench.anatomy, policy)
        return {
            **({} if own is None else {"term": round(self.bench.term(policy), 6)}),
            "keep": list(policy.keep),
            "kept_share": round(policy.kept_share(self.bench.anatomy), 6),
            "risk": round(self.bench.risk(policy), 6),
            **({} if complaint is None else {OVER: complaint}),
        }

    def space(self, epoch: int) -> Space:
        """Give the space of a published epoch."""
        if epoch == 0:
            return self.bench.wide
        return Space.from_json(self._attempt(epoch).user_attrs["space"])

    def conclude(self, make: Callable[[], float]) -> None:
        """Let ``make`` end the study, unless that was done; of several processes, one does it.

        It is an attempt of the control study like those to make an epoch, numbered so that no
        epoch comes right before it.

        Args:
            make: Does it, and gives the proxy accuracy of the choice.
        """
        self.ledger.publish(self.spec.search.epochs + 1, lambda: Publication(make(), {}, None))

    def _attempt(self, epoch: int) -> FrozenTrial:
        found = self.ledger.published(epoch)
        if found is None:
            raise StudyError(f"Epoch {epoch} is not published.", hint="Continue with `resume`.")
        return found

    def basis_of(self, epoch: int) -> Basis:
        """Give the basis of a published epoch, with its own projector."""
        if epoch == 0:
            return self.bench.basis()
        attrs = self._attempt(epoch).user_attrs
        if attrs["basis"] not in self._bases:
            self._bases[attrs["basis"]] = self.bench.basis(
                _restored(self.vault.get(attrs["artifact"]))
            )
        return self._bases[attrs["basis"]]

    def basis(self, digest: str) -> Basis:
        """Give the basis that a trial's values belong to.

        Raises:
            StudyError: No epoch of this study has it.
        """
        if digest in self._bases:  # without a look at what is published
            return self._bases[digest]
        for attempt in self.ledger.epochs():
            basis = self.basis_of(int(attempt.params["epoch"]))
            if basis.digest == digest:
                self._bases[digest] = basis
                return basis
        raise StudyError(
            f"No epoch of {self.study.study_name!r} has basis {digest}.",
            hint="Keep the control study and the artifacts with the database.",
        )

    def _seeds(self, epoch: int) -> tuple[Seed, ...]:
        if epoch:
            return tuple(
                Seed(seed["params"], "reeval", seed["origin"])
                for seed in self._attempt(epoch).user_attrs["elites"]
            )
        anatomy, widths = self.bench.anatomy, self.bench.bundle.widths
        grid: Sequence[Policy] = one_number(anatomy, widths)
        if self.budget.bound is not None:
            grid = self.budget.largest(anatomy, two_numbers(anatomy, widths))
        step = max(1, -(-len(grid) // min(_ANCHORS, self.spec.search.population // 2)))
        return tuple(Seed(self.bench.wide.encode(policy), "anchor") for policy in grid[::step])

    @property
    def finished(self) -> bool:
        """Tell whether all slots of the last epoch are finished."""
        last = self.spec.search.epochs - 1
        return self.epoch >= last and self.sampler.slots_of_epoch_finished(self.study, last)

    def advance(self) -> None:
        """Open the next epoch, if all slots of this one are finished and it is not the last."""
        epoch = self.epoch
        if epoch + 1 >= self.spec.search.epochs:
            return
        if self.sampler.slots_of_epoch_finished(self.study, epoch):
            with self.bench.loaded.lock:
                self.ledger.publish(epoch + 1, lambda: self._evolve(epoch))

    def _evolve(self, epoch: int) -> Publication:
        """Train the projector for the elites of ``epoch`` and make the next epoch."""
        trials = trials_of(self.study)
        front = front_of([trial for trial in trials if trial.epoch == epoch])
        if not front:
            raise StudyError(
                f"Epoch {epoch} has no feasible trial that completed.",
                hint="Allow a larger budget: search.kept_share, or search.speedup.",
            )
        table = self.spec.projector
        policies = [Policy.of(self.bench.anatomy, trial.keep) for trial in front]
        update = self.bench.own.train(
            self.bench.loaded,
            self.bench.basis(),
            policies[: table.elites],
            self.lessons(),
            Training(table.steps, table.every, table.learning_rate, table.kl),
            lambda share: self.say("training the projector", share),
        )
        again = finalists(front, max(1, self.spec.search.population // 4))
        wide = self.bench.wide
        space = self.space(epoch).around(
            [Policy.of(self.bench.anatomy, trial.keep) for trial in front],
            margin=self.spec.search.margin,
            wide=wide,
        )
        basis = self.bench.basis(update.projectors)
        at_best = min(update.held_out, key=lambda look: (look.loss, look.steps))
        facts: dict[str, Any] = {
            "basis": basis.digest,
            "space": space.to_json(),
            "elites": [
                {
                    "params": wide.encode(Policy.of(self.bench.anatomy, trial.keep)),
                    "origin": trial.number,
                }
                for trial in again
            ],
            "steps": update.steps,
            "seconds": update.seconds,
            "proxy_accuracy_before": update.before.accuracy,
            "proxy_accuracy_after": update.after.accuracy,
            "proxy_loss_before": update.before.loss,
            "proxy_loss_after": update.after.loss,
            "crossfit_accuracy_before": update.held_out[0].accuracy,
            "crossfit_accuracy_after": at_best.accuracy,
            "crossfit_loss_before": update.held_out[0].loss,
            "crossfit_loss_after": at_best.loss,
            "crossfit_curve": [asdict(look) for look in update.held_out],
        }
        name = self.vault.put(
            {
                f"{fit}/{weight}": tensor
                for fit, state in enumerate(update.projectors)
                for weight, tensor in state.items()
            }
        )
        return Publication(at_best.accuracy, facts, name, "projector.safetensors")

    def lessons(self) -> list[Lesson]:
        """Give the proxy as lessons for the projector, a part at a time."""
        folds, parts = self.spec.pruning.folds, self.spec.projector.parts
        lessons = []
        for fold, samples in enumerate(folds_of(self.bench.proxy, folds)):
            for inner, mine in enumerate(folds_of(samples, parts // folds)):
                lessons += [
                    Lesson(asked.batch, asked.seen, fold * (parts // folds) + inner, fold + 1)
                    for asked in ask(self.bench.loaded, mine)  # open questions are read
                ]
        return lessons


class ProjectorEvolution:
    """The epochs as a callback: ``study.optimize(objective, callbacks=[ProjectorEvolution(e)])``.

    After the last trial of an epoch it trains the projector and opens the next epoch; after the
    last trial of the study it stops it.

    Args:
        epochs: Of the study that is optimized.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Look whether an epoch is over: never before a trial of its last generation is."""
        slot = slot_of(trial)
        if slot is not None:
            if slot.generation < self.epochs.spec.search.generations - 1:
                return
            if not self.epochs.sampler.slots_of_epoch_finished(study, slot.epoch):
                return
        self.epochs.advance()
        if self.epochs.finished:
            study.stop()


def _restored(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        fit, _, weight = name.partition("/")
        states.setdefault(int(fit), {})[weight] = tensor
    return [states[fit] for fit in sorted(states)]
