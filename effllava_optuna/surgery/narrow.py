"""Run a policy's network without building it: masked for reading, narrowed for speed.

`masked` zeroes what the removed units would say: slow, and obvious. `narrowed` makes the weights
themselves smaller for as long as it lasts: units are permuted into the order first, which does
not change the function of the model, and then every policy is a prefix of the same memory.
`sliced` builds the smaller model for good. All three compute the same function.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery.depth import dropped, trim
from effllava_optuna.surgery.discover import LANGUAGE
from effllava_optuna.surgery.handle import Refusal, elements
from effllava_optuna.surgery.loaded import Cut, Loaded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from effllava_optuna.policy import Order, SiteId
    from effllava_optuna.surgery.handle import Block, Handle
    from effllava_optuna.surgery.refit import Fitted, Refit


@dataclass
class _Arrangement:
    """The order into which units are permuted at present, and how many `with` rely on it."""

    order: Order
    users: int = 0


# By model: it is the weights that are permuted, whichever `Loaded` they are reached through.
_ARRANGED: WeakKeyDictionary[nn.Module, _Arrangement] = WeakKeyDictionary()


def arrangement(loaded: Loaded) -> Order | None:
    """Give the order into which the units are permuted at present; None: as they came."""
    present = _ARRANGED.get(loaded.model)
    return None if present is None else present.order


def _ranked(order: Order, handle: Handle) -> torch.Tensor:
    return torch.from_numpy(order.units[handle.site.id].copy())


def _is_arranged(loaded: Loaded, order: Order) -> bool:
    """Tell whether the units are permuted into ``order``; refuse an order that cannot be used."""
    if order.anatomy != loaded.anatomy.digest:
        raise ModelError(
            f"The order belongs to anatomy {order.anatomy}, the model has "
            f"{loaded.anatomy.digest}.",
            hint="Rank the units of this model.",
        )
    for handle in loaded.handles:
        site = handle.site
        if len(order.units.get(site.id, ())) != site.width:
            raise ModelError(
                f"The order does not rank the {site.width} units of {site.id}.",
                hint="Rank the units of this model.",
            )
        if handle.linear(handle.output).weight.shape[1] != site.width * handle.columns:
            raise ModelError(
                f"{loaded.source} is narrowed at present.",
                hint="Leave the other `with narrowed(...)` first.",
            )
    present = arrangement(loaded)
    if present is not None and present.digest != order.digest:
        raise ModelError(
            f"{loaded.source} is arranged by order {present.digest}, not {order.digest}.",
            hint="Leave `with arranged(...)` before using another order.",
        )
    return present is not None


@contextmanager
def masked(loaded: Loaded, policy: Policy, order: Order) -> Iterator[Loaded]:
    """Silence the units that ``policy`` removes; nothing of the model changes.

    Args:
        loaded: The model.
        policy: Units kept at each site.
        order: Which units those are.

    Raises:
        PolicyError: The policy belongs to another anatomy.
        ModelError: The order does.
    """
    policy.check(loaded.anatomy)
    hooks = []
    with loaded.lock:
        in_order = _is_arranged(loaded, order)
        kept = policy.working(loaded.anatomy)
        for handle in loaded.handles:
            ranked = torch.arange(handle.site.width) if in_order else _ranked(order, handle)
            mask = torch.zeros(handle.site.width * handle.columns, dtype=torch.bool)
            mask[elements(ranked[: kept[handle.site.id]], handle.columns)] = True
            mask = mask.to(handle.linear(handle.output).weight.device)

            def silence(
                _: nn.Module, inputs: tuple[torch.Tensor], mask: torch.Tensor = mask
            ) -> torch.Tensor:
                return inputs[0].masked_fill(~mask, 0)

            hooks.append(handle.linear(handle.output).register_forward_pre_hook(silence))
        hooks += [
            block.module.register_forward_hook(_passed, with_kwargs=True)
            for block in _absent(loaded, kept)
        ]
        try:
            yield loaded
        finally:
            for hook in hooks:
                hook.remove()


def _absent(loaded: Loaded, kept: Mapping[SiteId, int]) -> list[Block]:
    return [block for block in loaded.blocks if not kept[block.site.id]]


def _passed(_: nn.Module, inputs: Any, named: Mapping[str, Any], output: Any) -> Any:
    """Return what a block was given for what it computed."""
    given = inputs[0] if inputs else named["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given


@contextmanager
def arranged(loaded: Loaded, order: Order) -> Iterator[Loaded]:
    """Permute the units into ``order``; on exit every parameter is as it was, bit for bit.

    The function of the model does not change (beyond the rounding of reordered sums). The lock
    is held on the way in and out only: meanwhile all threads may narrow the model in turn.
    """
    with loaded.lock:
        if not _is_arranged(loaded, order):
            _ARRANGED[loaded.model] = _permuted(loaded, order)
        arrangement = _ARRANGED[loaded.model]
        arrangement.users += 1
    try:
        yield replace(loaded, order=order)
    finally:
        with loaded.lock:
            arrangement.users -= 1
            if not arrangement.users:
                del _ARRANGED[loaded.model]
                for handle in loaded.handles:
                    _permute(handle, torch.argsort(_ranked(order, handle)))


def _permuted(loaded: Loaded, order: Order) -> _Arrangement:
    done: list[Handle] = []
    try:
        for handle in loaded.handles:
            _permute(handle, _ranked(order, handle))
            done.append(handle)
    except BaseException:
        for handle in done:
            _permute(handle, torch.argsort(_ranked(order, handle)))
        raise
    return _Arrangement(order)


def _permute(handle: Handle, units: torch.Tensor) -> None:
    """Put ``units`` first to last, in the memory that the weights already have."""
    with torch.no_grad():
        for name, owned in handle.inputs.items():
            linear = handle.linear(name)
            rows = owned.index(units, handle.site.width).to(linear.weight.device)
            linear.weight.copy_(linear.weight[rows])
            if linear.bias is not None:
                linear.bias.copy_(linear.bias[rows])
        output = handle.linear(handle.output)
        columns = elements(units, handle.columns).to(output.weight.device)
        output.weight.copy_(output.weight[:, columns])


@contextmanager
def narrowed(
    loaded: Loaded, policy: Policy, order: Order, refit: Refit | None = None
) -> Iterator[Loaded]:
    """Make the model as small as ``policy`` says, for as long as the ``with`` lasts.

    Args:
        loaded: The model; inside `arranged` by the same order, entering costs views only.
        policy: Units kept at each site. The dense policy touches nothing.
        order: Which units those are.
        refit: By site and count: what the output matrix and its bias become for the units that
            stay. Sites that are not in it keep the columns they have.

    Raises:
        PolicyError: The policy belongs to another anatomy.
        ModelError: The order does, a fit has another shape, or the model is narrowed already.
    """
    policy.check(loaded.anatomy)
    with ExitStack() as undo:
        undo.enter_context(loaded.lock)
        if not _is_arranged(loaded, order) and policy == Policy.dense(loaded.anatomy):
            yield loaded
            return
        inside = undo.enter_context(arranged(loaded, order))
        kept = policy.working(loaded.anatomy)
        undo.enter_context(dropped(_absent(loaded, kept)))
        changes = _Changes()
        undo.callback(changes.undo)
        for handle in inside.handles:
            site = handle.site.id
            if kept[site] not in (0, handle.site.width):
                _narrow(handle, kept[site], (refit or {}).get((site, kept[site])), changes)
        yield inside


class _Changes:
    """Entries of dictionaries that are set for a while: what a module keeps its weights in.

    Setting an attribute of a module does the same, at many times the price.
    """

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, entries: dict[str, Any], name: str, value: Any) -> None:
        """Set an entry that is there."""
        self._before.append((entries, name, entries[name]))
        entries[name] = value

    def undo(self) -> None:
        """Put all back, the last change first."""
        while self._before:
            entries, name, value = self._before.pop()
            entries[name] = value


def _narrow(handle: Handle, count: int, fitted: Fitted | None, changes: _Changes) -> None:
    _check(handle, count, fitted)
    for name, owned in handle.inputs.items():
        # What is stacked in one matrix is copied; all else is a view.
        rows = (
            slice(owned.each * count)
            if len(owned.parts) == 1
            else owned.index(torch.arange(count), handle.site.width)
        )
        entries = handle.linear(name)._parameters
        for part in ("weight", "bias"):
            whole = entries[part]
            if whole is not None:
                _put(entries, part, whole[rows], changes)
    output = handle.linear(handle.output)
    entries, dense = output._parameters, output.weight
    if fitted is None or fitted.weight is None:
        _put(entries, "weight", dense[:, : handle.columns * count], changes)
    else:
        _put(entries, "weight", fitted.weight.to(dense.device, dense.dtype), changes)
    if fitted is not None and fitted.bias is not None:  # there may have been none
        _put(entries, "bias", fitted.bias.to(dense.device, dense.dtype), changes)
    for name, each in handle.counts.items():
        changes.set(vars(handle.module), name, each * count)


def _put(entries: dict[str, Any], name: str, value: torch.Tensor, changes: _Changes) -> None:
    changes.set(entries, name, nn.Parameter(value, requires_grad=False))


def _check(handle: Handle, count: int, fitted: Fitted | None) -> None:
    """Refuse a fit whose shapes are not those of the site's output matrix and bias."""
    if fitted is None:
        return
    out = handle.linear(handle.output).out_features
    for part, shape in ((fitted.weight, (out, handle.columns * count)), (fitted.bias, (out,))):
        if part is not None and part.shape != shape:
            raise ModelError(
                f"The fit of {handle.site.id} for {count} units has shape "
                f"{tuple(part.shape)} instead of {shape}.",
                hint="Fit the output matrices of this model again.",
            )


def sliced(loaded: Loaded, policy: Policy, order: Order, refit: Refit | None = None) -> Loaded:
    """Build the smaller model that ``policy`` stands for; ``loaded`` is not changed.

    Blocks of a vision tower that nothing reads (the last one of LLaVA) are left out.

    Args:
        loaded: The model.
        policy: Units kept at each site.
        order: Which units those are.
        refit: As for `narrowed`.

    Returns:
        A model of its own, whose anatomy has the widths that were kept.

    Example:
        >>> from effllava_optuna import Policy, load, rank_units
        >>> loaded = load("digits-vlm", device="cpu")
        >>> half = Policy.uniform(loaded.anatomy, keep=0.5)
        >>> small = sliced(loaded, half, rank_units(loaded))
        >>> tuple(site.width for site in small.anatomy.sites[:2])
        (2, 192)
    """
    with narrowed(loaded, policy, order, refit) as small:
        # Views share the memory of the dense weights: what is kept must be a copy of its own.
        memo: dict[int, Any] = {}
        for parameter in small.model.parameters():
            own = nn.Parameter(parameter.detach().clone().contiguous(), requires_grad=False)
            memo[id(parameter)] = own
        model = copy.deepcopy(small.model, memo)
    trim(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    small = Loaded.of(
        model, loaded.processor, loaded.source, towers=loaded.towers, depth=loaded.depth
    )
    working = policy.working(loaded.anatomy)
    kept = {site.id: (working[site.id], site.width) for site in loaded.anatomy.sites}
    return replace(
        small,
        parts=small.parts.without(_still_refused(small, loaded, working)),
        cut=Cut(loaded.source, policy.anatomy, order.method, kept),
    )


def _still_refused(small: Loaded, dense: Loaded, working: Mapping[SiteId, int]) -> list[Refusal]:
    """Give the sites of a slice that the test of the dense model refused, by their new numbers."""
    gone = [block.site.layer for block in _absent(dense, working)]
    found = []
    for refusal in dense.refused:
        tower, _, rest = refusal.place.partition(".")
        layer, _, kind = rest.partition(".")
        if tower == LANGUAGE and int(layer) in gone:
            continue
        number = int(layer) - (sum(n < int(layer) for n in gone) if tower == LANGUAGE else 0)
        found.append(Refusal(f"{tower}.{number:02d}.{kind}", refusal.reason))
    here = {site.id for site in small.anatomy.sites}
    return [refusal for refusal in found if refusal.place in here]
