"""Forms of structural risk: figures of a policy that might tell how much its score over-fits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _studies import evaluator_of

from effllava_optuna.objectives import answers, ask, risk, risk_table
from effllava_optuna.surgery import WHOLE, Basis, narrowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.policy import Policy
    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.surgery import Loaded

    Floats = NDArray[np.float64]

# Names of forms, which are also keys in the records.
STATIC = ("weight norm (paper)", "refit norm", "sum of norms", "sharpness")
DRAWN = ("margin", "bootstrap variance", "chance (a random number)")
NOISE = 0.2  # of a weight, as a share of the standard deviation of its matrix


def static_risks(epochs: Epochs, pool: Sequence[Policy], times: int) -> dict[str, Floats]:
    """Return the forms of risk that do not depend on a draw, each of shape ``(policies,)``."""
    evaluator, basis = evaluator_of(epochs), epochs.basis_of(0)
    refit = basis.refits[WHOLE]
    norms = []
    for policy in pool:
        with narrowed(evaluator.loaded, policy, basis.order, refit) as network:
            norms.append(norms_of(network))
    # Norms are taken of the model as it was loaded: arranged, its rows have other places.
    arranged_order = replace(
        basis.order, units={site: np.arange(len(u)) for site, u in basis.order.units.items()}
    )
    table = risk_table(
        evaluator.loaded, arranged_order, evaluator.bundle.widths, form="refit", refit=refit
    )
    return {
        STATIC[0]: np.array([evaluator.risk(policy) for policy in pool]),
        STATIC[1]: np.array([risk(policy, evaluator.loaded, table) for policy in pool]),
        STATIC[2]: np.array(norms),
        STATIC[3]: sharpness(epochs, pool, times),
    }


def drawn_risks(hit: Floats, log: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Return the forms of risk that are computed from a draw, each of shape ``(policies,)``.

    ``margin``: the share of samples that were answered right, but barely (probability below
    0.6). ``bootstrap variance``: of the mean probability of the right answer.

    Args:
        hit: Shape ``(policies, samples)``: 1 where the answer is right.
        log: Log-probability of the right answer, of the same shape.
        rng: Draws the random number that the other forms are compared with.
    """
    probability = np.exp(log)
    return {
        DRAWN[0]: ((hit > 0) & (probability < 0.6)).mean(1),
        DRAWN[1]: probability.var(axis=1, ddof=1) / probability.shape[1],
        DRAWN[2]: rng.random(len(hit)),
    }


def norms_of(network: Loaded) -> float:
    """Sum the Frobenius norms of the decoder's matrices, as they are now."""
    return sum(
        float(handle.linear(name).weight.double().norm())
        for handle in network.handles
        for name in (*handle.inputs, handle.output)
    )


def sharpness(epochs: Epochs, pool: Sequence[Policy], times: int) -> Floats:
    """Return how much noise in the weights adds to the loss on the calibration samples."""
    evaluator, basis = evaluator_of(epochs), epochs.basis_of(0)
    asked = ask(evaluator.loaded, evaluator.proxy)

    def losses(under: Basis) -> Floats:
        logs = [answers(evaluator.loaded, under, policy, asked).log_probability for policy in pool]
        return np.asarray(-np.maximum(np.array(logs), -20).mean(1))

    calm, rough = losses(basis), []
    for seed in range(times):
        shaken, inputs = noisy(basis, evaluator.loaded, seed)
        weights = {
            (handle.site.id, name): handle.linear(name).weight
            for handle in evaluator.loaded.handles
            for name in handle.inputs
        }
        before = {place: weight.detach().clone() for place, weight in weights.items()}
        try:
            for place, weight in weights.items():
                weight.data.copy_(inputs[place])
            rough.append(losses(shaken))
        finally:
            for place, weight in weights.items():
                weight.data.copy_(before[place])
    return np.asarray(np.mean(rough, axis=0) - calm)


def noisy(basis: Basis, loaded: Loaded, seed: int) -> tuple[Basis, dict[Any, torch.Tensor]]:
    """Return the basis and the input matrices with noise in all weights."""
    generator = torch.Generator().manual_seed(seed)

    def shaken(weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(weight.shape, generator=generator)
        return weight + NOISE * float(weight.std()) * noise

    refits = tuple(
        None
        if refit is None or number
        else {
            key: replace(fitted, weight=shaken(fitted.weight))
            # Sorted, since the order of a stored refit differs from process to process.
            for key, fitted in sorted(refit.items(), key=lambda item: item[0])
            if fitted.weight is not None
        }
        for number, refit in enumerate(basis.refits)
    )
    inputs = {
        (handle.site.id, name): shaken(handle.linear(name).weight.detach())
        for handle in loaded.handles
        for name in handle.inputs
    }
    return replace(basis, refits=refits), inputs
