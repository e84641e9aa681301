"""Risk and the gap between proxy and test when ranking and compensation are fitted on the draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _draws import ETAS, spearman, standard
from _pool import SOURCE, ensure_pool, pool_file
from _risks import STATIC, drawn_risks, norms_of
from _studies import StudyRunner, load_once

from effllava_optuna.calibration.calibration_run import calibration_batch
from effllava_optuna.objectives import (
    encode_samples,
    risk,
    risk_table,
    score_policy,
    split_folds,
)
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import (
    FULL_FIT,
    PruningOptions,
    WeightState,
    arranged,
    narrowed,
    rank_and_compensate,
)
from effllava_optuna.tasks import Digits, Split, encode_with_answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _records import Record
    from numpy.typing import NDArray

    from effllava_optuna.policy import ComponentId, ModelStructure
    from effllava_optuna.surgery import CompensatedRanking, LoadedModel
    from effllava_optuna.tasks import Sample, Scores

    Floats = NDArray[np.float64]
    Widths = Mapping[ComponentId, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Fit:
    """What is fitted on a draw of proxy samples.

    Attributes:
        fitted: Ranking and compensation tables.
        static: Forms of risk by name, shape ``(policies,)``; those that do not depend on scores.
    """

    fitted: CompensatedRanking
    static: Mapping[str, Floats]


def fitted_on_draw(runner: StudyRunner, draw: int) -> Record:
    """Fit ranking and compensation on a draw; score part of the pool on it and on other images."""
    form = runner.form
    ensure_pool(runner)
    task = Digits(
        seed=100 + draw,
        proxy=form.pick(64, 64, 16),
        validation=8,
        test=form.pick(600, 100, 24),
    )
    samples = [replace(sample, split=Split.PROXY) for sample in task.samples(Split.PROXY)]
    with runner.open("first", 0, SOURCE) as session:
        structure, widths = session.evaluator.structure, session.evaluator.calibration.widths
    loaded = load_once(form.models["first"])
    torch.set_num_threads(1)
    rng = np.random.default_rng([draw, 5])
    pool = _selection(runner, structure, form.pick(32, 8, 6), rng)
    folds = split_folds(samples, 2)
    fit = _fit(loaded, folds, widths, draw, pool)
    scores = _scores(loaded, fit.fitted, pool, folds, task.samples(Split.TEST))
    test = np.array([each.hit.mean() for each in scores["test"]])
    return {
        name: _figures(scores[name], test, fit.static, rng) for name in ("cross_fitted", "same")
    }


def _selection(
    runner: StudyRunner, structure: ModelStructure, count: int, rng: np.random.Generator
) -> list[Policy]:
    """Draw policies from the second half of the pool: neighbours of good ones."""
    with np.load(pool_file(runner)) as arrays:
        widths = arrays["widths"]
    indices = rng.choice(np.arange(len(widths) // 2, len(widths)), size=count, replace=False)
    return [Policy.of(structure, [int(width) for width in widths[index]]) for index in indices]


def _fit(
    loaded: LoadedModel,
    folds: Sequence[Sequence[Sample]],
    widths: Widths,
    seed: int,
    pool: Sequence[Policy],
) -> Fit:
    """Rank and compensate, and compute the static forms of risk."""
    fitted = rank_and_compensate(
        loaded,
        [
            [calibration_batch(batch) for batch in encode_with_answers(loaded.processor, fold)]
            for fold in folds
        ],
        widths,
        PruningOptions("taylor", seed=seed),
    )
    compensation = fitted.compensations[FULL_FIT]
    tables = [
        risk_table(loaded, fitted.ranking, widths, form=form, compensation=compensation)
        for form in ("paper", "compensated")
    ]
    norms = []
    with arranged(loaded, fitted.ranking) as ready:
        for policy in pool:
            with narrowed(ready, policy, fitted.ranking, compensation) as network:
                norms.append(norms_of(network))
    risks = [np.array([risk(policy, loaded, table) for policy in pool]) for table in tables]
    return Fit(fitted, dict(zip(STATIC, (*risks, np.array(norms)), strict=False)))


def _scores(
    loaded: LoadedModel,
    fitted: CompensatedRanking,
    pool: Sequence[Policy],
    folds: Sequence[Sequence[Sample]],
    test: Sequence[Sample],
) -> dict[str, list[Scores]]:
    """Score the pool: cross-fitted, by the fit on the same samples, and on test."""
    weight_state = WeightState("draw", fitted.ranking, fitted.compensations, (None,) * 3)
    with arranged(loaded, fitted.ranking) as ready:
        cross_fitted = [
            batch
            for index, fold in enumerate(folds)
            for batch in encode_samples(ready, fold, fit=index + 1)
        ]
        batches = {
            "cross_fitted": cross_fitted,
            "same": [replace(batch, fit=FULL_FIT) for batch in cross_fitted],
            "test": encode_samples(ready, test, batch_size=200),
        }
        return {
            name: [score_policy(ready, weight_state, policy, each) for policy in pool]
            for name, each in batches.items()
        }


def _figures(
    scores: Sequence[Scores], test: Floats, static: Mapping[str, Floats], rng: np.random.Generator
) -> dict[str, Any]:
    """Return how the forms of risk go with the gap, and what eta does to the pick."""
    hit = np.array([each.hit for each in scores])
    log = np.array([np.maximum(each.log_probability, -20) for each in scores])
    expected, gap = np.exp(log).mean(1), hit.mean(1) - test
    pick = int(expected.argmax())
    top = np.argsort(-hit.mean(1), kind="stable")[: max(4, len(test) // 3)]
    forms = {**static, **drawn_risks(hit, log, rng)}
    return {
        "gap of the pick": float(gap[pick]),
        "test of the pick": float(test[pick]),
        "gap of all": float(gap.mean()),
        "best on test": float(test.max()),
        "top": {name: spearman(values[top], gap[top]) for name, values in forms.items()},
        "eta": {
            name: [float(test[(expected - eta * standard(values)).argmax()]) for eta in ETAS]
            for name, values in forms.items()
        },
    }
