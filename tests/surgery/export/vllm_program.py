"""Generate greedily in vLLM: ``python vllm_program.py CHECKPOINT REQUEST``; run by its tests.

Imports nothing of this repository: vLLM has an environment of its own. ``REQUEST`` is JSON:
``prompts`` (lists of tokens, or texts with the path of a picture), ``options`` of the engine, and
``new_tokens``. Prints the tokens of each answer as JSON, on the last line.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {  # of vLLM, before it is imported
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip


def declare_torchvision_operators() -> None:
    """Declare what the PyPI build of torchvision has compiled, which fits no torch for CPUs."""
    from torch import library as operators

    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        operators.define(f"torchvision::{name}", schema)
    operators.define(
        "torchvision::roi_align",
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor",
    )


def main() -> None:
    """Load the checkpoint, and answer the request."""
    declare_torchvision_operators()
    from PIL import Image
    from vllm import LLM, SamplingParams

    checkpoint, request = sys.argv[1], json.loads(sys.argv[2])
    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 4} | request["options"]
    engine = LLM(model=checkpoint, trust_remote_code=True, **options)
    prompts: list[dict[str, Any]] = []
    for prompt in request["prompts"]:
        if isinstance(prompt, dict):
            picture = Image.open(prompt["picture"]).convert("RGB")
            prompts.append({"prompt": prompt["text"], "multi_modal_data": {"image": picture}})
        else:
            prompts.append({"prompt_token_ids": prompt})
    greedy = SamplingParams(
        temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False
    )
    answers = engine.generate(prompts, greedy)
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    sys.stdout.write(f"\n{json.dumps(tokens)}\n")


if __name__ == "__main__":
    main()
