"""Verify an exported checkpoint in vLLM: the greedy tokens of a few prompts."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from effllava_optuna.errors import ExportError
from effllava_optuna.processors import takes_pictures, tokenizer_of
from effllava_optuna.surgery.export import vllm_program
from effllava_optuna.surgery.export.comparison import compute_outputs
from effllava_optuna.surgery.loading.example_inputs import (
    EXAMPLE_QUESTIONS,
    encode_example,
    example_picture,
    format_example,
)
from effllava_optuna.vllm_package import engine_environment, vllm_python

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

ROUNDING = 0.01
"""Share of the largest logit by which two tokens may differ and count as equally likely.

In float32, kernels of vLLM for CPUs differ by a tenth of this; a wrong head, by ten times as much.
"""

_SHARE_OF_FREE = 0.9  # of the memory of a GPU

_OPTIONS: dict[str, Any] = {"max_model_len": -1}  # as long as fits into memory


class EngineAnswers(NamedTuple):
    """What an engine generated.

    Attributes:
        version: Version of the engine.
        tokens: The tokens of each answer.
    """

    version: str
    tokens: list[list[int]]


class _Prompt(NamedTuple):
    """A prompt, as the program in vLLM's environment reads it and as the model does."""

    name: str
    request: Any
    inputs: Mapping[str, torch.Tensor]


def verify_in_vllm(
    pruned: LoadedModel, directory: Path, inputs: Mapping[str, torch.Tensor] | None
) -> str:
    """Load a checkpoint in vLLM, and compare its greedy tokens with those of the model.

    Both compute in float32, whatever the dtype of the model is. The prompts are two questions; a
    vision-language model answers them without a picture and with one. Where two tokens are
    equally likely, up to rounding, either is right, and what follows is not compared.

    Args:
        pruned: The model that was written.
        directory: The checkpoint.
        inputs: Prompts of tokens, if the model has no tokenizer.

    Returns:
        The engine and its version, such as ``vllm 0.32.0``.

    Raises:
        ExportError: There is no vLLM, it does not load the checkpoint, or its tokens differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        prompts = (
            _token_prompts(pruned, inputs or {})
            if pruned.processor is None
            else _example_prompts(pruned.processor, Path(folder))
        )
        expected = [compute_outputs(pruned.model, p.inputs)["tokens"][0].tolist() for p in prompts]
        options: dict[str, Any] = _OPTIONS | {"skip_tokenizer_init": pruned.processor is None}
        if takes_pictures(pruned.processor):
            options |= {"limit_mm_per_prompt": {"image": 1}}
        if pruned.device.type == "cuda":  # beside the models of this process
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info(pruned.device)
            options |= {"gpu_memory_utilization": round(_SHARE_OF_FREE * free / total, 3)}
        try:
            with vllm_process() as vllm:
                answers = vllm.generate(
                    directory, [p.request for p in prompts], options, len(expected[0])
                )
        except ExportError as error:
            reason = error.message.rstrip(".")
            raise ExportError(
                f"The export of {pruned.source} does not run in vLLM: {reason}.",
                hint="Nothing was written.",
            ) from error
    engine = f"vllm {answers.version}"
    for prompt, wanted, tokens in zip(prompts, expected, answers.tokens, strict=True):
        if not same_answer(pruned.model, prompt.inputs, wanted, tokens):
            raise ExportError(
                f"The export of {pruned.source} does not answer {prompt.name} as in transformers: "
                f"tokens {tokens} in {engine} instead of {wanted}.",
                hint="Nothing was written.",
            )
    return engine


def same_answer(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    expected: Sequence[int],
    tokens: Sequence[int],
    rounding: float = ROUNDING,
) -> bool:
    """Return whether greedy tokens are those of a model, up to the first tie.

    Args:
        model: The model.
        inputs: Its keyword arguments for the prompt, one row.
        expected: Its greedy tokens.
        tokens: The tokens to compare with them, as many.
        rounding: As `ROUNDING`.
    """
    pairs = zip(expected, tokens, strict=True)
    step = next((step for step, (one, other) in enumerate(pairs) if one != other), None)
    if step is None:
        return True
    if getattr(model.config, "image_token_id", None) in expected[:step]:
        return False  # a prompt cannot have an image token without a picture
    before = torch.tensor([list(expected[:step])], dtype=torch.long)
    longer = dict(inputs)
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            added = {"input_ids": before, "attention_mask": torch.ones_like(before)}
            more = added.get(name, torch.zeros_like(before))
            longer[name] = torch.cat([value, more.to(value)], dim=1)
    logits = compute_outputs(model, longer)["logits"][0]
    difference = logits[expected[step]] - logits[tokens[step]]
    return float(difference) <= rounding * float(logits.abs().max())


class VllmProcess:
    """vLLM in the Python of its environment, which `vllm_process` starts.

    Args:
        process: The program, with pipes for requests and answers.
        log: File with its standard error.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def generate(
        self,
        checkpoint: Path,
        prompts: Sequence[Any],
        options: Mapping[str, Any],
        new_tokens: int,
    ) -> EngineAnswers:
        """Generate greedily.

        Args:
            checkpoint: The directory of the model.
            prompts: Each is a list of tokens, or has a ``text`` with the path of a ``picture``.
            options: Of the engine, beside float32, no compilation, and four sequences at most.
            new_tokens: Number of tokens to generate; the end token does not end an answer.

        Raises:
            ExportError: vLLM fails; the message is what vLLM says.
        """
        request = {
            "checkpoint": str(checkpoint), "prompts": prompts, "options": dict(options),
            "new_tokens": new_tokens,
        }  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("The process of vLLM has no pipes.")
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:  # it does not even start
            said = self._log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
            raise ExportError((said or ["no message"])[-1])
        document = json.loads(line)
        if "error" in document:
            raise ExportError(document["error"])
        return EngineAnswers(document["version"], document["tokens"])


@contextmanager
def vllm_process() -> Iterator[VllmProcess]:
    """Start vLLM in its environment; it imports its modules once, for any number of checkpoints.

    Raises:
        ExportError: There is no vLLM.
    """
    python = vllm_python()
    with tempfile.TemporaryDirectory() as folder:
        # A copy: Python would find the other modules of its folder under their short names.
        program = shutil.copy(vllm_program.__file__, folder)
        log = Path(folder) / "log"
        with log.open("wb") as errors, subprocess.Popen(
            [python, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            cwd=folder,
            env=engine_environment(python) | {
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": str(Path(folder) / "modules"),
                "PYTHONIOENCODING": "utf-8",
            },
        ) as process:  # fmt: skip
            yield VllmProcess(process, log)


def _example_prompts(processor: Any, folder: Path) -> list[_Prompt]:
    """Return the example questions as prompts; the example picture is written to ``folder``."""
    prompts = []
    for question in EXAMPLE_QUESTIONS:
        encoded = dict(tokenizer_of(processor)(question, return_tensors="pt"))
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        prompts.append(_Prompt(repr(question), inputs["input_ids"][0].tolist(), inputs))
    if takes_pictures(processor):
        picture = folder / "picture.png"
        example_picture().save(picture)
        for question in EXAMPLE_QUESTIONS:
            text = format_example(processor, question)
            request = {"text": text, "picture": str(picture)}
            inputs = encode_example(processor, [text])
            prompts.append(_Prompt(f"{question!r} about a picture", request, inputs))
    return prompts


def _token_prompts(pruned: LoadedModel, inputs: Mapping[str, torch.Tensor]) -> list[_Prompt]:
    """Return the rows of inputs that consist of tokens alone as prompts.

    Raises:
        ExportError: They have pictures.
    """
    others = set(inputs) - {"input_ids", "attention_mask"}
    if others:
        raise ExportError(
            f"{pruned.source} cannot be verified in vLLM on inputs with {min(others)}.",
            hint="Export it with its processor, and without inputs of your own.",
        )
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    rows = [row if mask is None else row[mask[index].bool()] for index, row in enumerate(ids)]
    return [
        _Prompt(
            f"row {index} of the inputs",
            row.tolist(),
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])},
        )
        for index, row in enumerate(rows)
    ]
