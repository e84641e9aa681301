"""Curves, allocated policies and screening in whole searches of a tiny random model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState, create_trial

from effllava_optuna.allocation import residual_curves
from effllava_optuna.policy import Policy
from effllava_optuna.search.epochs.seeding import CurveAllocation
from effllava_optuna.search.runner import search
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

TASK = Digits(proxy=16, validation=8, test=8)
POPULATION = 8
GENES = 6


@pytest.fixture(scope="module")
def factory(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    place = tmp_path_factory.mktemp("artifacts")
    return StudyFactory(
        tiny, TASK, place,
        epochs=2, generations=4, population=POPULATION, curves="measured", curve_widths=2,
        screening=True,
    )  # fmt: skip


def trials_of(session: SearchSession, epoch: int, *kinds: str) -> list[FrozenTrial]:
    trials = session.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        trial
        for trial in trials
        if trial.user_attrs["epoch"] == epoch and trial.user_attrs["kind"] in kinds
    ]


def policies_of(session: SearchSession, trials: list[FrozenTrial]) -> list[Policy]:
    return [Policy.of(session.evaluator.structure, t.user_attrs["widths"]) for t in trials]


@pytest.fixture(scope="module")
def searched(factory: StudyFactory) -> Any:
    with factory(keep_ratio=0.5) as session:
        search(session)
        yield session


def test_epoch_0_measures_curves_then_allocated_policies(searched: SearchSession) -> None:
    curve = trials_of(searched, 0, "curve")
    assert [trial.user_attrs["generation"] for trial in curve] == [0] * 8 + [1] * 5
    dense, *others = policies_of(searched, curve)
    assert dense == Policy.dense(searched.evaluator.structure)
    assert len(others) == 2 * GENES
    for policy in others:
        assert sum(a != b for a, b in zip(policy.widths, dense.widths, strict=True)) == 1
    allocated = trials_of(searched, 0, "allocated")
    assert {trial.user_attrs["generation"] for trial in allocated} == {2}
    assert all(trial.user_attrs["keep_ratio"] <= 0.5 for trial in allocated)
    assert trials_of(searched, 0, "anchor")
    screened = trials_of(searched, 0, "screened")
    assert {trial.user_attrs["generation"] for trial in screened} == {2, 3}


def test_a_report_has_the_measured_curves(searched: SearchSession, factory: StudyFactory) -> None:
    sensitivity = read_study_facts(searched.study).sensitivity
    assert sensitivity is not None
    assert sensitivity["source"] == "measured"
    dense = Policy.dense(searched.evaluator.structure)
    first, *others = trials_of(searched, 0, "curve")
    for trial, policy in zip(others, policies_of(searched, others), strict=True):
        ((component, width),) = {
            (c.id, w)
            for c, w, d in zip(
                policy.structure.components, policy.widths, dense.widths, strict=True
            )
            if w != d
        }
        added = first.user_attrs["log_probability"] - trial.user_attrs["log_probability"]
        assert sensitivity["curves"][component][width] == added
    with factory(curves="residual") as session:
        estimated = read_study_facts(session.study).sensitivity
    assert estimated == {"source": "residual", "curves": factory.calibration.residuals}


def test_the_allocated_policies_are_the_best_sums_of_the_curves(searched: SearchSession) -> None:
    """Compared with all policies: each has the least sum of losses that its cost allows."""
    view = searched.schedule.view_of(0)
    curve = trials_of(searched, 0, "curve")
    base = -curve[0].user_attrs["log_probability"]
    dense = Policy.dense(searched.evaluator.structure)
    losses: list[dict[int, float]] = []
    for gene in view.space.genes:
        row = {gene.widths[-1]: 0.0}
        for trial, policy in zip(curve[1:], policies_of(searched, curve[1:]), strict=True):
            width = policy.widths[gene.components[0]]
            if width != dense.widths[gene.components[0]]:
                row[width] = -trial.user_attrs["log_probability"] - base
        losses.append(row)

    def loss(widths: tuple[int, ...]) -> float:
        """Add up the curves, made monotone."""
        return sum(
            max(value for narrow, value in row.items() if narrow >= width)
            for row, width in zip(losses, widths, strict=True)
        )

    # Policies of measured widths only: between these, a curve is interpolated.
    every = [
        (loss(widths), searched.costs.cost(view.space.policy(widths)))
        for widths in itertools.product(*losses)
    ]
    for policy in policies_of(searched, trials_of(searched, 0, "allocated")):
        widths = tuple(policy.widths[gene.components[0]] for gene in view.space.genes)
        if all(width in row for width, row in zip(widths, losses, strict=True)):
            cost = searched.costs.cost(policy)
            least = min(one for one, price in every if price <= cost + 1e-9)
            assert loss(widths) <= least + 1e-9


def test_a_later_epoch_measures_what_is_new_around_its_incumbent(searched: SearchSession) -> None:
    """The projector is not trained here, so the values of epoch 0 still count."""
    again = trials_of(searched, 1, "reeval")
    incumbent = policies_of(searched, again)[0]
    known = {tuple(trial.user_attrs["widths"]) for trial in trials_of(
        searched, 0, "curve", "anchor", "allocated", "screened", "child"
    )}  # fmt: skip
    view = searched.schedule.view_of(1)
    near = policies_of(searched, trials_of(searched, 1, "curve"))
    for policy in near:
        moved = [
            abs(gene.widths.index(a) - gene.widths.index(b))
            for gene, a, b in (
                (g, policy.widths[g.components[0]], incumbent.widths[g.components[0]])
                for g in view.space.genes
            )
            if a != b
        ]
        assert moved == [1]
        assert policy.widths not in known


def test_curves_that_do_not_fit_into_half_of_an_epoch_are_coarser(factory: StudyFactory) -> None:
    with factory(population=5, curve_widths=3) as session:
        seeds = session.epochs.epoch(0).seeds
        assert [seed.kind for seed in seeds] == ["curve"] * (1 + GENES) + ["anchor"] * 2
    with factory(population=5, generations=1) as session:
        assert {seed.kind for seed in session.epochs.epoch(0).seeds} == {"anchor", "allocated"}
        assert session.schedule.view_of(0).allocation is None


def test_without_a_budget_allocated_policies_reach_from_dense_to_narrow(
    factory: StudyFactory,
) -> None:
    with factory(epochs=1, generations=3) as session:
        search(session)
        trials = trials_of(session, 0, "allocated", "anchor")  # what is known is not repeated
        ratios = [trial.user_attrs["keep_ratio"] for trial in trials]
        narrowest = session.evaluator.calibration.narrowest.keep_ratio
    assert min(ratios) == pytest.approx(narrowest)
    assert max(ratios) > 0.7


@pytest.mark.parametrize("sampler", ["cma", "stock-nsga2"])
def test_other_samplers_continue_from_the_allocated_policies(
    factory: StudyFactory, sampler: str
) -> None:
    with factory(sampler=sampler, keep_ratio=0.5, epochs=1, generations=5) as session:
        search(session)
        assert trials_of(session, 0, "allocated")
        later = {
            trial.user_attrs["kind"]
            for trial in session.study.get_trials(deepcopy=False)
            if trial.user_attrs["generation"] > 2
        }
    assert later <= {"sample", "centre", "screened", "child", "nsga2"}
    assert ("screened" in later) == (sampler == "cma")


def test_residual_curves_allocate_the_first_generation(factory: StudyFactory) -> None:
    """Without an evaluation; compared with all policies."""
    with factory(curves="residual", keep_ratio=0.5, population=12) as session:
        epoch, residuals = session.epochs.epoch(0), session.evaluator.calibration.residuals
        space = epoch.space
    assert epoch.centre is None
    kinds = [seed.kind for seed in epoch.seeds]
    assert kinds == sorted(kinds, key=["anchor", "allocated"].index)
    assert 2 <= kinds.count("allocated") <= 6

    def loss(widths: tuple[int, ...]) -> float:
        return sum(
            residuals[space.structure.components[index].id][width]
            for gene, width in zip(space.genes, widths, strict=True)
            for index in gene.components
        )

    every = [
        (loss(widths), session.costs.cost(space.policy(widths)))
        for widths in itertools.product(*(gene.widths[::3] for gene in space.genes))
    ]
    for seed in epoch.seeds:
        if seed.kind == "allocated":
            widths = tuple(seed.params[gene.name] for gene in space.genes)
            cost = session.costs.cost(space.policy(widths))
            assert cost <= 0.5 + 1e-9
            assert loss(widths) <= min(one for one, price in every if price <= cost) + 1e-9


def test_genes_without_a_residual_stay_dense(factory: StudyFactory) -> None:
    with factory() as session:
        space, residuals = session.epochs.epoch(0).space, session.evaluator.calibration.residuals
    first = space.genes[0]
    without = {one: row for one, row in residuals.items() if one != first.name}
    curves = residual_curves(space, without)
    assert curves[first.name] == {first.widths[-1]: 0.0}
    assert list(curves[space.genes[1].name]) == list(space.genes[1].widths)
    assert set(residual_curves(space, {})) == {gene.name for gene in space.genes}


def test_a_narrower_policy_of_an_earlier_epoch_is_no_point_of_a_curve(
    searched: SearchSession,
) -> None:
    """Its parameters would be moved to the narrowest width that the later epoch allows."""
    first = searched.schedule.view_of(0).space
    gene, dense = first.genes[0], first.policy([gene.widths[-1] for gene in first.genes])
    space = replace(first, genes=(replace(gene, widths=gene.widths[1:]), *first.genes[1:]))
    curves = CurveAllocation(space, dense, searched.costs, 1)

    def trial(width: int, log_probability: float) -> FrozenTrial:
        widths = [*dense.widths]
        for index in gene.components:
            widths[index] = width
        return create_trial(
            state=TrialState.COMPLETE,
            values=[0.0, 1.0],
            user_attrs={"widths": widths, "log_probability": log_probability},
        )

    trials = [trial(gene.widths[-1], -1.0), trial(gene.widths[0], -9.0)]
    both = curves.curves([*trials, trial(gene.widths[1], -2.0)])
    alone = curves.curves([trials[0], trial(gene.widths[1], -2.0)])
    assert both is not None
    assert both == alone
    assert both[gene.name][gene.widths[1]] == pytest.approx(1.0)
