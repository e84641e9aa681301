"""Call the user's functions, and refuse what they return if it cannot be used.

A value that is silently converted decides a study: a term of ``-inf`` gives the quality ``inf``,
which no policy beats.
"""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler

from effllava_optuna.errors import ConfigError, UserFunctionError, describe, shorten
from effllava_optuna.tasks import Sample, Split
from effllava_optuna.training import ProjectorScore, ProjectorUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState
    from torch import nn

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import LoadedModel, WeightState
    from effllava_optuna.tasks import Task

_AGAIN = "Fix the function, then continue with `resume --force`."


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A function of the user.

    Attributes:
        key: Key of the study file that names it.
        name: ``module:function``.
        function: The function.
    """

    key: str
    name: str
    function: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.key} = {self.name!r}"

    def check_call(self, *arguments: str, **keywords: str) -> None:
        """Refuse a function that cannot be called with these arguments.

        Raises:
            ConfigError: It cannot.
        """
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # of a function in C
            return
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            names = ", ".join([*arguments, *(f"{name}=..." for name in keywords)])
            raise ConfigError(
                f"{self} cannot be called with ({names}): {error}.",
                hint="Use a function that takes these arguments.",
            ) from error

    @contextmanager
    def errors_in_one_line(self) -> Iterator[None]:
        """Raise what the function raises as an error that names the function.

        `SystemExit`, too: after ``sys.exit(0)`` a command would look as if it had finished.

        Raises:
            UserFunctionError: The function has raised anything but `KeyboardInterrupt`.
        """
        try:
            yield
        except (KeyboardInterrupt, UserFunctionError):
            raise
        except BaseException as error:  # the user's function may raise anything
            raise UserFunctionError(f"{self} failed: {describe(error)}.", hint=_AGAIN) from error

    @contextmanager
    def unchanged(self, model: nn.Module, but: nn.Module | None = None) -> Iterator[None]:
        """Refuse a function that changes weights: what is measured with them would be wrong.

        Args:
            model: The model that the function gets.
            but: Part of the model that the function may change.

        Raises:
            ConfigError: The function has changed others.
        """
        before = _weights_of(model, but)
        yield
        after = _weights_of(model, but)
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        if changed:
            others = f" and {len(changed) - 1} more" if changed[1:] else ""
            raise ConfigError(
                f"{self} changed weights of the model: {shorten(changed[0])}{others}.",
                hint=f"Work on a copy of the model. {_AGAIN}",
            )

    def refuse(self, value: object, expected: str) -> UserFunctionError:
        """Return the error about a value that the function has returned."""
        text = shorten(value)
        return UserFunctionError(f"{self} returned {text}.", hint=f"Return {expected}. {_AGAIN}")


def _weights_of(model: nn.Module, but: nn.Module | None) -> dict[str, tuple[object, ...]]:
    """Return by name what tells that a weight was changed: its memory, type, shape and version.

    PyTorch counts the changes of a tensor in its version. Values are not compared, so that large
    models take no time.
    """
    left_out = set() if but is None else set(map(id, but.parameters()))
    return {
        name: (weight.data_ptr(), weight.dtype, weight.shape, weight._version)
        for name, weight in model.named_parameters()
        if id(weight) not in left_out
    }


def finite_number(value: object) -> float | None:
    """Return a finite real number as a float; None for everything else.

    Scalars of numpy and torch are numbers; True, complex numbers and texts are not.

    Example:
        >>> finite_number(3), finite_number(torch.tensor(0.5)), finite_number("3")
        (3.0, 0.5, None)
        >>> finite_number(True), finite_number(-math.inf), finite_number((1, 2))
        (None, None, None)
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer that is too large
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class CheckedTerm:
    """``quality.term``, which returns a finite number.

    Attributes:
        function: The user's function.
    """

    function: UserFunction

    def __call__(self, policy: Policy, loaded: LoadedModel) -> float:
        """Return the term of a policy, in accuracy.

        Raises:
            UserFunctionError: The function has failed, or returned something else.
            ConfigError: It has changed weights of the model.
        """
        with self.function.unchanged(loaded.model), self.function.errors_in_one_line():
            value = self.function.function(policy, loaded)
            number = finite_number(value)
        if number is None:
            raise self.function.refuse(value, "a finite number, in accuracy")
        return number


@dataclass(frozen=True, slots=True)
class CheckedTraining:
    """``projector.train``, which returns projectors that fit the model.

    Attributes:
        function: The user's function.
    """

    function: UserFunction

    def __call__(
        self,
        loaded: LoadedModel,
        weight_state: WeightState,
        elites: Sequence[Policy],
        *others: Any,
    ) -> ProjectorUpdate:
        """Train the projector; see `effllava_optuna.training.train_projector`.

        Raises:
            UserFunctionError: The function has failed, or returned something else.
            ConfigError: It has changed other weights than those of the projector.
        """
        from effllava_optuna.surgery import projector

        unchanged = self.function.unchanged(loaded.model, but=projector(loaded.model))
        with unchanged, self.function.errors_in_one_line():
            update = self.function.function(loaded, weight_state, elites, *others)
        if not isinstance(update, ProjectorUpdate):
            raise self.function.refuse(update, "a ProjectorUpdate, as train_projector does")
        with self.function.errors_in_one_line():
            fault = _fault_of(update, len(weight_state.compensations), loaded)
        if fault is not None:
            raise UserFunctionError(
                f"{self.function} returned a ProjectorUpdate {fault}.",
                hint=f"Return one as train_projector does. {_AGAIN}",
            )
        return update


def _fault_of(update: ProjectorUpdate, fits: int, loaded: LoadedModel) -> str | None:
    """Return why an update cannot be used; None if it can."""
    from effllava_optuna.surgery import projector_state

    if len(update.projectors) != fits:
        return f"with {len(update.projectors)} projectors instead of {fits}, one a fit"
    expected = {name: weight.shape for name, weight in projector_state(loaded).items()}
    for fit, state in enumerate(update.projectors):
        fault = _state_fault(state, expected)
        if fault is not None:
            return f"whose projector {fit} {fault}"
    numbers: dict[str, object] = {"steps": update.steps, "seconds": update.seconds}
    scores = {"before": update.before, "after": update.after}
    scores |= {f"held_out[{index}]": score for index, score in enumerate(update.held_out)}
    if not update.held_out:
        return "without held_out scores"
    for name, score in scores.items():
        if not isinstance(score, ProjectorScore):
            return f"whose {name} is {score!r}"
        numbers |= {f"{name}.loss": score.loss, f"{name}.accuracy": score.accuracy}
    for name, value in numbers.items():
        if finite_number(value) is None:
            return f"whose {name} is {value!r}"
    return None


def _state_fault(state: object, expected: Mapping[str, torch.Size]) -> str | None:
    if not hasattr(state, "items"):
        return f"is {state!r}"
    weights = dict(state.items())
    if weights.keys() != expected.keys():
        return f"has the weights {', '.join(map(str, weights)) or 'none'}"
    for name, weight in weights.items():
        if not isinstance(weight, torch.Tensor) or weight.shape != expected[name]:
            return f"has a {name} of another shape"
        if not bool(torch.isfinite(weight).all()):
            return f"has a {name} that is not finite"
    return None


@dataclass(frozen=True, slots=True)
class CheckedSamplerFactory:
    """``search.sampler``, whose samplers propose numbers.

    Attributes:
        function: The user's function.
    """

    function: UserFunction

    def __call__(self, *, seed: int) -> BaseSampler:
        """Create a sampler.

        Raises:
            UserFunctionError: The function has failed, or returned something else.
        """
        with self.function.errors_in_one_line():
            sampler = self.function.function(seed=seed)
        if not isinstance(sampler, BaseSampler):
            raise self.function.refuse(sampler, "an Optuna sampler")
        return _CheckedSampler(sampler, self.function)


class _CheckedSampler(BaseSampler):
    """A sampler of the user, whose errors name its function."""

    def __init__(self, sampler: BaseSampler, function: UserFunction) -> None:
        self._sampler, self._function = sampler, function

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with self._function.errors_in_one_line():
            return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._function.errors_in_one_line():
            proposed = dict(self._sampler.sample_relative(study, trial, search_space))
        for name, value in proposed.items():
            self._check(name, value)
        return proposed

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        with self._function.errors_in_one_line():
            value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        self._check(param_name, value)
        if isinstance(param_distribution, IntDistribution):
            return min(max(int(value), param_distribution.low), param_distribution.high)
        return value

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with self._function.errors_in_one_line():
            self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        with self._function.errors_in_one_line():
            self._sampler.after_trial(study, trial, state, values)

    def _check(self, name: str, value: object) -> None:
        if finite_number(value) is None:
            raise UserFunctionError(
                f"{self._function}: its sampler proposed {value!r} for {name}.",
                hint=f"Propose integers. {_AGAIN}",
            )


def checked_task(function: UserFunction, **sizes: int) -> Task:
    """Create the task of ``task.name``.

    Raises:
        UserFunctionError: The function has failed, or returned something else.
    """
    function.check_call(**dict.fromkeys(sizes, ""))
    with function.errors_in_one_line():
        task = function.function(**sizes)
        fault = _task_fault(task)
    if fault is not None:
        raise UserFunctionError(
            f"{function} returned {shorten(task)}, {fault}.",
            hint="Return an effllava_optuna.tasks.Task.",
        )
    made: Task = task
    return made


def _task_fault(task: Any) -> str | None:
    """Return why an object is not a task; None if it is one."""
    for name in ("name", "digest", "chance", "samples"):
        if not hasattr(task, name):
            return f"which has no {name}"
    for name in ("name", "digest"):
        if not isinstance(getattr(task, name), str):
            return f"whose {name} is {getattr(task, name)!r}"
    chance = finite_number(task.chance)
    if chance is None or not 0 <= chance <= 1:
        return f"whose chance is {task.chance!r} and not in [0, 1]"
    for split in Split:
        samples = task.samples(split)
        if not isinstance(samples, (tuple, list)):
            return f"whose samples({split}) are {shorten(samples)} and not a tuple"
        for sample in samples:
            if not isinstance(sample, Sample) or sample.split is not split:
                return f"whose samples({split}) have {shorten(sample)}"
    return None
