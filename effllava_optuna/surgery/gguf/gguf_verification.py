"""Compare what llama.cpp generates with what transformers generates from the same values."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from effllava_optuna.errors import ExportError
from effllava_optuna.processors import encode, tokenizer_of
from effllava_optuna.surgery.apply.decoding import generate_tokens, special_tokens
from effllava_optuna.surgery.gguf.engine_answers import COMPARED, EnginePrompt
from effllava_optuna.surgery.gguf.tensors import rounded
from effllava_optuna.surgery.loading.example_inputs import (
    EXAMPLE_QUESTION,
    example_picture,
    format_example,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from effllava_optuna.surgery.gguf.engine_answers import Answer, LlamaCpp
    from effllava_optuna.surgery.gguf.tensors import GgufType
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_NEW_TOKENS = 24
_TEXTS = (
    EXAMPLE_QUESTION,
    "In 1984, 3 of 250 people couldn't say: \"Where's the café, at No. 17?\"\n\n  They'd left.",
)
# Largest difference of logarithms of probabilities, and of logits of tokens that are a tie:
# llama.cpp rounds what it multiplies, too, the cache and activations to float16, or to 8 bits.
_ROUNDING: dict[GgufType, float] = {"f32": 0.02, "f16": 0.05, "q8_0": 0.5}


@dataclass(frozen=True, slots=True)
class GgufComparison:
    """How llama.cpp answers, compared with transformers.

    Attributes:
        tokens: Number of generated tokens that are equal.
        class_last: Whether this llama.cpp places the class embedding of a CLIP tower behind the
            patches (its issue 25814), so that it reads pictures somewhat differently.
    """

    tokens: int
    class_last: bool


@dataclass(frozen=True, slots=True)
class _Expected:
    """The greedy answer of transformers.

    Attributes:
        prompt: The tokens of the prompt.
        text: The text of the answer, up to its first special token.
        goes_on: Whether there is a special token, which llama.cpp may take for the end.
        prefixes: The text after each token.
        margins: By token, how much larger its logit is than the second largest one.
        probabilities: The largest probabilities of the first token.
    """

    prompt: tuple[int, ...]
    text: str
    goes_on: bool
    prefixes: tuple[str, ...]
    margins: tuple[float, ...]
    probabilities: torch.Tensor


def verify_gguf(
    pruned: LoadedModel, files: Sequence[Path], kind: GgufType, engine: LlamaCpp
) -> GgufComparison:
    """Check that llama.cpp tokenizes and answers as transformers does.

    Args:
        pruned: The model that was written.
        files: The file of the decoder, and that of tower and projector if there is one.
        kind: The type of the matrices.
        engine: llama.cpp.

    Raises:
        ExportError: It does not load the files, or tokenizes or answers otherwise.
    """
    tokenizer = tokenizer_of(pruned.processor)
    prompts = [EnginePrompt(text) for text in _TEXTS]
    inputs = [encode(tokenizer, text=text) for text in _TEXTS]
    if len(files) > 1:
        picture = files[1].with_suffix(".png")
        image = example_picture(pruned.model.config.vision_config.image_size)
        image.save(picture)
        text = format_example(pruned.processor)
        prompts.append(EnginePrompt.about(text, pruned.processor.image_token, picture))
        inputs.append(encode(pruned.processor, text=[text], images=[[image]]))
    answers = engine.generate(files, prompts, _NEW_TOKENS, "f32" if kind == "f32" else "f16")
    tokens, class_last = 0, False
    with pruned.lock, _rounded_weights(pruned.model, kind):
        for prompt, answer, each in zip(prompts, answers, inputs, strict=True):
            expected = _generate(pruned, each)
            if prompt.picture is not None and _class_embeddings(pruned.model) is not None:
                with _class_placed_last(pruned.model):
                    other = _generate(pruned, each)
                class_last = _difference(answer, other) < _difference(answer, expected)
                expected = other if class_last else expected
            tokens += _compare(prompt, answer, expected, _ROUNDING[kind])
    return GgufComparison(tokens, class_last)


def _class_embeddings(model: nn.Module) -> Any:
    """Return the part of a CLIP tower that embeds patches; None: there is no class embedding."""
    return next((part for part in model.modules() if hasattr(part, "class_embedding")), None)


@contextmanager
def _class_placed_last(model: nn.Module) -> Iterator[None]:
    """Compute a tower as llama.cpp does that places the class embedding behind the patches.

    Positions and features are still those of a class embedding before them.
    """
    embeddings = _class_embeddings(model)

    def move(_: nn.Module, __: Any, output: torch.Tensor) -> Any:
        positions = embeddings.position_embedding.weight
        return (output - positions).roll(-1, 1) + positions

    hook = embeddings.register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _rounded_weights(model: nn.Module, kind: GgufType) -> Iterator[None]:
    """Replace the weights of a model by those that a file has, in float32."""
    before = [(weight, weight.data) for weight in model.parameters()]
    try:
        for weight, data in before:
            weight.data = rounded(data, kind).to(data.device)
        yield
    finally:
        for weight, data in before:
            weight.data = data


@torch.no_grad()
def _generate(pruned: LoadedModel, inputs: dict[str, Any]) -> _Expected:
    """Generate greedily in transformers."""
    tokenizer = tokenizer_of(pruned.processor)
    moved = {name: value.to(pruned.device) for name, value in inputs.items()}
    settings = GenerationConfig(
        max_new_tokens=_NEW_TOKENS, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **special_tokens(pruned.model, tokenizer),
    )  # fmt: skip
    generated: Any = generate_tokens(pruned.model, moved, settings)
    length = moved["input_ids"].shape[1]
    tokens = generated.sequences[0, length:].tolist()
    special = [n for n, token in enumerate(tokens) if token in tokenizer.all_special_ids]
    tokens = tokens[: special[0] + 1] if special else tokens
    best = [logits[0].float().topk(2).values for logits in generated.logits[: len(tokens)]]
    prompt = inputs["input_ids"][0].tolist()
    # A decoder may drop the first space of a text.
    begin = len(tokenizer.decode(prompt, skip_special_tokens=True))
    prefixes = [
        tokenizer.decode([*prompt, *tokens[: count + 1]], skip_special_tokens=True)[begin:]
        for count in range(len(tokens))
    ]
    return _Expected(
        prompt=tuple(prompt),
        text=prefixes[-1],
        goes_on=bool(special),
        prefixes=tuple(prefixes),
        margins=tuple(float(first - second) for first, second in best),
        probabilities=generated.logits[0][0].float().softmax(0).topk(COMPARED).values.cpu(),
    )


def _difference(answer: Answer, expected: _Expected) -> float:
    """Return the largest difference of the logarithms of probabilities of the first token."""
    probabilities = torch.tensor(answer.probabilities)
    return float((probabilities.log() - expected.probabilities.log()).abs().max())


def _compare(prompt: EnginePrompt, answer: Answer, expected: _Expected, rounding: float) -> int:
    """Return the number of tokens that are equal.

    Raises:
        ExportError: The tokens of the prompt differ, the probabilities of the first token, or the
            tokens of the answer before a tie.
    """
    if prompt.picture is None and answer.prompt != expected.prompt:
        raise ExportError(
            f"llama.cpp reads {prompt.text!r} as {len(answer.prompt)} other tokens than "
            f"transformers, which reads {len(expected.prompt)}.",
            hint="Nothing was written; llama.cpp has no tokenizer like this one.",
        )
    difference = _difference(answer, expected)
    if not difference < rounding:
        raise ExportError(
            f"llama.cpp computes other probabilities after {prompt.text!r}: their logarithms "
            f"differ by {difference:.2g}.",
            hint="Nothing was written.",
        )
    goes_on = expected.goes_on and answer.text.startswith(expected.text)
    if goes_on or answer.text == expected.text:
        return len(expected.margins)
    for count, (prefix, margin) in enumerate(
        zip(expected.prefixes, expected.margins, strict=True)
    ):
        if margin < rounding:
            return count
        if not answer.text.startswith(prefix.rstrip("\ufffd")):
            break
    raise ExportError(
        f"llama.cpp answers {prompt.text!r} with {answer.text!r}, and transformers with "
        f"{expected.text!r}.",
        hint="Nothing was written.",
    )
