"""Fit one policy's output matrices layer after layer, each to the layers that are pruned already.

The fits of `compensate` serve every policy, because each takes the inputs that its site has in
the dense model. For one policy more is known: what the pruned layers before a site really give
it. With x the dense input and x' what the units that stay see, the fit is

    W' = argmin E[w ||W x - W' x'||^2] = W E[w x x'^T] inv(E[w x' x'^T]).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery.calibrate import observe, watching
from effllava_optuna.surgery.narrow import arranged, narrowed
from effllava_optuna.surgery.refit import Fitted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import Order, SiteId
    from effllava_optuna.surgery.calibrate import Probe
    from effllava_optuna.surgery.handle import Handle
    from effllava_optuna.surgery.loaded import Loaded
    from effllava_optuna.surgery.moments import Moments
    from effllava_optuna.surgery.refit import Refit

DAMPING = 1e-2  # where none was chosen


def refit_in_sequence(
    loaded: Loaded,
    policy: Policy,
    order: Order,
    probes: Sequence[Probe],
    *,
    tokens: str = "gradient",
    damping: Mapping[SiteId, float] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Refit:
    """Fit ``policy`` in forward order, each site to what the sites before it have become.

    Token weights are those of the dense model. Each narrowed site is one sweep over ``probes``,
    forward and backward through the dense model and forward through the pruned one. Sites that
    stay dense are left as they are.

    Args:
        loaded: The model.
        policy: Units kept at each site.
        order: Which units those are.
        probes: Calibration samples.
        tokens: What tokens weigh: see `survey`.
        damping: By site, share of the mean of the diagonal of E[w x x^T] that is added to its
            diagonal: a pull towards the columns as they are. `DAMPING` where it has none.
        progress: Is told the share that is done.

    Returns:
        A refit for this policy alone.

    Raises:
        PolicyError: The policy belongs to another anatomy.
        ModelError: The order does, or moments cannot be factored.
    """
    policy.check(loaded.anatomy)
    kept = dict(zip((site.id for site in loaded.anatomy.sites), policy.keep, strict=True))
    # What has no output matrix, such as a whole block, is pruned from the beginning.
    matrices = {handle.site.id for handle in loaded.handles}
    before: dict[str, int] = {s: count for s, count in kept.items() if s not in matrices}
    refit: dict[tuple[SiteId, int], Fitted] = {}
    with arranged(loaded, order) as ready:
        for number, handle in enumerate(ready.handles):
            site = handle.site.id
            before[site] = kept[site]
            if kept[site] < handle.site.width:
                partial = Policy.of(ready.anatomy, before)
                told = _moments(ready, handle, partial, refit, probes, tokens)
                if told is not None:
                    share = (damping or {}).get(site, DAMPING)
                    refit[site, kept[site]] = Fitted(_fitted(handle, *told, share))
            if progress is not None:
                progress((number + 1) / len(ready.handles))
    return refit


def _moments(
    ready: Loaded,
    handle: Handle,
    partial: Policy,
    refit: Refit,
    probes: Sequence[Probe],
    tokens: str,
) -> tuple[Moments, Moments, Moments] | None:
    """Give the moments of x (its squares), x with x', and x'; None if the site does not run."""
    order = ready.order
    if order is None:
        raise ModelError(f"{ready.source} is not arranged.", hint="Use `with arranged(...)`.")
    total: tuple[Moments, Moments, Moments] | None = None
    for probe in probes:
        seen = next((seen for _, seen in observe(ready, [handle], probe, tokens=tokens)), None)
        if seen is None:
            continue
        caught: dict[SiteId, torch.Tensor] = {}
        inputs = {name: value.to(ready.device) for name, value in probe.inputs.items()}
        with (
            narrowed(ready, partial, order, refit) as network,
            watching([handle], caught),
            torch.no_grad(),
        ):
            network.model(**inputs, logits_to_keep=1)
        if handle.site.id not in caught:
            return None
        x = caught[handle.site.id].flatten(0, -2).double()
        mine = (seen.moments(seen.x, full=False), seen.moments(seen.x, x), seen.moments(x))
        if total is not None:
            mine = (total[0] + mine[0], total[1] + mine[1], total[2] + mine[2])
        total = mine
    return total


def _fitted(
    handle: Handle, dense: Moments, cross: Moments, own: Moments, damping: float
) -> torch.Tensor:
    weight = handle.linear(handle.output).weight.detach()
    mean = float(dense.squares.mean())
    ridge = damping * mean if mean > 0 else 1.0
    matrix, target = own.matrix, cross.matrix
    matrix.diagonal().add_(ridge)
    target.diagonal().add_(ridge)  # the columns that stay, as they are
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise ModelError(
            f"The moments of {handle.site.id} cannot be factored with damping {damping}.",
            hint="Use a larger damping or more calibration samples.",
        )
    found = torch.cholesky_solve((weight.double() @ target).T, lower).T
    return found.to(weight.dtype).contiguous()
