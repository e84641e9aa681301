"""Read the weights of the projector, and replace them for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from effllava_optuna.surgery.structure.inspection import projector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


def projector_state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Copy the weights of the projector to the CPU."""
    return {
        name: weight.detach().to("cpu", copy=True)
        for name, weight in projector(loaded.model).state_dict().items()
    }


@contextmanager
def use_projector(
    loaded: LoadedModel, state: Mapping[str, torch.Tensor] | None
) -> Iterator[LoadedModel]:
    """Replace the weights of the projector; restore them on exit, bit by bit.

    Args:
        loaded: The model.
        state: Weights by parameter name; None: those that the model has.
    """
    if state is None:
        yield loaded
        return
    module = projector(loaded.model)
    with loaded.lock:
        current = module.state_dict()
        copies = {
            name: weight.to(current[name], copy=True) if name in current else weight
            for name, weight in state.items()
        }
        before: list[tuple[Any, Any]] = [
            (entries, dict(entries))
            for part in module.modules()
            for entries in (part._parameters, part._buffers)
        ]
        try:
            # A state that does not fit raises only after the weights that fit are assigned.
            module.load_state_dict(copies, assign=True)
            yield loaded
        finally:
            for entries, original in before:
                entries.update(original)
