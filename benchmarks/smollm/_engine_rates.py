"""Rates of inference engines, each in a process of its own that waits for its turn.

All processes are started first, so that rounds of different engines and models interleave. What
they are asked and answer is in `_engine_requests`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _engine_requests import MARK

from effllava_optuna.surgery.gguf.llama_server import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _engine_requests import Requests

HERE = Path(__file__).parent

VLLM = os.environ.get("EFFLLAVA_VLLM", "")


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of a batch.

    Attributes:
        prefill: Of the prompts, until the first token.
        decode: Of the tokens after the first one.
    """

    prefill: float
    decode: float

    def rates(self, batch: int, requests: Requests) -> dict[str, float]:
        """Return tokens per second by phase."""
        return {
            "prefill": batch * requests.length / self.prefill,
            "decode": batch * (requests.new - 1) / self.decode,
        }


class EngineProcess:
    """An engine that has loaded a model.

    Args:
        command: The program and its arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process: Any = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self._read()

    def run(self, batch: int) -> Seconds:
        """Run a batch once."""
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        return Seconds(**self._read())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        """Return what the next answer says.

        Raises:
            RuntimeError: The process has ended.
        """
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line)
                answer.pop("engine")
                return answer
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")


def commands(native: Path, gguf: Path, requests: Path) -> dict[str, list[str]]:
    """Return the commands of the engines that this machine has.

    Args:
        native: A native export, or the dense checkpoint.
        gguf: The same model as GGUF.
        requests: File of what they are asked.
    """
    programs = {"transformers": (sys.executable, "_rate_in_transformers.py", native)}
    if VLLM:
        programs["vLLM"] = (VLLM, "_rate_in_vllm.py", native)
    if shutil.which(PROGRAM):
        programs["llama.cpp"] = (sys.executable, "_rate_in_llama_cpp.py", gguf)
    return {
        engine: [python, str(HERE / script), str(model), str(requests)]
        for engine, (python, script, model) in programs.items()
    }
