"""Time batches in vLLM: ``_rate_in_vllm.py CHECKPOINT PROMPT NEW``; in vLLM's environment."""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SHARED = runpy.run_path(str(_ROOT / "effllava_optuna/surgery/export/vllm_program.py"))
os.environ |= _SHARED["SETTINGS"] | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def main() -> None:
    """Answer lines with the number of rows of a batch."""
    _SHARED["declare_torchvision_operators"]()
    from vllm import LLM, SamplingParams

    checkpoint, prompt, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = LLM(
        model=checkpoint, trust_remote_code=True, dtype="float32", max_num_seqs=16,
        max_model_len=256, max_num_batched_tokens=16 * prompt, enable_prefix_caching=False,
        skip_tokenizer_init=True, model_impl="transformers",
        enforce_eager=True,
    )  # fmt: skip
    write({})
    for line in sys.stdin:
        rows = int(line)
        prompts = [
            {"prompt_token_ids": [(row * prompt + i) % 1000 + 10 for i in range(prompt)]}
            for row in range(rows)
        ]

        def run(tokens: int, prompts: list[dict[str, list[int]]] = prompts) -> float:
            greedy = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
            )
            started = time.perf_counter()
            engine.generate(prompts, greedy, use_tqdm=False)
            return time.perf_counter() - started

        prefill = run(1)
        write({"prefill": prefill, "decode": run(new) - prefill})


def write(seconds: dict[str, float]) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps({"engine": "vLLM", **seconds}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
