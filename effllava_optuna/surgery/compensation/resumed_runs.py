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

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.surgery.apply.replaced_forward import replaced_forward
from effllava_optuna.surgery.importance.unit_statistics import capture_inputs
from effllava_optuna.surgery.structure.recognition import find_stacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

# What is skipped: all blocks that ran, those of the same stack, or none.
_ALL, _OWN_STACK, _NONE = 2, 1, 0
_DENSE = -1  # in the place of the number of a fit


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
    hidden: torch.Tensor
    before: Mapping[nn.Module, tuple[None, ...] | None]


class ResumedRuns:
    """Runs calibration samples through networks of one model, component after component.

    Between the calls for two components, the weights of a network may change in the first one
    and in those after it, not before. Memory: for each network and batch, one hidden state.

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
        self._starts: dict[tuple[int, int], _Start] = {}
        pictured = (n for n, batch in enumerate(batches) if "pixel_values" in batch.inputs)
        self._tested_batch = next(pictured, 0)
        self._checksums: Mapping[ComponentId, tuple[float, float]] | None = None
        self._tested: ComponentId | None = None
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
        return self._inputs(self._loaded, handle, (_DENSE, number))

    def pruned(
        self, network: LoadedModel, handle: ComponentHandle, number: int, fit: int = 0
    ) -> torch.Tensor | None:
        """Run a batch as far as one component in a network that is pruned before it.

        Args:
            network: The narrowed model.
            handle: The component; in forward order.
            number: Index of the batch.
            fit: Number that distinguishes networks with other weights.

        Returns:
            As `dense`.
        """
        return self._inputs(network, handle, (fit, number))

    def _inputs(
        self, network: LoadedModel, handle: ComponentHandle, key: tuple[int, int]
    ) -> torch.Tensor | None:
        if self._tested != handle.component.id:
            self._test(handle)
        x, start = self._run(network, handle, key)
        if x is not None and start is not None:
            self._starts[key] = start
        return x

    def _test(self, handle: ComponentHandle) -> None:
        """Skip fewer blocks, until the inputs of a component are those of a whole run."""
        if self._checksums is None:
            self._checksums = self._whole_run()
        tower = handle.component.tower
        expected = self._checksums.get(handle.component.id)
        while self._skipped.setdefault(tower, _ALL) != _NONE:
            try:
                x, _ = self._run(self._loaded, handle, (_DENSE, self._tested_batch))
                same = expected == (None if x is None else _checksum(x))
            except Exception:  # blocks may raise anything for what they do not expect
                same = False
            if same:
                break
            self._skipped[tower] -= 1
        self._tested = handle.component.id

    @torch.no_grad()
    def _whole_run(self) -> dict[ComponentId, tuple[float, float]]:
        """Run a batch through the dense model, and return checksums by component."""
        sums: dict[ComponentId, tuple[float, float]] = {}
        with ExitStack() as undo:
            for handle in self._loaded.handles:

                def add(
                    _: Any, read: tuple[torch.Tensor], component: ComponentId = handle.component.id
                ) -> None:
                    sums[component] = _checksum(_by_token(read[0]))

                hook = handle.linear(handle.output).register_forward_pre_hook(add)
                undo.callback(hook.remove)
            self._forward(self._loaded, self._tested_batch)
        return sums

    @torch.no_grad()
    def _run(
        self, network: LoadedModel, handle: ComponentHandle, key: tuple[int, int]
    ) -> tuple[torch.Tensor | None, _Start | None]:
        """Run a batch from where its last run ended, and return where the next one may start."""
        skipped = self._skipped.get(handle.component.tower, _ALL)
        start = self._starts.get(key) if skipped != _NONE else None
        before = {} if start is None else dict(start.before)
        passage = _Passage(before)
        with network.lock, ExitStack() as undo:
            captured = undo.enter_context(capture_inputs([handle]))
            if start is not None:
                for block, rest in before.items():
                    if skipped == _ALL or self._stacks[block] == self._stacks[start.block]:
                        forward = partial(_read, rest)
                        undo.enter_context(replaced_forward(block, forward))
                hook = start.block.register_forward_pre_hook(
                    partial(_replace_hidden, start.hidden), with_kwargs=True
                )
                undo.callback(hook.remove)
            for block in self._stacks:
                if block not in before:
                    entered = block.register_forward_pre_hook(passage.enter, with_kwargs=True)
                    undo.callback(entered.remove)
                    undo.callback(block.register_forward_hook(passage.leave).remove)
            output = handle.linear(handle.output)
            undo.callback(output.register_forward_pre_hook(_stop).remove)
            try:
                self._forward(network, key[1])
            except _ComponentReached:
                return _by_token(captured[handle.component.id]), passage.start
        return None, None

    def _forward(self, network: LoadedModel, number: int) -> None:
        inputs = self._batches[number].inputs
        network.model(
            **{name: value.to(network.device) for name, value in inputs.items()},
            logits_to_keep=1,
        )


class _ComponentReached(Exception):
    """The output matrix of the wanted component is about to run."""


def _stop(*_: object) -> None:
    raise _ComponentReached


@dataclass
class _Passage:
    """What one run has passed.

    Attributes:
        before: The blocks that can be skipped next time; those that are left are added.
        start: The last block that was entered, with its input.
    """

    before: dict[nn.Module, tuple[None, ...] | None]
    start: _Start | None = field(default=None, init=False)

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the input of a block."""
        hidden = _hidden_of(args, kwargs)
        self.start = None
        if isinstance(hidden, torch.Tensor):
            self.start = _Start(block, hidden, dict(self.before))

    def leave(self, block: nn.Module, _: object, output: Any) -> None:
        """Remember a block that can be skipped: its output has the shape of its input."""
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if (
            self.start is not None
            and self.start.block is block
            and isinstance(hidden, torch.Tensor)
            and hidden.shape == self.start.hidden.shape
            and all(part is None for part in rest)
        ):
            self.before[block] = tuple(rest) if isinstance(output, tuple) else None


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
    return float(x.sum()), float(x.square().sum())
