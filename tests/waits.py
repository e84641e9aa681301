"""What makes the host wait for a device, seen on a CPU."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Under `inference_mode` the first three are seen whole.
WAITING = ("item", "is_nonzero", "equal", "_local_scalar_dense", "nonzero", "masked_select")


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Counts what waits for the device by the library that asks, and the file."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        masks = [
            index
            for index in (args[1] if name == "index" else ())
            if index is not None and index.dtype in (torch.bool, torch.uint8)
        ]
        if name in WAITING or masks:
            self.counts[self._who()] += 1
        return func(*args, **(kwargs or {}))

    def _who(self) -> tuple[str, str]:
        for frame in reversed(traceback.extract_stack()):
            for library in ("transformers", "effllava_optuna"):
                path = Path(frame.filename)
                if library in path.parts and "tests" not in path.parts:
                    return library, path.name
        return "", ""
