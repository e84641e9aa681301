"""Time batches in transformers: ``_rate_in_transformers.py CHECKPOINT PROMPT NEW``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from effllava_optuna.checkpoint_format import PLAN


@torch.inference_mode()
def main() -> None:
    """Answer lines with the number of rows of a batch."""
    torch.set_num_threads(1)
    checkpoint, prompt, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=PLAN in config
    ).eval()
    write({})
    for line in sys.stdin:
        rows = int(line)
        tokens = torch.arange(rows * prompt).reshape(rows, prompt) % 1000 + 10
        started = time.perf_counter()
        output = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - started
        for _ in range(new - 1):
            output = model(
                input_ids=output.logits[:, -1:].argmax(-1), past_key_values=output.past_key_values
            )
        write({"prefill": prefill, "decode": time.perf_counter() - started - prefill})


def write(seconds: dict[str, float]) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps({"engine": "transformers", **seconds}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
