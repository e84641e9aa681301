"""Forms of structural risk: figures of a policy that may predict how much its score overfits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _counting import evaluator_of

from effllava_optuna.objectives import encode_samples, risk, risk_table, score_policy
from effllava_optuna.surgery import FULL_FIT, WeightState, narrowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.policy import Policy
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

    Floats = NDArray[np.float64]

# Names of forms, which are also keys in the records.
STATIC = ("weight norm (paper)", "compensated norm", "sum of norms", "sharpness")
DRAWN = ("margin", "bootstrap variance", "chance (a random number)")
NOISE = 0.2  # standard deviation, as a share of that of the matrix


def static_risks(session: SearchSession, pool: Sequence[Policy], times: int) -> dict[str, Floats]:
    """Return the forms of risk that do not depend on a draw, each of shape ``(policies,)``."""
    evaluator, weight_state = evaluator_of(session), session.epochs.epoch(0).weight_state
    compensation = weight_state.compensations[FULL_FIT]
    norms = []
    for policy in pool:
        with narrowed(evaluator.loaded, policy, weight_state.ranking, compensation) as network:
            norms.append(norms_of(network))
    # The model is arranged: its units are in ranking order already.
    in_place = replace(
        weight_state.ranking,
        units={
            component: np.arange(len(units))
            for component, units in weight_state.ranking.units.items()
        },
    )
    table = risk_table(
        evaluator.loaded,
        in_place,
        evaluator.calibration.widths,
        form="compensated",
        compensation=compensation,
    )
    return {
        STATIC[0]: np.array([evaluator.risk(policy) for policy in pool]),
        STATIC[1]: np.array([risk(policy, evaluator.loaded, table) for policy in pool]),
        STATIC[2]: np.array(norms),
        STATIC[3]: sharpness(session, pool, times),
    }


def drawn_risks(hit: Floats, log: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Return the forms of risk that are computed from a draw, each of shape ``(policies,)``.

    ``margin``: share of samples that were answered right with a probability below 0.6.
    ``bootstrap variance``: variance of the mean probability of the right answer.

    Args:
        hit: Shape ``(policies, samples)``: 1 if the answer is right.
        log: Log-probability of the right answer, of the same shape.
        rng: Generator of the random number that the other forms are compared with.
    """
    probability = np.exp(log)
    return {
        DRAWN[0]: ((hit > 0) & (probability < 0.6)).mean(1),
        DRAWN[1]: probability.var(axis=1, ddof=1) / probability.shape[1],
        DRAWN[2]: rng.random(len(hit)),
    }


def norms_of(network: LoadedModel) -> float:
    """Sum the Frobenius norms of the decoder's matrices in their current widths."""
    return sum(
        float(handle.linear(name).weight.double().norm())
        for handle in network.handles
        for name in (*handle.inputs, handle.output)
    )


def sharpness(session: SearchSession, pool: Sequence[Policy], times: int) -> Floats:
    """Return how much noise in the weights adds to the loss on the calibration samples."""
    evaluator, weight_state = evaluator_of(session), session.epochs.epoch(0).weight_state
    batches = encode_samples(evaluator.loaded, evaluator.proxy.samples)

    def losses(state: WeightState) -> Floats:
        logs = [
            score_policy(evaluator.loaded, state, policy, batches).log_probability
            for policy in pool
        ]
        return np.asarray(-np.maximum(np.array(logs), -20).mean(1))

    without_noise, with_noise = losses(weight_state), []
    for seed in range(times):
        noisy_state, noisy_inputs = add_noise(weight_state, evaluator.loaded, seed)
        weights = {
            (handle.component.id, name): handle.linear(name).weight
            for handle in evaluator.loaded.handles
            for name in handle.inputs
        }
        original = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data.copy_(noisy_inputs[name])
            with_noise.append(losses(noisy_state))
        finally:
            for name, weight in weights.items():
                weight.data.copy_(original[name])
    return np.asarray(np.mean(with_noise, axis=0) - without_noise)


def add_noise(
    weight_state: WeightState, loaded: LoadedModel, seed: int
) -> tuple[WeightState, dict[Any, torch.Tensor]]:
    """Return the weight state and the input matrices with noise added to all weights."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(weight.shape, generator=generator)
        return weight + NOISE * float(weight.std()) * noise

    compensations = tuple(
        None
        if compensation is None or number
        else {
            key: replace(fitted, weight=noisy(fitted.weight))
            # Sorted: the order of a stored compensation table differs from process to process.
            for key, fitted in sorted(compensation.items(), key=lambda item: item[0])
            if fitted.weight is not None
        }
        for number, compensation in enumerate(weight_state.compensations)
    )
    inputs = {
        (handle.component.id, name): noisy(handle.linear(name).weight.detach())
        for handle in loaded.handles
        for name in handle.inputs
    }
    return replace(weight_state, compensations=compensations), inputs
