"""Native exports of families in stock vLLM: the table of docs/serving.md, and its record.

``pytest -m vllm --write-tables`` writes the record; without it, the outcomes must be those of the
record. The table on the page is compared with the record in the default run.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.errors import ExportError
from effllava_optuna.processors import encode
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.vllm_verification import (
    ROUNDING,
    VllmProcess,
    same_answer,
    vllm_process,
)
from effllava_optuna.vllm_package import VARIABLE
from tests.page_tables import check_table
from tests.study_fixtures import ROOT
from tests.surgery.export.engine_families import (
    DECODERS,
    VISION_LANGUAGE,
    decoder,
    greedy_tokens,
    image_mark,
    large_enough,
    prune_in_every_way,
)
from tests.surgery.visual_tokens.pictured_families import random_pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

RECORD = ROOT / "benchmarks" / "results" / "vllm_families.json"
NEW_TOKENS = 10
TOKENS = [[5, 6, 7], [*range(20, 60)], [9] * 17, [*range(100, 290)]]
FEW_TOKENS = [[30, 31, 32], [*range(26, 60)]]  # of a vocabulary of 64, without special ones
TEXT, PICTURES, REDUCED = "text", "a picture", "half of its image tokens"
HALF = "llama (bfloat16)"
COLUMNS = (TEXT, PICTURES, REDUCED)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
in_vllm = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no Python")


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmProcess]:
    """Start vLLM once for all families: it imports for half a minute."""
    with vllm_process() as process:
        yield process


def read_record() -> dict[str, dict[str, str]]:
    record: dict[str, dict[str, str]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def check_outcomes(name: str, outcomes: Mapping[str, str], *, write: bool) -> None:
    """Compare outcomes with the record, or write them."""
    record = read_record()
    row = record.get(name, {})
    if write:
        record[name] = {**row, **outcomes}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    else:
        assert {column: row.get(column) for column in outcomes} == outcomes


def outcome(
    engine: VllmProcess,
    small: LoadedModel,
    directory: Path,
    prompts: Sequence[Any],
    **options: Any,
) -> list[str]:
    """Return for each prompt whether vLLM's tokens are equal, or what vLLM says."""
    write_checkpoint(small, directory, size_plan(small))
    requests: list[Any] = []
    encoded, expected = [], []
    for prompt in prompts:
        if isinstance(prompt, list):
            ids = torch.tensor([prompt])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            requests.append(prompt)
        else:
            text, picture = prompt
            file = directory / f"{len(requests)}.png"
            picture.save(file)
            inputs = encode(small.processor, text=[text], images=[[picture]])
            requests.append({"text": text, "picture": str(file)})
        encoded.append(inputs)
        expected.append(greedy_tokens(small.model, inputs, NEW_TOKENS))
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    try:
        answers = engine.generate(
            directory, requests, {"max_model_len": -1, **options}, NEW_TOKENS
        )
    except ExportError as error:
        return [error.message] * len(prompts)
    rounding = ROUNDING if small.model.dtype is torch.float32 else 2 * ROUNDING
    return [
        "equal" if same_answer(small.model, inputs, wanted, tokens, rounding) else "differs"
        for inputs, wanted, tokens in zip(encoded, expected, answers.tokens, strict=True)
    ]


def summary(outcomes: Sequence[str]) -> str:
    """Return the outcome of several prompts: equal if all are."""
    return max(outcomes, key=lambda each: each != "equal")


@pytest.mark.vllm
@in_vllm
@pytest.mark.parametrize("name", [*DECODERS, HALF])
def test_a_decoder_pruned_in_every_way(
    name: str, engine: VllmProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    small = prune_in_every_way(decoder(name.partition(" ")[0]))
    dtype = "bfloat16" if name == HALF else "float32"
    small.model.to(getattr(torch, dtype))
    outcomes = outcome(engine, small, tmp_path, TOKENS, skip_tokenizer_init=True, dtype=dtype)
    write = request.config.getoption("--write-tables")
    check_outcomes(name, {TEXT: summary(outcomes)}, write=write)


@pytest.mark.vllm
@in_vllm
@pytest.mark.parametrize(
    ("name", "image_tokens"),
    [
        (name, share)
        for name in VISION_LANGUAGE
        for share in (1.0, 0.5)
        if (name, share) != ("mistral3", 0.5)  # cannot be reduced: docs/models.md
    ],
)
def test_a_vision_language_model_pruned_in_every_way(
    name: str,
    image_tokens: float,
    engine: VllmProcess,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    small = prune_in_every_way(large_enough(name), image_tokens)
    asked = [(f"{image_mark(name)} user what", picture) for picture in random_pictures()]
    outcomes = outcome(
        engine, small, tmp_path, [*FEW_TOKENS, *asked], limit_mm_per_prompt={"image": 1}
    )
    text, pictures = summary(outcomes[:2]), summary(outcomes[2:])
    columns = {TEXT: text, PICTURES: pictures} if image_tokens == 1 else {REDUCED: pictures}
    check_outcomes(name, columns, write=request.config.getoption("--write-tables"))


def test_the_table_of_the_page_is_that_of_the_record(request: pytest.FixtureRequest) -> None:
    record = read_record()
    families = (*DECODERS, HALF, *VISION_LANGUAGE)
    assert {*record} == {*families}
    rows = [f"| family | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name in families:
        rows.append(f"| {name} | {' | '.join(record[name].get(each, '') for each in COLUMNS)} |")
    check_table("serving", "engines", rows, write=request.config.getoption("--write-tables"))
