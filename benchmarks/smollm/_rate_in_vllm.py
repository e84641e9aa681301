"""Time batches in vLLM: ``_rate_in_vllm.py CHECKPOINT REQUESTS``; in vLLM's environment."""

from __future__ import annotations

import os
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _engine_requests import Requests, Row, seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).parents[2]
_SHARED = runpy.run_path(str(_ROOT / "effllava_optuna/surgery/export/vllm_program.py"))
os.environ |= _SHARED["SETTINGS"] | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def main() -> None:
    """Answer lines with the number of rows of a batch."""
    _SHARED["declare_torchvision_operators"]()
    from vllm import LLM, SamplingParams

    requests = Requests.read(Path(sys.argv[2]))
    engine = LLM(
        model=sys.argv[1], trust_remote_code=True, dtype="float32", max_num_seqs=16,
        max_model_len=256, max_num_batched_tokens=16 * requests.length,
        enable_prefix_caching=False, skip_tokenizer_init=not requests.text,
        model_impl="transformers", enforce_eager=True,
    )  # fmt: skip

    def prompt_of(row: Row) -> dict[str, Any]:
        if row.picture is None:
            return {"prompt_token_ids": row.tokens}
        return {"prompt": row.text, "multi_modal_data": {"image": row.picture}}

    def run(rows: Sequence[Row], new: int) -> float:
        greedy = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        prompts = [prompt_of(row) for row in rows]
        return seconds_of(partial(engine.generate, prompts, greedy, use_tqdm=False))

    requests.answer("vLLM", run)


if __name__ == "__main__":
    main()
