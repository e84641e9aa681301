"""Evaluate models with lmms-eval, and so with its benchmarks and metrics.

By name, if both packages are installed (lmms-eval finds the entry point ``effllava`` of the group
``lmms_eval.models``, read in ``lmms_eval/models/registry_v2.py`` of 0.7.3)::

    python -m lmms_eval --model effllava --model_args pretrained=small.pruned --tasks scienceqa

Or as an object, for a model that is in memory already::

    simple_evaluate(model=EffllavaLmms(sliced(...)), tasks=["scienceqa"])

``EffllavaLmms`` is `LmmsEvalAdapter` as a subclass of lmms-eval's ``lmms``. It is created when it
is first used: importing this module does not import lmms-eval, which is an optional dependency.
"""

from __future__ import annotations

import os
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import new_class
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from effllava_optuna.errors import TaskError, describe, shorten
from effllava_optuna.tasks.rgb_conversion import convert_to_rgb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.evaluation.generation import GenerationOptions, Question
    from effllava_optuna.surgery import LoadedModel

MODEL_ID = "effllava"
_IMAGE = "<image>"  # with which doc_to_text of some tasks marks the place of a picture
# Ignored stop strings: lmms-eval adds a blank line to every task that has none, which would cut
# answers of several paragraphs. Its own models ignore it, too (qwen2_5_vl.py).
_DEFAULT_STOPS = ("\n\n",)


class LmmsEvalAdapter:
    """A model for lmms-eval, as one of its simple models (text and pictures separately).

    It runs in one process; ``device="device-map"`` spreads it over several devices.

    Args:
        pretrained: A directory that `export` wrote, another checkpoint, or a hub id; or a loaded
            model, for which ``device`` and ``dtype`` have no effect.
        device: See `load`.
        dtype: See `load`.
        batch_size: Maximum number of questions per batch.
        system_prompt: System prompt; empty: none.
        max_new_tokens: Maximum number of tokens of an answer, unless the task sets it.
        unknown: Other arguments, which are refused.

    Raises:
        TaskError: An argument is unknown or not a number, or there are several processes.
        ModelError: There is no such checkpoint, or its model takes no pictures.
    """

    is_simple = True
    task_dict: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]

    def __init__(
        self,
        pretrained: str | Path | LoadedModel,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        system_prompt: str = "",
        max_new_tokens: int | str = 1024,
        **unknown: Any,
    ) -> None:
        from effllava_optuna.evaluation.generation import AnsweringModel
        from effllava_optuna.surgery import LoadedModel, load

        super().__init__()
        if unknown:
            raise TaskError(
                f"--model {MODEL_ID} has no argument {next(iter(unknown))!r}.",
                hint="Use pretrained, device, dtype, batch_size, system_prompt or max_new_tokens.",
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TaskError(
                f"--model {MODEL_ID} runs in one process, not in {os.environ['WORLD_SIZE']}.",
                hint="Start it without accelerate or torchrun; device=device-map spreads a model.",
            )
        self.batch_size = _positive_int("batch_size", batch_size)
        self.max_new_tokens = _positive_int("max_new_tokens", max_new_tokens)
        if not isinstance(pretrained, LoadedModel):
            pretrained = load(str(pretrained), device=device, dtype=dtype)
        self.loaded = pretrained
        self._answering_model = AnsweringModel(pretrained, self.batch_size, str(system_prompt))

    @property
    def device(self) -> Any:
        """Return the device of the input embeddings."""
        return self.loaded.device

    @property
    def config(self) -> Any:
        """Return the model's configuration, from which lmms-eval takes a name for its report."""
        return self.loaded.model.config

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Generate an answer to each request.

        ``generation_kwargs`` of a task that `generation_options` does not read are ignored.
        Pictures are shown before the text; an ``<image>`` in the text is removed, as lmms-eval's
        own qwen2_5_vl does.

        Args:
            requests: Each has ``args``: context, generation_kwargs, doc_to_visual, number of the
                document, task, split.

        Returns:
            The answers, in the order of the requests.

        Raises:
            TaskError: A document has other visuals than pictures, or an option is not a number.
        """
        by_options: defaultdict[GenerationOptions, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_options[generation_options(request.args[1], self.max_new_tokens)].append(index)
        answers = dict[int, str]()
        for options, indices in by_options.items():
            indices.sort(key=lambda index: -len(requests[index].args[0]))
            questions = self._questions([requests[index].args for index in indices])
            answers |= zip(
                indices, self._answering_model.generate(questions, options), strict=True
            )
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Compute the likelihood of the answer of each request by teacher forcing.

        The results are what lmms-eval 0.7.3 scores, not what its ``api/model.py`` documents. Its
        evaluator converts a bare pair to a string (``unwrap_generation_output`` in
        ``api/instance.py``), and its multiple-choice scorer selects the smallest number
        (``np.argmin(lls)`` in ``api/task.py``), because its own models return a loss. So each
        result is a ``GenerationResult`` whose ``text`` is the pair (minus the sum of the tokens'
        log-probabilities, in nats, >= 0; whether greedy decoding would generate the answer).
        `AnsweringModel.likelihoods` returns the sum itself.

        Args:
            requests: Each has ``args``: context, the answer or a function that returns it for a
                document, doc_to_visual, number of the document, task, split; or the first two
                alone.

        Returns:
            The results, in the order of the requests.

        Raises:
            TaskError: A document has other visuals than pictures, or an answer is empty.
        """
        from lmms_eval.api.instance import GenerationResult

        arguments = [request.args for request in requests]
        indices = sorted(range(len(arguments)), key=lambda index: -len(arguments[index][0]))
        ordered = [arguments[index] for index in indices]
        answers = [
            answer if isinstance(answer, str) else str(answer(self._document(*visual[1:])))
            for _, answer, *visual in ordered
        ]
        pairs = zip(self._questions(ordered), answers, strict=True)
        likelihoods = dict(zip(indices, self._answering_model.likelihoods(pairs), strict=True))
        return [
            GenerationResult(text=(-likelihoods[index].log_probability, likelihoods[index].greedy))
            for index in range(len(arguments))
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise a `TaskError`: tasks of several rounds are not supported."""
        raise TaskError(
            f"{requests[0].args[-2]!r} is a task of several rounds, which --model {MODEL_ID} "
            "does not support.",
            hint="Use tasks with output_type generate_until or multiple_choice.",
        )

    def _document(self, number: int, task: str, split: str) -> Mapping[str, Any]:
        return self.task_dict[task][split][number]

    def _questions(self, arguments: Sequence[tuple[Any, ...]]) -> Iterator[Question]:
        """Yield the questions; the pictures of a question are opened when it is yielded."""
        from effllava_optuna.evaluation.generation import Question

        for context, _, *visual in tqdm(arguments, desc=MODEL_ID):
            pictures: tuple[Image.Image, ...] = ()
            if visual:
                doc_to_visual, *document_id = visual
                pictures = _pictures(doc_to_visual(self._document(*document_id)), *document_id)
            text = context.replace(_IMAGE, "").strip() if _IMAGE in context else context
            yield Question(text, pictures)


def generation_options(kwargs: Mapping[str, Any], new_tokens: int) -> GenerationOptions:
    """Convert ``generation_kwargs`` of a task, or ``--gen_kwargs``.

    It reads max_new_tokens, until, do_sample, temperature, top_p, top_k, num_beams and
    repetition_penalty; ``new_tokens`` is the default of the first. Decoding is greedy unless there
    is a temperature above 0, or ``do_sample`` without a temperature.

    Raises:
        TaskError: An option is not a number.
    """
    from effllava_optuna.evaluation.generation import GenerationOptions

    until = kwargs.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    try:
        do_sample = kwargs.get("do_sample")
        temperature = kwargs.get("temperature")
        temperature = float(temperature if temperature is not None else 1.0 if do_sample else 0.0)
        return GenerationOptions(
            new_tokens=int(kwargs.get("max_new_tokens") or new_tokens),
            until=tuple(stop for stop in stops if stop and stop not in _DEFAULT_STOPS),
            temperature=0.0 if do_sample is False else temperature,
            top_p=_optional_float(kwargs.get("top_p")),
            top_k=None if kwargs.get("top_k") is None else max(0, int(kwargs["top_k"])),
            beams=int(kwargs.get("num_beams") or 1),
            repetition_penalty=_optional_float(kwargs.get("repetition_penalty")),
        )
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"generation_kwargs {dict(kwargs)}: {error}.", hint="Use numbers."
        ) from error


def manifest() -> Any:
    """Return the manifest of ``--model effllava``; lmms-eval calls it by the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{__name__}.EffllavaLmms")


def __getattr__(name: str) -> Any:
    if name != "EffllavaLmms":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("lmms_eval") is None:
        raise TaskError(
            "lmms-eval is not installed.", hint="Run `pip install 'effllava-optuna[lmms]'`."
        )
    return _lmms_subclass()


@cache
def _lmms_subclass() -> Any:
    from lmms_eval.api.model import lmms

    names = {"__module__": __name__, "__doc__": LmmsEvalAdapter.__doc__}
    return new_class(
        "EffllavaLmms", (LmmsEvalAdapter, lmms), exec_body=lambda body: body.update(names)
    )


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)


def _positive_int(name: str, value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise TaskError(f"{name} is {shorten(value)}.", hint="Use a number from 1 up.")
    return number


def _pictures(visuals: Any, number: int, task: str, split: str) -> tuple[Image.Image, ...]:
    document = f"Document {number} of {task!r} ({split})"
    pictures = []
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            raise TaskError(
                f"{document} has a visual of type {type(visual).__name__}, such as a video.",
                hint="Use tasks with pictures.",
            )
        try:
            pictures.append(convert_to_rgb(visual))
        except Exception as error:  # a format of Pillow may raise anything for a damaged file
            raise TaskError(
                f"{document} has a picture that cannot be opened: {describe(error)}.",
                hint="Download the benchmark again.",
            ) from error
    return tuple(pictures)
