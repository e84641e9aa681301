"""Run samples as far as one component after another, and each block once.

A fit in the context of pruned layers needs the inputs of every component in turn, each with other
weights in the layers before it. From the embeddings, that takes time quadratic in the depth. So
the input of the last block that was entered is kept, and the next run starts there: the blocks
before it return what they read, and it reads what was kept. What a family computes around its
blocks is the family's own code, and runs as it is.

That a block reads nothing else of the earlier ones is a hypothesis (in Gemma 3n, blocks read the
keys of others). For each component it is tested on the dense model, with one batch, by a checksum
of a whole run. If it is false, towers run again from their first block, or the model from the
embeddings.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.surgery.apply.replaced_forward import replaced_forward
from effllava_optuna.surgery.importance.unit_statistics import capture_inputs, last_positions
from effllava_optuna.surgery.structure.recognition import find_stacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

# What is skipped: all blocks that ran, those of the same stack, or none.
_ALL, _OWN_STACK, _NONE = 2, 1, 0
_CONSEQUENCES = {
    _OWN_STACK: "the vision tower runs for each component",
    _NONE: "all blocks run for each component, which takes long",
}
_TOLERANCE = 1e-5  # of checksums: some kernels of a GPU add in any order
_DENSE = -1  # in the place of the number of a fit

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor in main memory, and the device that it is computed on."""

    tensor: torch.Tensor
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run starts.

    Attributes:
        block: The block whose input is known.
        hidden: Its input.
        before: The blocks that ran before it and can be skipped, with what follows the hidden
            state in their output; None: nothing, not even a tuple.
    """

    block: nn.Module
    hidden: _Kept
    before: Mapping[nn.Module, tuple[None, ...] | None]


class ResumedRuns:
    """Runs calibration samples through networks of one model, component after component.

    Between the calls for two components, the weights of a network may change in the first one
    and in those after it, not before. Main memory: for each network and batch, one hidden state;
    for each batch, what the components of one block read in the dense model.

    Args:
        loaded: The dense model.
        batches: Calibration samples.
    """

    def __init__(self, loaded: LoadedModel, batches: Sequence[CalibrationBatch]) -> None:
        self._loaded, self._batches = loaded, batches
        self._stacks = {
            block: number
            for number, (_, stack) in enumerate(find_stacks(loaded.model))
            for block in stack
        }
        self._together = _by_block(loaded.handles, self._stacks)
        self._starts: dict[tuple[int, int], _Start] = {}
        self._dense: dict[ComponentId, dict[int, _Kept | None]] = {}
        pictured = (n for n, batch in enumerate(batches) if "pixel_values" in batch.inputs)
        self._tested_batch = next(pictured, 0)
        self._checksums: Mapping[ComponentId, tuple[float, float]] | None = None
        self._skipped: dict[str, int] = {}

    def dense(self, handle: ComponentHandle, number: int) -> torch.Tensor | None:
        """Run a batch as far as one component in the dense model.

        Args:
            handle: The component; in forward order.
            number: Index of the batch.

        Returns:
            The inputs of its output matrix, shape ``(tokens, columns)``, float64; None if the
            batch does not run the component.
        """
        component, handles = handle.component.id, self._together[handle.component.id]
        if component not in self._dense:
            self._dense = {each.component.id: {} for each in handles}
            self._test(handles)
        if number not in self._dense[component]:
            found = self._inputs(self._loaded, handles, (_DENSE, number))
            for name, inputs in self._dense.items():
                inputs[number] = _in_main_memory(found.get(name))
        kept = self._dense[component][number]
        return None if kept is None else _by_token(kept.tensor.to(kept.device))

    def pruned(
        self, network: LoadedModel, handle: ComponentHandle, number: int, fit: int = 0
    ) -> torch.Tensor | None:
        """Run a batch as far as one component in a network that is pruned before it.

        Args:
            network: The narrowed model.
            handle: The component; in forward order, after its call of `dense`.
            number: Index of the batch.
            fit: Number that distinguishes networks with other weights.

        Returns:
            As `dense`.
        """
        x = self._inputs(network, [handle], (fit, number)).get(handle.component.id)
        return None if x is None else _by_token(x)

    def _inputs(
        self, network: LoadedModel, handles: Sequence[ComponentHandle], key: tuple[int, int]
    ) -> dict[ComponentId, torch.Tensor]:
        captured, start = self._run(network, handles, key)
        if start is not None:
            self._starts[key] = start
        return captured

    def _test(self, handles: Sequence[ComponentHandle]) -> None:
        """Skip fewer blocks, until the inputs of some components are those of a whole run."""
        if self._checksums is None:
            self._checksums = self._whole_run()
        expected = {
            handle.component.id: self._checksums[handle.component.id]
            for handle in handles
            if handle.component.id in self._checksums
        }
        tower = handles[0].component.tower
        before = self._skipped.setdefault(tower, _ALL)
        while self._skipped[tower] != _NONE:
            try:
                captured, _ = self._run(self._loaded, handles, (_DENSE, self._tested_batch))
                found = {name: _checksum(x) for name, x in captured.items()}
            except torch.OutOfMemoryError:
                raise
            except Exception:  # blocks may raise anything for what they do not expect
                found = {}
            if found.keys() == expected.keys() and all(
                math.isclose(one, other, rel_tol=_TOLERANCE)
                for name, sums in expected.items()
                for one, other in zip(found[name], sums, strict=True)
            ):
                break
            self._skipped[tower] -= 1
        if self._skipped[tower] < before:
            _logger.info(
                f"{handles[0].component.id} reads more than the output of the block before it: "
                f"{_CONSEQUENCES[self._skipped[tower]]}."
            )

    @torch.no_grad()
    def _whole_run(self) -> dict[ComponentId, tuple[float, float]]:
        """Run a batch through the dense model, and return checksums by component."""
        sums: dict[ComponentId, tuple[float, float]] = {}
        with self._loaded.lock, ExitStack() as undo:
            for handle in self._loaded.handles:

                def add(
                    _: Any, read: tuple[torch.Tensor], component: ComponentId = handle.component.id
                ) -> None:
                    sums[component] = _checksum(read[0])

                hook = handle.linear(handle.output).register_forward_pre_hook(add)
                undo.callback(hook.remove)
            self._forward(self._loaded, self._tested_batch)
        return sums

    @torch.no_grad()
    def _run(
        self, network: LoadedModel, handles: Sequence[ComponentHandle], key: tuple[int, int]
    ) -> tuple[dict[ComponentId, torch.Tensor], _Start | None]:
        """Run a batch from where its last run ended, until components of one block have run.

        Returns:
            The inputs of the components that have run, and where the next run may start; None if
            one of them has not.
        """
        skipped = self._skipped.get(handles[0].component.tower, _ALL)
        start = self._starts.get(key) if skipped != _NONE else None
        before = {} if start is None else dict(start.before)
        passage = _Passage(before)
        with network.lock, ExitStack() as undo:
            captured = undo.enter_context(capture_inputs(handles))

            def stop(*_: object) -> None:
                if len(captured) == len(handles):
                    raise _ComponentsReached

            if start is not None:
                for block, rest in before.items():
                    if skipped == _ALL or self._stacks[block] == self._stacks[start.block]:
                        forward = partial(_read, rest)
                        undo.enter_context(replaced_forward(block, forward))
                hidden = start.hidden.tensor.to(start.hidden.device)
                hook = start.block.register_forward_pre_hook(
                    partial(_replace_hidden, hidden), with_kwargs=True
                )
                undo.callback(hook.remove)
            for block in self._stacks:
                if block not in before:
                    entered = block.register_forward_pre_hook(passage.enter, with_kwargs=True)
                    undo.callback(entered.remove)
                    undo.callback(block.register_forward_hook(passage.leave).remove)
            for handle in handles:
                output = handle.linear(handle.output)
                undo.callback(output.register_forward_pre_hook(stop).remove)
            try:
                self._forward(network, key[1])
            except _ComponentsReached:
                return captured, passage.start()
        return captured, None

    def _forward(self, network: LoadedModel, number: int) -> None:
        batch = self._batches[number].inputs
        inputs = {name: value.to(network.device) for name, value in batch.items()}
        network.model(**inputs, logits_to_keep=last_positions(network, inputs, 1))


class _ComponentsReached(Exception):
    """The output matrix of the last wanted component is about to run."""


def _by_block(
    handles: Sequence[ComponentHandle], blocks: Iterable[nn.Module]
) -> dict[ComponentId, Sequence[ComponentHandle]]:
    """Return, by component, the components of its block."""
    block_of = {module: block for block in blocks for module in block.modules()}
    groups: dict[nn.Module, list[ComponentHandle]] = {}
    for handle in handles:
        groups.setdefault(block_of.get(handle.module, handle.module), []).append(handle)
    return {handle.component.id: group for group in groups.values() for handle in group}


@dataclass
class _Passage:
    """What one run has passed.

    Attributes:
        before: The blocks that can be skipped next time; those that are left are added.
        entered: The last block that was entered, its input, and the blocks before it.
    """

    before: dict[nn.Module, tuple[None, ...] | None]
    entered: tuple[nn.Module, Any, dict[nn.Module, tuple[None, ...] | None]] | None = None

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the input of a block."""
        self.entered = (block, _hidden_of(args, kwargs), dict(self.before))

    def leave(self, block: nn.Module, _: object, output: Any) -> None:
        """Remember a block that can be skipped: its output has the shape of its input."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        entered, read = (None, None) if self.entered is None else self.entered[:2]
        if (
            entered is block
            and isinstance(read, torch.Tensor)
            and isinstance(hidden, torch.Tensor)
            and hidden.shape == read.shape
            and all(part is None for part in rest)
        ):
            self.before[block] = tuple(rest) if isinstance(output, tuple) else None

    def start(self) -> _Start | None:
        """Return where the next run may start; None: at the embeddings."""
        if self.entered is None:
            return None
        block, hidden, before = self.entered
        kept = _in_main_memory(hidden) if isinstance(hidden, torch.Tensor) else None
        return None if kept is None else _Start(block, kept, before)


def _hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the hidden state that a block reads: its first argument."""
    return args[0] if args else kwargs.get("hidden_states")


def _read(rest: tuple[None, ...] | None, *args: Any, **kwargs: Any) -> Any:
    """Return what a block reads, in the form of its output."""
    hidden = _hidden_of(args, kwargs)
    return hidden if rest is None else (hidden, *rest)


def _replace_hidden(
    hidden: torch.Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def _by_token(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2).double()


def _checksum(x: torch.Tensor) -> tuple[float, float]:
    values = x.double()
    return float(values.abs().sum()), float(values.square().sum())


def _in_main_memory(x: torch.Tensor | None) -> _Kept | None:
    return None if x is None else _Kept(x.to("cpu"), x.device)
