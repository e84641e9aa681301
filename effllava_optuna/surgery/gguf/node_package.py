"""llama.cpp as a Node package."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.gguf.engine_answers import CONTEXT, Answer, refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.surgery.gguf.engine_answers import EnginePrompt

PACKAGE = "@fugood/llama.node"
"""The package that has llama.cpp with it."""

_PROGRAM = Path(__file__).with_name("node_program.mjs")
_SEEDS = 20  # of which one should draw a token that is printed


@dataclass(frozen=True, slots=True)
class NodePackage:
    """llama.cpp as a Node package.

    Attributes:
        directory: A directory in whose ``node_modules`` it is.
        version: Its version.
    """

    directory: Path
    version: str

    def generate(
        self, files: Sequence[Path], prompts: Sequence[EnginePrompt], new_tokens: int, cache: str
    ) -> list[Answer]:
        """Generate greedily after each prompt (see `LlamaCpp`)."""
        return [self._answer(files, prompt, new_tokens, cache) for prompt in prompts]

    def _answer(
        self, files: Sequence[Path], prompt: EnginePrompt, new_tokens: int, cache: str
    ) -> Answer:
        """Return the greedy answer to a prompt, and the probabilities of its first token."""
        answer = self._ask(files, prompt, {"new_tokens": new_tokens, "cache": cache})
        probabilities = self._probabilities(files, prompt, cache)
        return Answer(tuple(answer["prompt"]), answer["text"], probabilities)

    def _probabilities(
        self, files: Sequence[Path], prompt: EnginePrompt, cache: str
    ) -> tuple[float, ...]:
        """Return the largest probabilities of the token after a prompt."""
        for seed in range(1, _SEEDS + 1):
            found = self._ask(files, prompt, {"new_tokens": 1, "cache": cache, "seed": seed})
            if found is not None:
                return tuple(found)
        raise ExportError(
            f"llama.cpp ({self.version}) prints no token after {prompt.text!r}.",
            hint="Nothing was written.",
        )

    def _ask(
        self, files: Sequence[Path], prompt: EnginePrompt, settings: Mapping[str, Any]
    ) -> Any:
        """Run the program on a prompt, and return what it prints."""
        request = files[0].with_suffix(".json")
        picture = prompt.picture and str(prompt.picture)
        document = {
            "prompt": {"text": prompt.text, "picture": picture},
            "context": CONTEXT, "seed": None, **settings,
        }  # fmt: skip
        request.write_text(json.dumps(document), encoding="utf-8")
        arguments = [str(file) for file in (*files, "")[:2]]
        process = subprocess.run(
            ["node", str(_PROGRAM), str(self.directory), *arguments, str(request)],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
        )
        if process.returncode:
            raise refused(self.version, process.stderr)
        return json.loads(process.stdout.splitlines()[-1])


def find_node_package(directory: Path) -> NodePackage | None:
    """Find the package in the ``node_modules`` of a directory."""
    description = directory / "node_modules" / PACKAGE / "package.json"
    if shutil.which("node") is None or not description.is_file():
        return None
    version = json.loads(description.read_text(encoding="utf-8"))["version"]
    return NodePackage(directory, f"{PACKAGE} {version}")
