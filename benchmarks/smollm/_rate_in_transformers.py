"""Time batches in transformers: ``_rate_in_transformers.py CHECKPOINT REQUESTS``."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _engine_requests import Requests, Row, seconds_of
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from effllava_optuna.checkpoint_format import PLAN

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    """Answer lines with the number of rows of a batch."""
    torch.set_num_threads(1)
    checkpoint, requests = sys.argv[1], Requests.read(Path(sys.argv[2]))
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    family = AutoModelForImageTextToText if requests.text else AutoModelForCausalLM
    model: Any = family.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=PLAN in config
    ).eval()
    processor: Any = AutoProcessor.from_pretrained(checkpoint) if requests.text else None

    @torch.inference_mode()
    def generate(rows: Sequence[Row], new: int) -> None:
        if processor is None:
            inputs = {"input_ids": torch.tensor([row.tokens for row in rows])}
        else:
            inputs = processor(
                text=[row.text for row in rows],
                images=[[row.picture] for row in rows],
                return_tensors="pt",
            )
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        for _ in range(new - 1):
            output = model(
                input_ids=output.logits[:, -1:].argmax(-1), past_key_values=output.past_key_values
            )

    requests.answer("transformers", lambda rows, new: seconds_of(partial(generate, rows, new)))


if __name__ == "__main__":
    main()
