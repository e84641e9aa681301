"""What is measured of a pruned ``smollm-vlm``: answers about pictures, and what else it can do."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _packages import BUILT, HERE, VALIDATION_PICTURES, fetch_packages, questions_of
from _packed_questions import PackedQuestions
from _smollm_vlm import features_of, pixels_of

from effllava_optuna.config.task_factory import make_task
from effllava_optuna.evaluation.perplexity import measure_perplexity
from effllava_optuna.objectives import answer_questions, encode_samples
from effllava_optuna.objectives.accuracy import score_batch
from effllava_optuna.study import load_config
from effllava_optuna.surgery import answer_logits
from effllava_optuna.surgery.visual_tokens.token_selection import reduced_features
from effllava_optuna.tasks import Scores, Split, dense_outputs, with_dense_answers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from _packages import Question

    from effllava_optuna.objectives import EncodedBatch
    from effllava_optuna.surgery import LoadedModel

_TEXT_STUDY = HERE.parent.parent / "studies" / "smollm-text.toml"
_GLOSSES = HERE / "glosses.txt"
PICTURES = 24  # of each split, in a draw
_GLOSSES_OF_DRAW = 75
_BATCH = 4  # pictures
_WORDS, _WORD_TOKENS = 16, 24  # questions about words, and tokens of an answer


class TextMeasures:
    """Measures what networks know of text, on the questions of one draw.

    Args:
        loaded: The dense model. It answers the questions about words, whose answers the networks
            are compared with.
        seed: Seed of the draw: questions about words, and glosses.
        share: The share of a whole draw that is measured.
    """

    def __init__(self, loaded: LoadedModel, seed: int, share: float = 1.0) -> None:
        self._words = _answered_words(loaded, seed, math.ceil(_WORDS * share))
        lines = _GLOSSES.read_text(encoding="utf-8").splitlines()
        first = seed % (len(lines) // _GLOSSES_OF_DRAW) * _GLOSSES_OF_DRAW
        last = first + math.ceil(_GLOSSES_OF_DRAW * share)
        self._glosses = "\n".join(lines[first:last])

    @torch.inference_mode()
    def figures(self, network: LoadedModel) -> dict[str, Any]:
        """Return what is measured of a network.

        Returns:
            ``perplexity`` of glosses of WordNet; ``agreement``: share of the tokens of the dense
            model's answers about words that are the likeliest ones.
        """
        scores = Scores.concatenate([score_batch(network, batch) for batch in self._words])
        return {
            "perplexity": round(measure_perplexity(network, self._glosses).value, 3),
            "agreement": round(float(scores.hit.mean()), 4),
        }

    def constant(self) -> dict[str, Any]:
        """Return the figures of what always says the same: the floor of `figures`.

        It predicts every token of the glosses with the same probability, and of the answers the
        most frequent one.
        """
        outputs = [batch.dense.log_probabilities for batch in self._words if batch.dense]
        counts = torch.cat([output.argmax(1) for output in outputs]).bincount()
        return {
            "perplexity": float(outputs[0].shape[1]),
            "agreement": round(float(counts.max() / counts.sum()), 4),
        }


class NetworkMeasures(TextMeasures):
    """Measures answers to questions about pictures besides.

    Args:
        loaded: The dense model.
        seed: Seed of the draw, of pictures as well.
        pictures: Pictures of each split, at most `PICTURES`; all questions about them are asked.
            With fewer pictures less text is measured, too.
    """

    def __init__(self, loaded: LoadedModel, seed: int, pictures: int = PICTURES) -> None:
        super().__init__(loaded, seed, pictures / PICTURES)
        self._asked = {
            split: _drawn_pictures(loaded, split, pictures, seed)
            for split in (Split.VALIDATION, Split.TEST)
        }

    @torch.inference_mode()
    def right(self, network: LoadedModel, split: Split = Split.TEST) -> list[int]:
        """Count the questions about each picture that greedy decoding answers correctly."""
        packed = PackedQuestions(network.model, network.processor.tokenizer)
        counts, asked = [], self._asked[split]
        for start in range(0, len(asked), _BATCH):
            batch = asked[start : start + _BATCH]
            visual = packed.projected([features for features, _ in batch])
            if network.visual_tokens is not None:
                visual = reduced_features(visual, network.visual_tokens.to_json())
            _, hits = packed.losses(
                [(tokens, questions) for tokens, (_, questions) in zip(visual, batch, strict=True)]
            )
            ends = np.cumsum([len(questions) for _, questions in batch])[:-1]
            counts += [int(part.sum()) for part in np.split(np.array(hits), ends)]
        return counts

    def accuracy(self, network: LoadedModel, split: Split) -> float:
        """Return the share of the questions that `right` counts."""
        asked = sum(len(questions) for _, questions in self._asked[split])
        return sum(self.right(network, split)) / asked

    def figures(self, network: LoadedModel) -> dict[str, Any]:
        """Return what is measured of a network.

        Returns:
            What `TextMeasures` returns; ``right``: test questions that are answered correctly, by
            picture; ``asked``: test questions, by picture.
        """
        return {
            "right": self.right(network),
            "asked": [len(questions) for _, questions in self._asked[Split.TEST]],
        } | super().figures(network)

    def constant(self) -> dict[str, Any]:
        """Return the figures of a constant: of the pictures, the most frequent answer."""
        answers = [[question.answer for question in asked] for _, asked in self._asked[Split.TEST]]
        every = [answer for about in answers for answer in about]
        frequent = max(dict.fromkeys(every), key=every.count)
        return {
            "right": [about.count(frequent) for about in answers],
            "asked": [len(about) for about in answers],
        } | super().constant()


def _drawn_pictures(
    loaded: LoadedModel, split: Split, count: int, seed: int
) -> list[tuple[torch.Tensor, list[Question]]]:
    """Draw pictures of a split; return their features with all questions about them."""
    asked: dict[Path, list[Question]] = defaultdict(list)
    for question in questions_of(fetch_packages(BUILT), "test"):
        held_out = int(question.image.stem) < VALIDATION_PICTURES
        if held_out == (split is Split.VALIDATION):
            asked[question.image].append(question)
    rng = np.random.default_rng([seed, 20])
    images = [sorted(asked)[index] for index in rng.choice(len(asked), count, replace=False)]
    features = features_of(loaded.model, pixels_of(images))
    return [(part, asked[image]) for part, image in zip(features, images, strict=True)]


def _answered_words(loaded: LoadedModel, seed: int, count: int) -> Sequence[EncodedBatch]:
    """Return questions about words with the answers and the outputs of the dense model."""
    changes = (
        f"study.seed={seed}", f"task.test={count}", f"task.new_tokens={_WORD_TOKENS}",
        f"task.data={json.dumps(str(BUILT / 'words.jsonl'))}",
    )  # fmt: skip
    samples = make_task(load_config(_TEXT_STUDY, changes)).samples(Split.TEST)
    answered = with_dense_answers(samples, answer_questions(loaded, samples))
    with torch.inference_mode():
        return [
            replace(
                encoded, dense=dense_outputs(answer_logits(loaded, encoded.seen), encoded.batch)
            )
            for encoded in encode_samples(loaded, answered)
        ]
