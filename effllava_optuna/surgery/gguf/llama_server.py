"""llama.cpp as its HTTP server, ``llama-server``."""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from effllava_optuna.surgery.gguf.engine_answers import (
    COMPARED,
    CONTEXT,
    PICTURE_MARK,
    Answer,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from effllava_optuna.surgery.gguf.engine_answers import EnginePrompt

PROGRAM = "llama-server"
"""Name of the program."""

_HOST = "127.0.0.1"
_PAUSE = 0.1  # seconds between questions whether the model is loaded


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """llama.cpp as its HTTP server, which is started for each file.

    Attributes:
        program: The file of the program.
        version: Its name and build.
    """

    program: Path
    version: str

    def generate(
        self, files: Sequence[Path], prompts: Sequence[EnginePrompt], new_tokens: int, cache: str
    ) -> list[Answer]:
        """Generate greedily after each prompt (see `LlamaCpp`)."""
        words = [
            "--ctx-size", str(CONTEXT), "--parallel", "1",
            "--cache-type-k", cache, "--cache-type-v", cache,
        ]  # fmt: skip
        if cache == "f32":
            words += ["--flash-attn", "off"]
        with self.serve(files, words) as port:
            return [self._answer(port, prompt, new_tokens) for prompt in prompts]

    @contextmanager
    def serve(self, files: Sequence[Path], options: Sequence[str]) -> Iterator[int]:
        """Run the server, on the processor, and yield its port once the model is loaded.

        Args:
            files: The file of the decoder, and that of tower and projector if there is one.
            options: Further options of the server.

        Raises:
            ExportError: It does not load the files.
        """
        port = free_port()
        words = [
            str(self.program), "--model", str(files[0]), "--host", _HOST, "--port", str(port),
            "--n-gpu-layers", "0", *options,
        ]  # fmt: skip
        if len(files) > 1:
            words += ["--mmproj", str(files[1]), "--no-mmproj-offload"]
        variables = {  # those of the user would change what is compared, or ask for a key
            name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")
        } | {"LLAMA_MEDIA_MARKER": PICTURE_MARK}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables
            )
            try:
                self._wait(process, port, output)
                yield port
            finally:
                process.kill()
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes], port: int, output: IO[str]) -> None:
        """Wait until the model is loaded.

        Raises:
            ExportError: The server has ended.
        """
        while process.poll() is None:
            try:
                if _request(port, "GET", "/health")[0] == http.client.OK:
                    return
            except (OSError, http.client.HTTPException):
                pass  # it does not listen yet
            time.sleep(_PAUSE)
        output.seek(0)
        raise refused(self.version, output.read())

    def _answer(self, port: int, prompt: EnginePrompt, new_tokens: int) -> Answer:
        text: Any = prompt.text
        tokens: list[int] = []
        if prompt.picture is None:
            settings = {"content": text, "add_special": True, "parse_special": True}
            tokens = self.post(port, "/tokenize", settings)["tokens"]
        else:
            picture = base64.b64encode(prompt.picture.read_bytes()).decode()
            text = {"prompt_string": text, "multimodal_data": [picture]}
        settings = {
            "prompt": text, "n_predict": new_tokens, "n_probs": COMPARED, "cache_prompt": False,
            "samplers": ["top_k"], "top_k": 1,
        }  # fmt: skip
        answer = self.post(port, "/completion", settings)
        first = answer["completion_probabilities"][0]["top_logprobs"]
        return Answer(
            tuple(tokens), answer["content"], tuple(math.exp(each["logprob"]) for each in first)
        )

    def post(self, port: int, path: str, content: dict[str, Any]) -> Any:
        """Send a request, and return what the server responds.

        Raises:
            ExportError: It refuses the request, or ends.
        """
        try:
            status, body = _request(port, "POST", path, json.dumps(content))
        except (OSError, http.client.HTTPException) as error:
            raise refused(self.version, f"error: {type(error).__name__} at {path}") from error
        if status != http.client.OK:
            raise refused(self.version, " ".join(body.split()))
        return json.loads(body)


def find_llama_server() -> LlamaServer | None:
    """Find the program on the path."""
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    process = subprocess.run(
        [program, "--version"], capture_output=True, text=True, errors="replace", check=False
    )
    found = re.search(r"version: (.+)", process.stdout + process.stderr)
    if process.returncode or found is None:
        return None
    return LlamaServer(Path(program), f"{PROGRAM} {found[1]}")


def _request(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    """Return status and body of a response."""
    connection = http.client.HTTPConnection(_HOST, port)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def free_port() -> int:
    """Return a port that no program listens on."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
