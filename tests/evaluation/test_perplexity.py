"""Perplexity of a text: against the definition, over windows, and of files that have no text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import BatchEncoding

from effllava_optuna import Policy, load, narrowed, rank_units
from effllava_optuna.errors import ConfigError
from effllava_optuna.evaluation import perplexity
from effllava_optuna.evaluation.perplexity import measure_perplexity, read_text

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

_TEXT = "what is the sum of the digits at top left and bottom right ?"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """The embedded model."""
    return load("digits-vlm", device="cpu")


@torch.no_grad()
def _by_definition(loaded: LoadedModel, ids: list[int], window: int) -> tuple[float, int]:
    """Return the perplexity and the number of tokens, predicting one token at a time."""
    losses = []
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        for end in range(1, len(part)):
            logits = loaded.model(input_ids=torch.tensor([part[:end]])).logits[0, -1]
            losses.append(-float(logits.double().log_softmax(-1)[part[end]]))
    return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize("window", [2, 5, 256])
def test_perplexity_is_that_of_its_definition(loaded: LoadedModel, window: int) -> None:
    ids = loaded.processor.tokenizer(_TEXT, add_special_tokens=False).input_ids
    expected, count = _by_definition(loaded, ids, window)
    measured = measure_perplexity(loaded, _TEXT, window=window)
    assert measured.tokens == count
    assert measured.value == pytest.approx(expected, rel=1e-5)


def test_a_pruned_network_has_a_perplexity_of_its_own(loaded: LoadedModel) -> None:
    dense = measure_perplexity(loaded, _TEXT).value
    policy = Policy.uniform(loaded.structure, ratio=0.25)
    with narrowed(loaded, policy, rank_units(loaded)) as network:
        assert measure_perplexity(network, _TEXT).value != pytest.approx(dense, rel=1e-3)
    assert measure_perplexity(loaded, _TEXT).value == dense


def test_progress_ends_below_one(loaded: LoadedModel) -> None:
    shares: list[float] = []
    measure_perplexity(loaded, _TEXT, window=4, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[-1] < 1


def test_a_text_of_one_token_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="fewer than two tokens"):
        measure_perplexity(loaded, "what")


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n", "has no text"), (b"ab\xff", "is not text in UTF-8: byte 2")]
)
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_text(tmp_path / "text")


def test_windows_begin_with_the_token_that_begins_every_text(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of Gemma, whose models were trained with it."""
    tokenizer = loaded.processor.tokenizer
    ids = tokenizer(_TEXT, add_special_tokens=False).input_ids
    begin = ids[3]
    monkeypatch.setattr(perplexity, "_first_tokens", lambda _: [begin])
    windows = [[begin, *ids[start : start + 4]] for start in range(0, len(ids), 4)]
    losses = [
        math.log(value) * count
        for value, count in (_by_definition(loaded, window, 5) for window in windows)
    ]
    measured = measure_perplexity(loaded, _TEXT, window=5)
    assert measured.tokens == len(ids)
    assert math.log(measured.value) == pytest.approx(sum(losses) / len(ids), rel=1e-5)


@pytest.mark.parametrize(("added", "first"), [([7], [7]), ([], [])])
def test_the_first_token_is_that_which_the_tokenizer_adds(
    added: list[int], first: list[int]
) -> None:
    class Tokenizer:
        bos_token_id = 7

        def __call__(self, _: str) -> BatchEncoding:
            return BatchEncoding({"input_ids": [*added, 3]})

    assert perplexity._first_tokens(Tokenizer()) == first
