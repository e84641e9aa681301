"""Compute the image features of pictures again, without running the vision tower.

What a family does between its tower and its decoder (selecting, shuffling, packing of tiles,
line breaks) is the family's own code. So that code runs as it is: only the tower returns
placeholders of the right shapes at once, and the connector reads the stored features.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import ModelOutput

from effllava_optuna.surgery.apply.replaced_forward import replaced_forward
from effllava_optuna.surgery.structure.inspection import connector, decoder_siblings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn


@dataclass(frozen=True, slots=True)
class _Placeholder:
    """The shape and dtype of a tensor whose values nothing reads."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, device: torch.device) -> torch.Tensor:
        """Return zeros that take no memory."""
        return torch.zeros((), dtype=self.dtype, device=device).expand(self.shape)


@dataclass(frozen=True, slots=True)
class RecordedVision:
    """Pictures that have been through the vision tower.

    Attributes:
        arguments: Arguments of the model's ``get_image_features``, pictures included.
        joint: Path of the connector, the module between tower and decoder.
        features: Its input, shape ``(pictures or tiles, tokens, channels)``.
        towers: By module path, what the vision tower returned, with placeholders for tensors.
    """

    arguments: Mapping[str, Any]
    joint: str
    features: torch.Tensor
    towers: Mapping[str, Any]

    def select(self, index: torch.Tensor, rows: int) -> RecordedVision | None:
        """Select pictures by row; None if not everything has ``rows`` rows."""
        tensors = [self.features, *self.arguments.values()]
        shapes: list[tuple[int, ...]] = []
        _mapped(self.towers, _Placeholder, lambda each: shapes.append(each.shape))
        if {shape[0] for shape in (*shapes, *(tensor.shape for tensor in tensors))} != {rows}:
            return None
        arguments = {n: value[index.to(value.device)] for n, value in self.arguments.items()}
        return replace(
            self,
            arguments=arguments,
            features=self.features[index.to(self.features.device)],
            towers=_mapped(
                self.towers,
                _Placeholder,
                lambda each: replace(each, shape=(len(index), *each.shape[1:])),
            ),
        )

    def to(self, device: torch.device | str) -> RecordedVision:
        """Copy the tensors to ``device``."""
        return replace(
            self,
            arguments={name: value.to(device) for name, value in self.arguments.items()},
            features=self.features.to(device),
        )

    def image_features(self, model: Any) -> Any:
        """Run everything after the vision tower; gradients flow to the connector.

        Returns:
            What the decoder reads in the place of image tokens, as the family returns it: a
            tensor, or one tensor for each picture.
        """
        with ExitStack() as undo:
            for path, output in self.towers.items():
                returned = partial(_returned, self._filled(output))
                undo.enter_context(replaced_forward(model.get_submodule(path), returned))
            hook = model.get_submodule(self.joint).register_forward_pre_hook(
                lambda _, arguments: (self.features, *arguments[1:])
            )
            undo.callback(hook.remove)
            return model.get_image_features(**self.arguments).pooler_output

    def _filled(self, output: Any) -> Any:
        device = self.features.device
        return _mapped(output, _Placeholder, lambda each: each.tensor(device))


def record_vision(model: Any, inputs: Mapping[str, Any]) -> RecordedVision | None:
    """Run the vision tower on the pictures among ``inputs``.

    Args:
        model: The model.
        inputs: Keyword arguments of the model.

    Returns:
        None if the features cannot be stored: the model takes no image features, no single module
        connects tower and decoder, it does not run once for all pictures, or the features that
        are computed from what is stored differ.
    """
    joint = connector(model)
    takes_features = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if joint is None or not takes_features or not hasattr(model, "get_image_features"):
        return None
    names = inspect.signature(model.get_image_features).parameters
    arguments = {name: value for name, value in inputs.items() if name in names}
    paths = {module: path for path, module in model.named_modules()}
    connected: list[Any] = []
    towers: list[tuple[str, Any]] = []

    def record_output(tower: nn.Module, _: object, output: Any) -> None:
        # At once: a family adds the image features to what its tower returned.
        towers.append((paths[tower], _mapped(output, torch.Tensor, _placeholder)))

    with ExitStack() as undo:
        for module in decoder_siblings(model):
            if module is not joint:
                undo.callback(module.register_forward_hook(record_output).remove)
        hook = joint.register_forward_pre_hook(lambda _, read: connected.append(read))
        undo.callback(hook.remove)
        expected = model.get_image_features(**arguments).pooler_output
    if len(connected) != 1 or not connected[0] or len(towers) != 1:
        return None
    recorded = RecordedVision(arguments, paths[joint], connected[0][0].detach(), dict(towers))
    computed = recorded.image_features(model)
    same = all(map(torch.equal, list(computed), list(expected)))
    return recorded if same and len(computed) == len(expected) else None


def _placeholder(tensor: torch.Tensor) -> _Placeholder:
    return _Placeholder(tuple(tensor.shape), tensor.dtype)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Copy what a tower returned, and change each object of ``kind`` in it."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _mapped(part, kind, change) for name, part in value.items()})
    if isinstance(value, dict):
        return {name: _mapped(part, kind, change) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(part, kind, change) for part in _without_gaps(value))
    return value


def _without_gaps(layers: tuple[Any, ...] | list[Any]) -> tuple[Any, ...] | list[Any]:
    """Replace layers that were not computed by another one.

    Only the layer that is read is. In a sliced model, whose unread blocks are omitted, it has
    another number.
    """
    computed = [layer for layer in layers if layer is not None]
    if not computed or len(computed) == len(layers):
        return layers
    return [computed[0] if layer is None else layer for layer in layers]


def _returned(output: Any, *_: object, **__: object) -> Any:
    return output
