"""What a judge is asked: our wording, or the benchmark's own where the caller has it.

The official texts are the property of their repositories and are not repeated here; their
SHA-256 is, so that a result can say whether it was judged by them:

* MM-Vet: ``prompt`` in ``mm-vet_evaluator.py`` (yuweihao/MM-Vet; the same in all its versions
  and in the notebook).
* LLaVA-Bench (in the wild): ``llava_bench_conv``, ``llava_bench_detail`` and
  ``llava_bench_complex`` in ``llava/eval/table/rule.json`` (haotian-liu/LLaVA; all three the
  same).
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from effllava_optuna.errors import TaskError

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


class Origin(StrEnum):
    """Whose wording a judge was given; only scores under the official one can be compared."""

    OFFICIAL = "official"
    OURS = "effllava_optuna"
    CALLER = "the caller's"


@dataclass(frozen=True, slots=True)
class Wording:
    """A prompt, and whose it is.

    Attributes:
        text: What the judge is told, without the question at hand.
        origin: Official means: equal to the benchmark's own text, character for character.
    """

    text: str
    origin: Origin


def mmvet_wording(prompt: str | Path | None = None) -> Wording:
    """Give the table that a question of MM-Vet is appended to.

    Args:
        prompt: None: `MMVET_PROMPT`. A text: that text. A path: the official
            ``mm-vet_evaluator.py``, which is read and never run, or a text file.

    Raises:
        TaskError: The file cannot be read, or says no prompt.
    """
    if prompt is None:
        return Wording(MMVET_PROMPT, Origin.OURS)
    if isinstance(prompt, Path):
        text = _read(prompt)
        prompt = _assigned(prompt, text, "prompt") if prompt.suffix == ".py" else text
    return _recognised(prompt, _MMVET_SHA256)


def llava_bench_wording(prompt: str | Path | None = None) -> Wording:
    """Give what a judge of LLaVA-Bench is told after both answers.

    Args:
        prompt: None: `LLAVA_BENCH_PROMPT`. A text: that text. A path: the official
            ``rule.json``, or a text file.

    Raises:
        TaskError: The file cannot be read, or says no prompt, or one for each category.
    """
    if prompt is None:
        return Wording(LLAVA_BENCH_PROMPT, Origin.OURS)
    if isinstance(prompt, Path):
        text = _read(prompt)
        prompt = _ruled(prompt, text) if prompt.suffix == ".json" else text
    return _recognised(prompt, _LLAVA_BENCH_SHA256)


def _recognised(text: str, official: str) -> Wording:
    if not text.strip():
        raise TaskError("The judge's prompt is empty.", hint="Leave it out to use our own.")
    # Editors add a line break to the end of a file, or take it away.
    bare = text.rstrip("\n")
    for candidate in (text, bare, f"{bare}\n"):
        if hashlib.sha256(candidate.encode("utf-8", "replace")).hexdigest() == official:
            return Wording(candidate, Origin.OFFICIAL)
    return Wording(text, Origin.CALLER)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"The judge's prompt {path} cannot be read: {error}.",
            hint="Give the path of a text file in UTF-8.",
        ) from error


def _assigned(path: Path, source: str, name: str) -> str:
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise TaskError(
            f"The judge's prompt {path} is no Python file: {error}.",
            hint="Give mm-vet_evaluator.py of yuweihao/MM-Vet, or a text file.",
        ) from error
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Constant(value=str(text))):
                if found == name:
                    return text
    raise TaskError(
        f"{path} assigns no text to {name!r}.",
        hint="Give mm-vet_evaluator.py of yuweihao/MM-Vet, or a text file.",
    )


def _ruled(path: Path, source: str) -> str:
    try:
        rules = json.loads(source)
        texts = {rules[f"llava_bench_{kind}"]["prompt"] for kind in ("conv", "detail", "complex")}
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"The judge's prompt {path} has no rules of LLaVA-Bench: {error!r}.",
            hint="Give llava/eval/table/rule.json of haotian-liu/LLaVA, or a text file.",
        ) from error
    match list(texts):
        case [str(text)]:
            return text
    raise TaskError(
        f"{path} has {len(texts)} prompts for LLaVA-Bench, and only one can be used.",
        hint="Give llava/eval/table/rule.json of haotian-liu/LLaVA, or a text file.",
    )
