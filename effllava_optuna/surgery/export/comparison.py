"""Compare the outputs of an exported checkpoint with those of the model it was written from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

# Largest difference of logits up to 1 in size, for the same weights on the same machine: memory
# layouts differ. Larger logits are compared relative to the largest.
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_NEW_TOKENS = 8


@torch.no_grad()
def compute_outputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute the logits of the last position and greedily generated tokens.

    Returns:
        On the CPU: ``logits``, shape ``(samples, vocabulary)``, float32; and ``tokens``, shape
        ``(samples, 8)``, -1 after the end.
    """
    device = model.get_input_embeddings().weight.device
    moved = {name: value.to(device) for name, value in inputs.items()}
    logits = model(**moved).logits[:, -1].float()
    tokens = model.generate(**moved, max_new_tokens=_NEW_TOKENS, do_sample=False)
    new_tokens = tokens[:, moved["input_ids"].shape[1] :]
    padded = nn.functional.pad(new_tokens, (0, _NEW_TOKENS - new_tokens.shape[1]), value=-1)
    return {"logits": logits.cpu().contiguous(), "tokens": padded.cpu().contiguous()}


def within_tolerance(difference: float, logits: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a largest difference of logits is rounding; NaN is not."""
    return difference <= LOGIT_TOLERANCE[dtype] * max(1.0, float(logits.abs().max()))


def verify_in_fresh_process(
    pruned: LoadedModel, directory: Path, scratch: Path, inputs: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Load ``directory`` in a fresh process and compare its outputs with those of ``pruned``.

    Args:
        pruned: The model that was written.
        directory: The checkpoint.
        scratch: An existing directory for intermediate files.
        inputs: Keyword arguments of the model to compare outputs on.

    Returns:
        ``parameters``, ``logit_difference``, ``generation_equal`` and ``loader``, as
        `VerifiedExport`.

    Raises:
        ExportError: The checkpoint does not load, or its logits or tokens differ.
    """
    expected = compute_outputs(pruned.model, inputs)
    save_file({name: value.contiguous() for name, value in inputs.items()}, scratch / "inputs")
    save_file(expected, scratch / "outputs")
    dtype = str(pruned.model.dtype).removeprefix("torch.")
    process = subprocess.run(
        [
            sys.executable, "-m", "effllava_optuna.surgery.export.verification", str(directory),
            str(scratch / "inputs"), str(scratch / "outputs"), str(pruned.device), dtype,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")},
    )  # fmt: skip
    if process.returncode:
        last_line = (process.stderr.strip() or "no message").splitlines()[-1]
        raise ExportError(
            f"The export of {pruned.source} does not load in a fresh process: {last_line}",
            hint="Nothing was written.",
        )
    verified: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    verified["loader"] = tuple(verified.get("loader", ()))
    difference, equal = verified["logit_difference"], verified["generation_equal"]
    if not within_tolerance(difference, expected["logits"], pruned.model.dtype) or not equal:
        raise ExportError(
            f"The export of {pruned.source} does not reload as the same model: logits differ by "
            f"{difference:.2g}, same tokens: {equal}.",
            hint=f"Nothing was written; transformers is {transformers.__version__}.",
        )
    return verified
