"""Generate greedily in vLLM.

`vllm_process` runs a copy of this file in the environment of vLLM, so it imports nothing of this
package. Each line of its standard input is a request in JSON: ``checkpoint``, ``prompts`` (lists
of tokens, or texts with the path of a picture), ``options`` of the engine, and ``new_tokens``.
Each line of its standard output is an answer in JSON: the ``version`` of vLLM with the ``tokens``
for each prompt, or the ``error``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

SETTINGS = {  # of vLLM, before it is imported; those of the user have priority
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip


def declare_torchvision_operators() -> None:
    """Declare what the PyPI build of torchvision has compiled if it does not fit this torch."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        from torch import library as operators
    else:
        return
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        operators.define(f"torchvision::{name}", schema)
    operators.define(
        "torchvision::roi_align",
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor",
    )


def generate_greedily(request: dict[str, Any]) -> dict[str, Any]:
    """Load the checkpoint of a request, and answer its prompts."""
    import vllm
    from PIL import Image

    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 4} | request["options"]
    engine = vllm.LLM(model=request["checkpoint"], trust_remote_code=True, **options)
    prompts: list[dict[str, Any]] = []
    for prompt in request["prompts"]:
        if isinstance(prompt, dict):
            picture = Image.open(prompt["picture"]).convert("RGB")
            prompts.append({"prompt": prompt["text"], "multi_modal_data": {"image": picture}})
        else:
            prompts.append({"prompt_token_ids": prompt})
    greedy = vllm.SamplingParams(
        temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False
    )
    answers = engine.generate(prompts, greedy)
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    return {"version": vllm.__version__, "tokens": tokens}


def answer_in_child(request: dict[str, Any], descriptor: int) -> None:
    """Answer one request in a child process: a process can have one engine only."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:  # killed
            result = {"error": f"vLLM ended with status {status}"}
            os.write(descriptor, f"{json.dumps(result)}\n".encode())
        return
    try:
        result = generate_greedily(request)
    except Exception as error:  # vLLM raises anything for models that it does not support
        result = {"error": f"{type(error).__name__}: {error}"}
    os.write(descriptor, f"{json.dumps(result)}\n".encode())
    os._exit(0)


def main() -> None:
    """Answer the requests on standard input."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what vLLM prints is no answer
    os.environ |= SETTINGS | dict(os.environ)
    declare_torchvision_operators()
    importlib.import_module("vllm.entrypoints.llm")  # once for all requests
    for line in sys.stdin:
        answer_in_child(json.loads(line), answers)


if __name__ == "__main__":
    main()
