"""The prompts of a judge: the built-in ones, or the official ones in a file of the user.

The official prompts belong to their repositories and are not copied here. Their SHA-256 is, so
that a result states whether the official prompt was used:

* MM-Vet: ``prompt`` in ``mm-vet_evaluator.py`` (yuweihao/MM-Vet; the same in all its versions
  and in the notebook).
* LLaVA-Bench (in the wild): ``llava_bench_conv``, ``llava_bench_detail`` and
  ``llava_bench_complex`` in ``llava/eval/table/rule.json`` (haotian-liu/LLaVA; all three are
  equal).
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.files import expand_home, read_text

MMVET_PROMPT = """\
You grade answers to questions about pictures. Each line of the table below is one answer: the
question, the ground truth, the prediction of an AI model, and how correct the prediction is.
Where parts of the ground truth are joined by <AND>, all of them must be in the prediction, and
a prediction with some of them is correct in part. Where they are joined by <OR>, one of them is
enough. Correctness goes in steps of 0.1 from 0.0 (all wrong) to 1.0 (all right). Reply with the
number that is missing in the last line, and with nothing else.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which fruits are on the table? | apple <AND> pear | Two bananas. | 0.0
Which fruits are on the table? | apple <AND> pear | I can see a pear. | 0.5
Which fruits are on the table? | apple <AND> pear | A pear lies beside an apple. | 1.0
What time does the clock show? | 9:45 <OR> quarter to ten | It is a quarter to ten. | 1.0
What time does the clock show? | 9:45 <OR> quarter to ten | It is ten o'clock. | 0.0
What is odd about this room? | The chairs and the lamp are fixed to the ceiling, so the room \
seems to be upside down. | There is a lamp above the chairs. | 0.2
What is odd about this room? | The chairs and the lamp are fixed to the ceiling, so the room \
seems to be upside down. | The furniture hangs from the ceiling as if the room was turned over. \
| 0.9
"""

LLAVA_BENCH_PROMPT = """\
Two assistants were shown a picture and answered the question above about it. You cannot see \
the picture; the context describes it.
Give each answer a score from 1 to 10, higher for the better answer: judge whether it helps, \
keeps to the question, agrees with the context, and says enough. Which of the two stands first \
must not matter.
Your first line must be two numbers with one space between them and nothing else: the score of \
Assistant 1 and the score of Assistant 2. Give your reasons from the second line on."""

_MMVET_SHA256 = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
_LLAVA_BENCH_SHA256 = "2ce22b562d6008864970ea863ac8a4d385ea6f2e64ab1313a23f825202a9529d"
_MMVET_HINT = "Use mm-vet_evaluator.py of yuweihao/MM-Vet, or a text file."
_LLAVA_BENCH_HINT = "Use llava/eval/table/rule.json of haotian-liu/LLaVA, or a text file."


class PromptOrigin(StrEnum):
    """Where a prompt comes from. Only scores with the official one equal published scores."""

    OFFICIAL = "official"
    BUILT_IN = "effllava_optuna"
    CALLER = "the caller's"


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A prompt of a judge.

    Attributes:
        text: The instructions, without the question to judge.
        origin: Official: equal to the text of the benchmark, character for character.
    """

    text: str
    origin: PromptOrigin


def load_mmvet_prompt(prompt: str | Path | None = None) -> JudgePrompt:
    """Return the table to which a question of MM-Vet is appended.

    Args:
        prompt: None: `MMVET_PROMPT`. A text: that text. A path: a text file, or the official
            ``mm-vet_evaluator.py``, which is parsed but never executed.

    Raises:
        TaskError: The file cannot be read, or has no prompt.
    """
    if prompt is None:
        return JudgePrompt(MMVET_PROMPT, PromptOrigin.BUILT_IN)
    if isinstance(prompt, Path):
        text = _read(expand_home(prompt))
        prompt = _parse_evaluator(prompt, text) if prompt.suffix == ".py" else text
    return _identify(prompt, _MMVET_SHA256)


def load_llava_bench_prompt(prompt: str | Path | None = None) -> JudgePrompt:
    """Return the instructions that follow both answers to a question of LLaVA-Bench.

    Args:
        prompt: None: `LLAVA_BENCH_PROMPT`. A text: that text. A path: a text file, or the
            official ``rule.json``.

    Raises:
        TaskError: The file cannot be read, has no prompt, or has several.
    """
    if prompt is None:
        return JudgePrompt(LLAVA_BENCH_PROMPT, PromptOrigin.BUILT_IN)
    if isinstance(prompt, Path):
        text = _read(expand_home(prompt))
        prompt = _parse_rules(prompt, text) if prompt.suffix == ".json" else text
    return _identify(prompt, _LLAVA_BENCH_SHA256)


def _identify(text: str, official_sha256: str) -> JudgePrompt:
    if not text.strip():
        raise TaskError("The judge's prompt is empty.", hint="Omit it to use the built-in one.")
    # Editors add a line break at the end of a file, or remove it.
    stripped = text.rstrip("\n")
    for candidate in (text, stripped, f"{stripped}\n"):
        digest = hashlib.sha256(candidate.encode("utf-8", "replace")).hexdigest()
        if digest == official_sha256:
            return JudgePrompt(candidate, PromptOrigin.OFFICIAL)
    return JudgePrompt(text, PromptOrigin.CALLER)


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"The judge's prompt {path} cannot be read: {error}.",
            hint="Use a text file in UTF-8.",
        ) from error


def _parse_evaluator(path: Path, source: str) -> str:
    """Return the text that a Python file assigns to ``prompt``."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise TaskError(
            f"The judge's prompt {path} is not a valid Python file: {error}.", hint=_MMVET_HINT
        ) from error
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id="prompt")], value=ast.Constant(value=str(text))):
                return text
    raise TaskError(f"{path} does not assign a text to 'prompt'.", hint=_MMVET_HINT)


def _parse_rules(path: Path, source: str) -> str:
    """Return the one prompt of the three categories in a ``rule.json``."""
    try:
        rules = json.loads(source)
        texts = {rules[f"llava_bench_{kind}"]["prompt"] for kind in ("conv", "detail", "complex")}
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"The judge's prompt {path} has no rules of LLaVA-Bench: {shorten(error)}.",
            hint=_LLAVA_BENCH_HINT,
        ) from error
    match list(texts):
        case [str(text)]:
            return text
    raise TaskError(
        f"{path} has {len(texts)} prompts for LLaVA-Bench, but the judge needs exactly one.",
        hint=_LLAVA_BENCH_HINT,
    )
