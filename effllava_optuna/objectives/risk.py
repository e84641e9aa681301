"""The structural-risk (SRM) term: a stand-in for the generalisation gap of a policy.

Norm-based bounds on the Rademacher complexity of a network grow with the product of the
Frobenius norms of its matrices (Neyshabur et al. 2015; Golowich et al. 2018). Its logarithm,
relative to the dense model and weighted by parameters, is

    Omega = sum_l a_l log(||W'_l||_F / ||W_l||_F),    sum_l a_l = 1,

over the query, key, value, output, gate, up and down matrices. A matrix of a block that is left
out counts with -log(1 + ||W_l||_F). That the paper's term is built from weight norms is known;
this form of it is inferred.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import IMAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, Policy, Ranking
    from effllava_optuna.surgery import CompensationTable, ComponentHandle, LoadedModel

    RiskTable = Mapping[ComponentId, Mapping[int, float]]

FORMS = ("paper", "compensated")


def risk_table(
    loaded: LoadedModel,
    ranking: Ranking,
    widths: Mapping[ComponentId, Sequence[int]],
    *,
    form: str = "paper",
    compensation: CompensationTable | None = None,
) -> dict[ComponentId, dict[int, float]]:
    """Compute the contribution of each component to Omega at each width, in nats.

    Args:
        loaded: The model, its units in their original order.
        ranking: The ranking of the units.
        widths: Widths by component.
        form: ``paper``: norms of the original weights of the kept units; 0 for the dense model,
            increasing with the width. ``compensated``: output matrices as a trial runs them;
            compensation can raise a norm above the dense one.
        compensation: The compensation table, for ``compensated``.

    Raises:
        ModelError: The form is unknown, or a matrix is all zero or not finite.
    """
    if form not in FORMS:
        raise ModelError(f"There is no risk form {form!r}.", hint=f"Use {' or '.join(FORMS)}.")
    total = sum(
        handle.linear(name).weight.numel()
        for handle in loaded.handles
        for name in (*handle.inputs, handle.output)
    )
    table: dict[ComponentId, dict[int, float]] = {}
    removed: dict[tuple[str, int], float] = {}  # by tower and layer
    for handle in loaded.handles:
        component = handle.component
        norms = _squared_norms(handle, torch.from_numpy(ranking.units[component.id].copy()))
        table[component.id] = {}
        for width in widths[component.id]:
            nats = 0.0
            for name, squares in norms.items():
                kept = float(squares[:width].sum())
                fitted = (compensation or {}).get((component.id, width))
                matrix = None if fitted is None else fitted.weight
                if form == "compensated" and name == handle.output and matrix is not None:
                    kept = float(matrix.double().pow(2).sum())
                weight = handle.linear(name).weight.numel() / total
                place = f"{component.id}: {name} at width {width}"
                nats += weight * 0.5 * _log_ratio(kept, float(squares.sum()), place)
            table[component.id][width] = nats
        absent = -sum(
            handle.linear(name).weight.numel()
            / total
            * math.log1p(math.sqrt(float(squares.sum())))
            for name, squares in norms.items()
        )
        key = (component.tower, component.layer)
        # No width may have less risk than a removed component.
        removed[key] = removed.get(key, 0.0) + min(absent, *table[component.id].values())
    for block in loaded.blocks:
        key = (block.component.tower, block.component.layer)
        table[block.component.id] = {0: removed.get(key, 0.0), 1: 0.0}
    if loaded.parts.tokens is not None:  # they have no weights
        table[IMAGE_TOKENS.id] = dict.fromkeys(loaded.parts.tokens.widths, 0.0)
    return table


def risk(policy: Policy, loaded: LoadedModel, table: RiskTable) -> float:
    """Return Omega of ``policy``, in nats; 0 for the dense policy."""
    return sum(
        table[component][width]
        for component, width in policy.active_widths.items()
        if width in table[component]
    )


def _log_ratio(kept: float, dense: float, place: str) -> float:
    """Return the logarithm of a ratio of squared norms: infinite risks would win or lose a study.

    Raises:
        ModelError: A norm is zero or not finite.
    """
    if not (0 < kept < math.inf and 0 < dense < math.inf):
        raise ModelError(
            f"{place} has the squared norm {kept:g}, and {dense:g} in the dense model.",
            hint="The structural-risk term needs finite weights that are not all zero; with "
            "quality.risk = 'paper', the original weights count.",
        )
    return math.log(kept / dense)


def _squared_norms(handle: ComponentHandle, units: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the squared norm of each matrix by unit in ranking order, shape ``(width,)`` each."""
    norms = {}
    for name, rows in handle.inputs.items():
        squares = handle.linear(name).weight.detach().double().pow(2).sum(1).cpu()
        norms[name] = rows.sum_by_unit(squares, handle.component.width)[units]
    squares = handle.linear(handle.output).weight.detach().double().pow(2).sum(0).cpu()
    norms[handle.output] = squares.reshape(-1, handle.columns).sum(1)[units]
    for name, squares in norms.items():
        if not float(squares[0]) > 0:
            raise ModelError(
                f"{handle.component.id}: the first unit of {name} is all zero.",
                hint="The structural-risk term needs weights; prune dead units away first.",
            )
    return norms
