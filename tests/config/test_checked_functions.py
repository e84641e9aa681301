"""What the user's functions return is used only if it can be."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from effllava_optuna.config.checked_functions import (
    CheckedSamplerFactory,
    CheckedTerm,
    CheckedTraining,
    UserFunction,
    checked_task,
    finite_number,
)
from effllava_optuna.config.user_functions import UserFunctions
from effllava_optuna.errors import ConfigError, TaskError, UserFunctionError
from effllava_optuna.policy import Policy
from effllava_optuna.search.final_selection import FinalSelection
from effllava_optuna.search.runner import search
from effllava_optuna.search.session import SearchSession
from effllava_optuna.surgery import projector, projector_state
from effllava_optuna.tasks import Digits, GradingRule, Sample, Split, grade_answer
from effllava_optuna.training import ProjectorScore, ProjectorUpdate
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.surgery import LoadedModel

NUMBERS = [0, -2, 0.5, np.float32(0.5), np.float64(-1), np.int64(3), np.array(0.25),
           torch.tensor(0.5), torch.tensor(2), torch.tensor(1.0, requires_grad=True),
           Fraction(1, 4)]  # fmt: skip
NO_NUMBERS = [None, -math.inf, math.inf, math.nan, (0.1, 0.2), [0.1], "0.1", b"0", True, 1j,
              np.float32("inf"), np.float64("nan"), np.bool_(1), np.array([0.1]), np.array([]),
              torch.tensor(-math.inf), torch.tensor(True), torch.tensor([0.5]), torch.tensor(1j),
              10**400, {}, object(), Decimal("0.1"), lambda: 0.1]  # fmt: skip


POLICY: Any = None  # not used


def a_model() -> Any:
    return SimpleNamespace(model=torch.nn.Linear(2, 2))


def own(function: Callable[..., Any], key: str = "quality.term") -> UserFunction:
    return UserFunction(key, "own:f", function)


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_finite_number_is_a_term(value: Any) -> None:
    term = CheckedTerm(own(lambda policy, loaded: value))
    number = term(POLICY, a_model())
    assert type(number) is float
    assert number == pytest.approx(float(value.item() if hasattr(value, "item") else value))


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_anything_else_is_refused_as_a_term(value: Any) -> None:
    assert finite_number(value) is None
    term = CheckedTerm(own(lambda policy, loaded: value))
    with pytest.raises(UserFunctionError) as caught:
        term(POLICY, a_model())
    message = str(caught.value)
    assert message.startswith("quality.term = 'own:f' returned ")
    assert "Return a finite number, in accuracy." in message
    assert len(message) < 250
    assert "\n" not in message


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class NoFloat(float):
    def __float__(self) -> float:
        raise RuntimeError("no float")


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda policy, loaded: policy.nothing, "AttributeError: .*nothing.*"),
        (lambda policy, loaded: sys.exit(), "SystemExit: no message"),
        (lambda policy, loaded: sys.exit(3), "SystemExit: 3"),
        (raising(SystemExit(0)), "SystemExit: 0"),
        (raising(GeneratorExit("closed")), "GeneratorExit: closed"),
        (raising(BaseException("all")), "BaseException: all"),
        (raising(StopIteration()), "StopIteration: no message"),
        (raising(Unprintable()), "Unprintable: no message"),
        (lambda policy, loaded: NoFloat(1.0), "RuntimeError: no float"),
    ],
)
def test_a_term_that_raises_is_named(function: Callable[..., Any], reason: str) -> None:
    term = CheckedTerm(own(function))
    message = rf"^quality\.term = 'own:f' failed: {reason}\. Fix the function, then"
    with pytest.raises(UserFunctionError, match=message):
        term(POLICY, a_model())


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), GeneratorExit()], ids=repr)
def test_no_function_of_the_user_ends_a_command_as_if_it_had_finished(
    tiny: LoadedModel, error: BaseException
) -> None:
    weight_state: Any = SimpleNamespace(compensations=(None,))
    end = raising(error)
    with pytest.raises(UserFunctionError, match="train = 'own:f' failed"):
        CheckedTraining(own(end, "projector.train"))(tiny, weight_state, [], None, None)
    with pytest.raises(UserFunctionError, match="sampler = 'own:f' failed"):
        CheckedSamplerFactory(own(end, "search.sampler"))(seed=0)
    with pytest.raises(UserFunctionError, match="name = 'own:f' failed"):
        checked_task(own(end, "task.name"))
    sample = Sample("7", "g", Split.PROXY, None, "?", ("a",), rule=GradingRule("own", end))
    with pytest.raises(TaskError, match="Rule 'own' cannot grade"):
        grade_answer(sample, "a")


def test_an_interruption_in_a_function_of_the_user_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        CheckedTerm(own(raising(KeyboardInterrupt())))(POLICY, a_model())


def scale(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)


def reload(model: torch.nn.Module) -> None:
    model.load_state_dict({name: weight / 2 for name, weight in model.state_dict().items()})


CHANGES = [
    scale,
    reload,
    lambda model: model.half(),
    lambda model: setattr(model, "weight", torch.nn.Parameter(torch.zeros(2, 2))),
    lambda model: setattr(model, "more", torch.nn.Linear(2, 2)),
    lambda model: delattr(model, "bias"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_term_may_not_change_the_model(change: Callable[[Any], object]) -> None:
    loaded = a_model()
    CheckedTerm(own(lambda policy, loaded: loaded.model(torch.ones(2)).sum()))(POLICY, loaded)
    term = CheckedTerm(own(lambda policy, loaded: change(loaded.model) or 0.0))
    with pytest.raises(
        ConfigError, match=r"^quality\.term = 'own:f' changed weights of the model:"
    ):
        term(POLICY, loaded)


@pytest.mark.parametrize("change", CHANGES[:3])
def test_a_training_may_change_nothing_but_the_projector(
    tiny: LoadedModel, change: Callable[[Any], object]
) -> None:
    copied = replace(tiny, model=copy.deepcopy(tiny.model))
    weight_state: Any = SimpleNamespace(compensations=(None,))
    update = update_of(tiny, 1)

    def training(part: torch.nn.Module) -> CheckedTraining:
        return CheckedTraining(own(lambda *_: (change(part), update)[1], "projector.train"))

    assert training(projector(copied.model))(copied, weight_state, [], None, None) is update
    with pytest.raises(ConfigError, match=r"^projector\.train = 'own:f' changed weights"):
        training(copied.model.get_input_embeddings())(copied, weight_state, [], None, None)


def test_a_function_with_other_arguments_is_refused_before_it_is_called() -> None:
    with pytest.raises(ConfigError, match=r"cannot be called with \(policy, loaded\): too many"):
        own(lambda policy: 0.0).check_call("policy", "loaded")
    own(max).check_call("policy", "loaded")  # a function without a signature


@pytest.fixture(scope="module")
def opened(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    task, place = Digits(proxy=16, validation=8, test=8), tmp_path_factory.mktemp("artifacts")
    return StudyFactory(tiny, task, place, epochs=1, generations=2, population=5)


def with_term(session: SearchSession, term: Callable[..., Any]) -> SearchSession:
    functions = UserFunctions(term=CheckedTerm(own(term)))
    inputs = replace(session.evaluator.inputs, functions=functions)
    return replace(session, evaluator=replace(session.evaluator, inputs=inputs))


@pytest.mark.parametrize("bad", [-math.inf, math.inf, None, (0.1, 0.2)], ids=repr)
def test_a_policy_without_a_finite_term_fails_and_never_wins(
    opened: StudyFactory, bad: object
) -> None:
    with opened(keep_ratio=0.5) as session:
        calls: list[Policy] = []

        def term(policy: Policy, _: object) -> object:
            calls.append(policy)
            return bad if len(calls) == 2 else 0.0

        search(with_term(session, term))
        (failed,) = session.study.get_trials(states=(TrialState.FAIL,))
        assert failed.user_attrs["reason"] == f"quality.term = 'own:f' returned {bad!r}."
        values = [t.values for t in session.study.get_trials(states=(TrialState.COMPLETE,))]
        assert np.isfinite(values).all()
        completed = session.study.get_trials(states=(TrialState.COMPLETE,))
        measured = {tuple(trial.user_attrs["widths"]) for trial in completed}
        measured.add(Policy.dense(session.evaluator.structure).widths)
        only_trials = with_term(
            session, lambda policy, _: 0.0 if policy.widths in measured else bad
        )
        results = FinalSelection(only_trials).run()
        assert results["chosen"]["trial"] != failed.number


def update_of(tiny: LoadedModel, fits: int) -> ProjectorUpdate:
    score = ProjectorScore(0, 1.0, 0.5)
    state = {name: weight.clone() for name, weight in projector_state(tiny).items()}
    return ProjectorUpdate((state,) * fits, 0, (score,), score, score, 1.0)


def spoiled(update: ProjectorUpdate, change: Callable[[torch.Tensor], object]) -> ProjectorUpdate:
    name, weight = next(iter(update.projectors[0].items()))
    state: Any = {**update.projectors[0], name: change(weight)}
    return replace(update, projectors=(state, *update.projectors[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, r"returned None\. Return a ProjectorUpdate"),
        (lambda update: update.projectors, "Return a ProjectorUpdate"),
        (lambda u: replace(u, projectors=u.projectors[:1]), "with 1 projectors instead of 3"),
        (lambda u: replace(u, projectors=(None,) * 3), "whose projector 0 is None"),
        (lambda u: replace(u, projectors=({},) * 3), "projector 0 has the weights none"),
        (lambda u: spoiled(u, lambda w: w[:1]), "of another shape"),
        (lambda u: spoiled(u, lambda w: w * math.nan), "that is not finite"),
        (lambda u: spoiled(u, lambda w: w / 0), "that is not finite"),
        (lambda u: replace(u, held_out=()), "without held_out scores"),
        (lambda u: replace(u, held_out=(0.5,)), r"whose held_out\[0\] is 0\.5"),
        (lambda u: replace(u, after=replace(u.after, loss=-math.inf)), r"after\.loss is -inf"),
        (lambda u: replace(u, before=replace(u.before, accuracy=None)), r"accuracy is None"),
        (lambda u: replace(u, seconds="long"), "whose seconds is 'long'"),
        (lambda u: 1 / 0, "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_projector_that_cannot_be_used_is_refused(
    tiny: LoadedModel, change: Callable[[Any], object], message: str
) -> None:
    weight_state: Any = SimpleNamespace(compensations=(None, None, None))
    update = update_of(tiny, 3)
    good = CheckedTraining(own(lambda *_: update, "projector.train"))
    assert good(tiny, weight_state, [], None, None) is update
    bad = CheckedTraining(own(lambda *_: change(update), "projector.train"))
    with pytest.raises(UserFunctionError, match=message) as caught:
        bad(tiny, weight_state, [], None, None)
    assert str(caught.value).startswith("projector.train = 'own:f' ")


class Proposes(optuna.samplers.RandomSampler):
    def __init__(self, value: Any, *, relative: bool) -> None:
        super().__init__()
        self.value, self.relative = value, relative

    def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
        return {"a": IntDistribution(0, 7)} if self.relative else {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {"a": self.value} if self.relative else {}

    def sample_independent(self, *_: Any) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("value", [None, -math.inf, math.nan, "3", (1, 2), 1j])
def test_a_sampler_that_proposes_no_number_is_refused(value: Any, *, relative: bool) -> None:
    def make(*, seed: int) -> optuna.samplers.BaseSampler:
        return Proposes(value, relative=relative)

    sampler = CheckedSamplerFactory(own(make, "search.sampler"))(seed=0)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(UserFunctionError, match=r"search\.sampler = 'own:f': its sampler propos"):
        study.ask({"a": IntDistribution(0, 7)})


def test_a_sampler_may_fail_or_propose_numbers_of_any_kind() -> None:
    for value, expected in ((np.int64(3), 3), (2.0, 2), (99, 7), (torch.tensor(1), 1)):
        sampler = Proposes(value, relative=False)
        checked = CheckedSamplerFactory(own(lambda sampler=sampler, **_: sampler))(seed=0)
        study = optuna.create_study(sampler=checked)
        assert study.ask({"a": IntDistribution(0, 7)}).params == {"a": expected}
    failing = Proposes(KeyError("gone"), relative=False)
    checked = CheckedSamplerFactory(own(lambda **_: failing, "search.sampler"))(seed=0)
    with pytest.raises(UserFunctionError, match=r"'own:f' failed: KeyError: 'gone'\."):
        optuna.create_study(sampler=checked).ask({"a": IntDistribution(0, 7)})


def a_task(**changes: Any) -> Any:
    facts = {"name": "own", "digest": "1", "chance": 0.1, "samples": lambda _: ()} | changes
    return SimpleNamespace(**facts)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "returned None, which has no name"),
        (a_task(digest=3), "whose digest is 3"),
        (a_task(chance=-math.inf), r"whose chance is -inf and not in \[0, 1\]"),
        (a_task(samples=lambda _: None), r"whose samples\(proxy\) are None and not a tuple"),
        (a_task(samples=lambda _: ("a",)), r"whose samples\(proxy\) have 'a'"),
        (a_task(samples=lambda: ()), "failed: TypeError"),
    ],
)
def test_what_is_no_task_is_refused(task: Any, message: str) -> None:
    with pytest.raises(UserFunctionError, match=message):
        checked_task(own(lambda **_: task, "task.name"), seed=0, proxy=8)
    with pytest.raises(ConfigError, match=r"cannot be called with \(seed=\.\.\., proxy=\.\.\.\)"):
        checked_task(own(lambda: task, "task.name"), seed=0, proxy=8)


@pytest.mark.parametrize("grade", [None, -math.inf, math.nan, 1.5, -0.1, "1", (1, 0), 1j])
def test_a_grade_outside_of_0_to_1_is_refused(grade: Any) -> None:
    sample = Sample("7", "g", Split.PROXY, None, "?", ("a",),
                    rule=GradingRule("mine", lambda *_: grade))  # fmt: skip
    with pytest.raises(TaskError, match=r"^Rule 'mine' .* of sample '7'") as caught:
        grade_answer(sample, "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("grade", [True, 0, np.float32(0.5), torch.tensor(1.0)])
def test_a_grade_may_be_any_number_of_0_to_1(grade: Any) -> None:
    sample = Sample("7", "g", Split.PROXY, None, "?", ("a",),
                    rule=GradingRule("mine", lambda *_: grade))  # fmt: skip
    assert grade_answer(sample, "a") == float(grade)
