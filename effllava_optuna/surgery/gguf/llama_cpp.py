"""Find llama.cpp on this machine, and generate with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PACKAGE = "@fugood/llama.node"
"""The Node package that has llama.cpp with it."""

VARIABLE = "EFFLLAVA_LLAMA_NODE"
"""Variable of the environment: a directory in whose ``node_modules`` the package is."""

_PROGRAM = Path(__file__).with_name("generate_program.mjs")
_CONTEXT = 2048  # tokens
_SEEDS = 20  # of which one should draw a token that is printed
_PLACEHOLDER = "<__media__>"


@dataclass(frozen=True, slots=True)
class EnginePrompt:
    """A prompt for llama.cpp.

    Attributes:
        text: The prompt, with one `_PLACEHOLDER` for a picture.
        picture: File of the picture; None: there is none.
    """

    text: str
    picture: Path | None = None

    @staticmethod
    def about(text: str, image_token: str, picture: Path) -> EnginePrompt:
        """Return a prompt about a picture, whose place ``image_token`` marks."""
        return EnginePrompt(text.replace(image_token, _PLACEHOLDER), picture)


@dataclass(frozen=True, slots=True)
class Answer:
    """What llama.cpp made of a prompt.

    Attributes:
        prompt: The tokens of the prompt.
        text: The text of the answer, without special tokens.
        probabilities: The largest probabilities of its first token.
    """

    prompt: tuple[int, ...]
    text: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LlamaCpp:
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
        """Generate greedily after each prompt.

        Args:
            files: The file of the decoder, and that of tower and projector if there is one.
            prompts: The prompts.
            new_tokens: Largest number of tokens of an answer.
            cache: Type of keys and values: ``f32`` or ``f16``.

        Raises:
            ExportError: llama.cpp does not load the files, or prints nothing.
        """
        answers = self._ask(files, prompts, {"new_tokens": new_tokens, "cache": cache})
        return [
            Answer(tuple(each["prompt"]), each["text"], self._probabilities(files, prompt, cache))
            for prompt, each in zip(prompts, answers, strict=True)
        ]

    def _probabilities(
        self, files: Sequence[Path], prompt: EnginePrompt, cache: str
    ) -> tuple[float, ...]:
        """Return the largest probabilities of the token after a prompt."""
        for seed in range(1, _SEEDS + 1):
            found = self._ask(files, [prompt], {"new_tokens": 1, "cache": cache, "seed": seed})
            if found is not None:
                return tuple(found)
        raise ExportError(
            f"llama.cpp ({self.version}) prints no token after {prompt.text!r}.",
            hint="Nothing was written.",
        )

    def _ask(
        self, files: Sequence[Path], prompts: Sequence[EnginePrompt], settings: Mapping[str, Any]
    ) -> Any:
        """Run the program on prompts, and return what it prints."""
        request = files[0].with_suffix(".json")
        document = {
            "prompts": [
                {"text": prompt.text, "picture": prompt.picture and str(prompt.picture)}
                for prompt in prompts
            ],
            "context": _CONTEXT, "seed": None, **settings,
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
            lines = [line for line in process.stderr.splitlines() if "rror" in line]
            raise ExportError(
                f"llama.cpp ({self.version}) does not run the GGUF export: "
                f"{lines[0] if lines else 'no message'}.",
                hint="Nothing was written.",
            )
        return json.loads(process.stdout.splitlines()[-1])


def find_llama_cpp() -> LlamaCpp | None:
    """Find llama.cpp: in the directory that the variable names, or in the current one."""
    directory = Path(os.environ.get(VARIABLE) or Path.cwd())
    description = directory / "node_modules" / PACKAGE / "package.json"
    if shutil.which("node") is None or not description.is_file():
        return None
    version = json.loads(description.read_text(encoding="utf-8"))["version"]
    return LlamaCpp(directory, f"{PACKAGE} {version}")
