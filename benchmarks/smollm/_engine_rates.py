"""Rates of inference engines, each in a process of its own that waits for its turn.

A process reads the number of rows of a batch as a line, runs it once, and writes the seconds of
the prefill and of the decoding as a line of JSON. All processes are started first, so that rounds
of different engines and models interleave.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
PROMPT, NEW = 64, 16
"""Tokens of a prompt, and tokens generated after it."""

VLLM, NODE = os.environ.get("EFFLLAVA_VLLM", ""), os.environ.get("EFFLLAVA_LLAMA_NODE", "")


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of a batch.

    Attributes:
        prefill: Of the prompts.
        decode: Of the tokens after the first one.
    """

    prefill: float
    decode: float

    def rates(self, batch: int) -> dict[str, float]:
        """Return tokens per second by phase."""
        tokens = {"prefill": batch * PROMPT, "decode": batch * (NEW - 1)}
        return {
            phase: count / seconds
            for (phase, count), seconds in zip(
                tokens.items(), (self.prefill, self.decode), strict=True
            )
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
        """Return what the next line of JSON says; engines write other lines, too.

        Raises:
            RuntimeError: The process has ended.
        """
        for line in self._process.stdout:
            if line.startswith('{"engine": '):
                answer: dict[str, Any] = json.loads(line)
                answer.pop("engine")
                return answer
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")


def commands(native: Path, gguf: Path) -> dict[str, list[str]]:
    """Return the commands of the engines that this machine has.

    Args:
        native: A native export, or the dense checkpoint.
        gguf: The same model as GGUF.
    """
    sizes = [str(PROMPT), str(NEW)]
    found = {"transformers": [sys.executable, str(HERE / "_rate_in_transformers.py"), str(native)]}
    if VLLM:
        found["vLLM"] = [VLLM, str(HERE / "_rate_in_vllm.py"), str(native)]
    if NODE:
        program = str(HERE / "rate_in_llama_cpp.mjs")
        found["llama.cpp"] = ["node", program, NODE, str(gguf)]
    return {engine: [*command, *sizes] for engine, command in found.items()}
