"""Compare an exported checkpoint with the model it was written from.

What can be compared exactly is: the value of every weight, and the tokens of a greedy generation.
Logits are compared in float32 whatever the dtype of the model is: in half precision, two correct
programs differ by more than a missing head does.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from effllava_optuna.surgery.apply.decoding import generate_tokens
from effllava_optuna.surgery.apply.precision import HALF_PRECISION, in_float32

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

# Largest difference of logits up to 1 in size, in float32: memory layouts differ. Larger logits
# are compared relative to the largest.
_TOLERANCE = 1e-4
_NEW_TOKENS = 8
_INPUTS, _OUTPUTS, _STATE = "inputs", "outputs", "state.json"


@dataclass(frozen=True, slots=True)
class ReloadDifference:
    """The difference of reloaded models to the one that was written.

    Attributes:
        logits: Largest absolute difference of logits; NaN if one is NaN.
        expected_logit: The largest absolute logit of the model that was written.
        generation_equal: Whether greedy generation returns the same tokens.
        changed_weights: Names of the weights that are missing, added, or have other values.
    """

    logits: float
    expected_logit: float
    generation_equal: bool
    changed_weights: tuple[str, ...]

    def __str__(self) -> str:
        if self.changed_weights:
            count = len(self.changed_weights)
            return f"{count} weights differ, such as {self.changed_weights[0]}"
        return f"logits differ by {self.logits:.2g}, same tokens: {self.generation_equal}"

    @property
    def is_none(self) -> bool:
        """Return whether the models are the same, but for rounding in float32."""
        return (
            not self.changed_weights
            and self.generation_equal
            and within_tolerance(self.logits, self.expected_logit)
        )


def within_tolerance(difference: float, largest: float, rounding: float = 0.0) -> bool:
    """Return whether a difference of logits is rounding; NaN is not.

    Args:
        difference: The largest difference.
        largest: The largest logit.
        rounding: The effect of rounding on these logits, beyond that of float32.
    """
    return difference <= max(_TOLERANCE * max(1.0, largest), 4 * rounding)


@torch.no_grad()
def compute_outputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute the logits of the last position and greedily generated tokens, in float32.

    Returns:
        On the CPU: ``logits``, shape ``(samples, vocabulary)``, float32; and ``tokens``, shape
        ``(samples, 8)``.
    """
    device = model.get_input_embeddings().weight.device
    moved = {name: value.to(device) for name, value in inputs.items()}
    # Without an end token: a generation that ends at once shows nothing.
    shipped = model.generation_config
    greedy = GenerationConfig(
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        bos_token_id=shipped.bos_token_id,
        decoder_start_token_id=shipped.decoder_start_token_id,
    )
    with _tensors_restored(model), in_float32(model):
        logits = model(**moved).logits[:, -1].float()
        tokens = generate_tokens(model, moved, greedy)[:, moved["input_ids"].shape[1] :]
    return {"logits": logits.cpu().contiguous(), "tokens": tokens.cpu().contiguous()}


@contextmanager
def _tensors_restored(model: nn.Module) -> Iterator[None]:
    """Restore attributes that a forward pass sets to a tensor: Qwen2-VL stores positions."""
    stores = [store for module in model.modules() for store in (vars(module), module._buffers)]
    before = [dict(store) for store in stores]
    try:
        yield
    finally:
        for store, values in zip(stores, before, strict=True):
            set_names = [name for name, value in store.items() if isinstance(value, torch.Tensor)]
            store.update({name: values[name] for name in set_names if name in values})


def write_expected(
    pruned: nn.Module,
    written: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    scratch: Path,
    *,
    is_example: bool = False,
) -> None:
    """Write what a reloaded checkpoint must reproduce.

    Args:
        pruned: The model whose outputs are expected.
        written: The model whose weights were written: ``pruned``, or a padded copy.
        inputs: Keyword arguments of the model to compare outputs on.
        scratch: An existing directory.
        is_example: Whether the inputs are those that `build_example_inputs` returned.
    """
    save_file({name: value.contiguous() for name, value in inputs.items()}, scratch / _INPUTS)
    save_file(compute_outputs(pruned, inputs), scratch / _OUTPUTS)
    state = {
        "weights": _hash_weights(written),
        "buffers": _half_precision_buffers(pruned),
        "is_example": is_example,
    }
    (scratch / _STATE).write_text(json.dumps(state), encoding="utf-8")


def read_example(scratch: Path) -> dict[str, torch.Tensor] | None:
    """Return the inputs that `write_expected` wrote; None: they are not the example inputs."""
    is_example = json.loads((scratch / _STATE).read_text(encoding="utf-8"))["is_example"]
    return load_file(scratch / _INPUTS) if is_example else None


def compare_with_expected(models: Iterable[Any], scratch: Path) -> ReloadDifference:
    """Compare reloaded models with what `write_expected` wrote."""
    inputs, expected = load_file(scratch / _INPUTS), load_file(scratch / _OUTPUTS)
    state = json.loads((scratch / _STATE).read_text(encoding="utf-8"))
    differences, generation_equal, changed = [], True, set[str]()
    for model in models:
        changed |= {name for name, _ in _hash_weights(model).items() ^ state["weights"].items()}
        for name, dtype in state["buffers"].items():
            buffer = model.get_buffer(name)
            buffer.data = buffer.data.to(getattr(torch, dtype))
        outputs = compute_outputs(model, inputs)
        differences.append((outputs["logits"] - expected["logits"]).abs().max())
        generation_equal &= torch.equal(outputs["tokens"], expected["tokens"])
    return ReloadDifference(
        logits=float(torch.stack(differences).max()),
        expected_logit=float(expected["logits"].abs().max()),
        generation_equal=generation_equal,
        changed_weights=tuple(sorted(changed)),
    )


def _hash_weights(model: nn.Module) -> dict[str, str]:
    """Compute a hash of the shape and the values of every weight and stored buffer, by name.

    Values are compared in float32: a dtype may change if no value does.
    """
    hashes = {}
    for name, tensor in model.state_dict().items():
        values = tensor.float() if tensor.is_floating_point() else tensor
        content = hashlib.sha256(str(tuple(values.shape)).encode())
        content.update(values.cpu().contiguous().numpy())
        hashes[name] = content.hexdigest()
    return hashes


def _half_precision_buffers(model: nn.Module) -> dict[str, str]:
    """Return the dtype of the buffers that are not stored and were converted with the model.

    ``model.to(torch.bfloat16)`` rounds the frequencies of rotary embeddings; a checkpoint is
    loaded with exact ones. The comparison must not depend on that.
    """
    stored = model.state_dict()
    return {
        name: str(buffer.dtype).removeprefix("torch.")
        for name, buffer in model.named_buffers()
        if name not in stored and buffer.dtype in HALF_PRECISION
    }
