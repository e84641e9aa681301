"""Evaluate models with lmms-eval, whose benchmarks and metrics then do the rest.

By name, once both packages are installed (lmms-eval finds us by the entry point ``effllava`` of
the group ``lmms_eval.models``, read in ``lmms_eval/models/registry_v2.py`` of 0.7.3)::

    python -m lmms_eval --model effllava --model_args pretrained=small.pruned --tasks scienceqa

Or as an object, for a model that is in memory already::

    simple_evaluate(model=EffllavaLmms(sliced(...)), tasks=["scienceqa"])

``EffllavaLmms`` is `Adapter` as a subclass of lmms-eval's ``lmms``. It is made when it is first
used: importing this module does not import lmms-eval, which is not among our dependencies.
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

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.objectives.answering import Manner, Question
    from effllava_optuna.surgery import Loaded

MODEL_ID = "effllava"
_IMAGE = "<image>"  # how doc_to_text of some tasks says where a picture is
# Stop strings that are not obeyed: lmms-eval adds a blank line for every task that names none,
# which would cut answers of several paragraphs. Its own models drop it, too (qwen2_5_vl.py).
_FILLED_IN = ("\n\n",)


class Adapter:
    """A model as lmms-eval asks it (``is_simple``: by text and pictures apart).

    One process, one model: spread it over several devices with ``device="device-map"``.

    Args:
        pretrained: A directory that `export` wrote, another checkpoint, a hub id; or a model that
            is loaded already, for which ``device`` and ``dtype`` say nothing.
        device: See `load`.
        dtype: See `load`.
        batch_size: The most questions at once.
        system_prompt: The system's turn; none if empty.
        max_new_tokens: The most tokens of an answer, for tasks that do not say.
        unknown: Nothing else may be given.

    Raises:
        TaskError: An argument is unknown or no number, or there is more than one process.
        ModelError: There is no such checkpoint, or its model takes no pictures.
    """

    is_simple = True
    task_dict: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]

    def __init__(
        self,
        pretrained: str | Path | Loaded,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        system_prompt: str = "",
        max_new_tokens: int | str = 1024,
        **unknown: Any,
    ) -> None:
        from effllava_optuna.objectives.answering import Respondent
        from effllava_optuna.surgery import Loaded, load

        super().__init__()
        if unknown:
            raise TaskError(
                f"--model {MODEL_ID} knows no argument {next(iter(unknown))!r}.",
                hint="It takes pretrained, device, dtype, batch_size, system_prompt and "
                "max_new_tokens.",
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TaskError(
                f"--model {MODEL_ID} runs in one process, not in {os.environ['WORLD_SIZE']}.",
                hint="Start it without accelerate or torchrun; device=device-map spreads a model.",
            )
        self.batch_size = _count("batch_size", batch_size)
        self.max_new_tokens = _count("max_new_tokens", max_new_tokens)
        if not isinstance(pretrained, Loaded):
            pretrained = load(str(pretrained), device=device, dtype=dtype)
        self.loaded = pretrained
        self._respondent = Respondent(pretrained, self.batch_size, str(system_prompt))

    @property
    def device(self) -> Any:
        """Give the device of the input embeddings."""
        return self.loaded.device

    @property
    def config(self) -> Any:
        """Give the model's configuration, from which lmms-eval takes a name for its report."""
        return self.loaded.model.config

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Write an answer to each request, in the order of the requests.

        Of a task's ``generation_kwargs``, those of `manner_of` count, the others are for other
        models. Pictures are shown before the text; an ``<image>`` in the text is left out, as
        lmms-eval's own qwen2_5_vl does.

        Args:
            requests: Each has ``args``: context, generation_kwargs, doc_to_visual, number of the
                document, task, split.

        Raises:
            TaskError: A document has something else than pictures, or a number is none.
        """
        alike: defaultdict[Manner, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[manner_of(request.args[1], self.max_new_tokens)].append(place)
        found = dict[int, str]()
        for manner, places in alike.items():
            places.sort(key=lambda place: -len(requests[place].args[0]))
            questions = self._questions([requests[place].args for place in places])
            found |= zip(places, self._respondent.write(questions, manner), strict=True)
        return [found[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Weigh the answer of each request by teacher forcing, in the order of the requests.

        What comes back is what lmms-eval 0.7.3 scores, not what its ``api/model.py`` documents.
        Its evaluator turns a bare pair into a string (``unwrap_generation_output`` in
        ``api/instance.py``), and its multiple-choice scorer takes the smallest number for the
        answer (``np.argmin(lls)`` in ``api/task.py``), as its own models return a loss. So
        each result is a ``GenerationResult`` whose ``text`` is the pair (minus the sum of the
        tokens' log-probabilities, in nats, >= 0; whether greedy decoding would write it).
        `Respondent.weigh` gives the sum itself.

        Args:
            requests: Each has ``args``: context, the answer or what makes it of a document,
                doc_to_visual, number of the document, task, split; or the first two alone.

        Raises:
            TaskError: A document has something else than pictures, or an answer is empty.
        """
        from lmms_eval.api.instance import GenerationResult

        asked = [request.args for request in requests]
        places = sorted(range(len(asked)), key=lambda place: -len(asked[place][0]))
        ordered = [asked[place] for place in places]
        answers = [
            answer if isinstance(answer, str) else str(answer(self._document(*rest[1:])))
            for _, answer, *rest in ordered
        ]
        pairs = zip(self._questions(ordered), answers, strict=True)
        weights = dict(zip(places, self._respondent.weigh(pairs), strict=True))
        return [
            GenerationResult(text=(-weights[place].log_probability, weights[place].greedy))
            for place in range(len(asked))
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: a conversation has one round.

        Raises:
            TaskError: Always.
        """
        raise TaskError(
            f"{requests[0].args[-2]!r} is a task of several rounds, which --model {MODEL_ID} "
            "does not play.",
            hint="Choose tasks with output_type generate_until or multiple_choice.",
        )

    def _document(self, number: int, task: str, split: str) -> Mapping[str, Any]:
        return self.task_dict[task][split][number]

    def _questions(self, asked: Sequence[tuple[Any, ...]]) -> Iterator[Question]:
        """Open pictures only when their question is asked."""
        from effllava_optuna.objectives.answering import Question

        for context, _, *rest in tqdm(asked, desc=MODEL_ID):
            pictures = _pictures(rest[0](self._document(*rest[1:])), *rest[1:]) if rest else ()
            text = context.replace(_IMAGE, "").strip() if _IMAGE in context else context
            yield Question(text, pictures)


def manner_of(options: Mapping[str, Any], new_tokens: int) -> Manner:
    """Read ``generation_kwargs`` of a task, or ``--gen_kwargs``.

    Understood are max_new_tokens, until, do_sample, temperature, top_p, top_k, num_beams and
    repetition_penalty. Answers are greedy unless there is a temperature above 0, or
    ``do_sample`` without one.

    Args:
        options: By name.
        new_tokens: Where they name no number.

    Raises:
        TaskError: A number is none.
    """
    from effllava_optuna.objectives.answering import Manner

    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    try:
        sampled = options.get("do_sample")
        warmth = options.get("temperature")
        temperature = float(warmth if warmth is not None else 1.0 if sampled else 0.0)
        return Manner(
            new_tokens=int(options.get("max_new_tokens") or new_tokens),
            until=tuple(stop for stop in stops if stop and stop not in _FILLED_IN),
            temperature=0.0 if sampled is False else temperature,
            top_p=_number(options.get("top_p")),
            top_k=None if options.get("top_k") is None else max(0, int(options["top_k"])),
            beams=int(options.get("num_beams") or 1),
            repetition_penalty=_number(options.get("repetition_penalty")),
        )
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"generation_kwargs {dict(options)}: {error}.", hint="Give numbers."
        ) from error


def manifest() -> Any:
    """Say to lmms-eval what ``--model effllava`` is; its entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{__name__}.EffllavaLmms")


def __getattr__(name: str) -> Any:
    if name != "EffllavaLmms":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("lmms_eval") is None:
        raise TaskError(
            "lmms-eval is not installed.", hint="Run `pip install 'effllava-optuna[lmms]'`."
        )
    return _made()


@cache
def _made() -> Any:
    from lmms_eval.api.model import lmms

    names = {"__module__": __name__, "__doc__": Adapter.__doc__}
    return new_class("EffllavaLmms", (Adapter, lmms), exec_body=lambda body: body.update(names))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _count(name: str, value: int | str) -> int:
    try:
        count = int(value)
    except ValueError:
        count = 0
    if count < 1:
        raise TaskError(f"{name} is {value!r}.", hint="Give a number from 1 up.")
    return count


def _pictures(visuals: Any, number: int, task: str, split: str) -> tuple[Image.Image, ...]:
    place = f"Document {number} of {task!r} ({split})"
    found = []
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            raise TaskError(
                f"{place} has a visual of type {type(visual).__name__}, such as a video.",
                hint="Choose tasks about pictures.",
            )
        try:
            found.append(visual.convert("RGB"))
        except (OSError, ValueError) as error:
            raise TaskError(
                f"{place} has a picture that cannot be opened: {error}.",
                hint="Download the benchmark again.",
            ) from error
    return tuple(found)
