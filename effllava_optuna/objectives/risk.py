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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Order, Policy, SiteId
    from effllava_optuna.surgery import Handle, Loaded, Refit

    RiskTable = Mapping[SiteId, Mapping[int, float]]

FORMS = ("paper", "refit")


def risk_table(
    loaded: Loaded,
    order: Order,
    widths: Mapping[SiteId, Sequence[int]],
    *,
    form: str = "paper",
    refit: Refit | None = None,
) -> dict[SiteId, dict[int, float]]:
    """Tabulate each site's share of Omega at each width, in nats.

    Args:
        loaded: The model, not arranged.
        order: Which units stay.
        widths: Numbers of units by site.
        form: ``paper``: norms of the original weights of the units that stay; 0 for the dense
            model and growing with every width. ``refit``: the output matrices are those that a
            trial runs; a refit can raise a norm above the dense one.
        refit: The fits, for ``refit``.

    Raises:
        ModelError: The form is unknown, or a matrix is all zero.
    """
    if form not in FORMS:
        raise ModelError(f"There is no risk form {form!r}.", hint=f"Use {' or '.join(FORMS)}.")
    total = sum(
        handle.linear(name).weight.numel()
        for handle in loaded.handles
        for name in (*handle.inputs, handle.output)
    )
    table: dict[SiteId, dict[int, float]] = {}
    gone: dict[tuple[str, int], float] = {}
    for handle in loaded.handles:
        site = handle.site
        shares = _squared_norms(handle, torch.from_numpy(order.units[site.id].copy()))
        table[site.id] = {}
        for width in widths[site.id]:
            nats = 0.0
            for name, squares in shares.items():
                kept = float(squares[:width].sum())
                fitted = (refit or {}).get((site.id, width))
                matrix = None if fitted is None else fitted.weight
                if form == "refit" and name == handle.output and matrix is not None:
                    kept = float(matrix.double().pow(2).sum())
                weight = handle.linear(name).weight.numel() / total
                nats += weight * 0.5 * math.log(kept / float(squares.sum()))
            table[site.id][width] = nats
        norms = {name: math.sqrt(float(squares.sum())) for name, squares in shares.items()}
        absent = -sum(
            handle.linear(name).weight.numel() / total * math.log1p(norm)
            for name, norm in norms.items()
        )
        here = (site.tower, site.layer)
        # No width may carry less risk than none at all.
        gone[here] = gone.get(here, 0.0) + min(absent, *table[site.id].values())
    for block in loaded.blocks:
        here = (block.site.tower, block.site.layer)
        table[block.site.id] = {0: gone.get(here, 0.0), 1: 0.0}
    return table


def risk(policy: Policy, loaded: Loaded, table: RiskTable) -> float:
    """Sum Omega of ``policy`` up, in nats; 0 for the dense policy."""
    kept = policy.working(loaded.anatomy)
    return sum(table[site][count] for site, count in kept.items() if count in table[site])


def _squared_norms(handle: Handle, units: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give each matrix's squared norm by unit, in order: shape ``(width,)`` each."""
    norms = {}
    for name, rows in handle.inputs.items():
        squares = handle.linear(name).weight.detach().double().pow(2).sum(1).cpu()
        norms[name] = rows.sums(squares, handle.site.width)[units]
    squares = handle.linear(handle.output).weight.detach().double().pow(2).sum(0).cpu()
    norms[handle.output] = squares.reshape(-1, handle.columns).sum(1)[units]
    for name, squares in norms.items():
        if not float(squares[0]) > 0:
            raise ModelError(
                f"{handle.site.id}: the first unit of {name} is all zero.",
                hint="The structural-risk term needs weights; prune dead units away first.",
            )
    return norms
