"""A language model without pictures is studied like any other: init, check, run, export."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from effllava_optuna import load
from effllava_optuna.errors import TaskError
from effllava_optuna.study import load_config
from effllava_optuna.tasks import Digits, Split, encode_prompts
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.studies

_WORDS = ("what", "is", "the", "sum", "of", "digit", "at", "top", "left", "right", "how", "many")
# As those of language models are: the content of a turn is a text.
_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] + ' ' + turn['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
_SIZES = (
    "task.proxy=8", "task.validation=8", "task.test=8", "task.new_tokens=4", "pruning.folds=2",
    "latency.checks=2", "latency.seconds=0.2", "search.epochs=2", "search.generations=1",
    "search.population=5", "report.finalists=2", "pruning.width_ratios=[0.25,0.5,1.0]",
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights, and a file of questions without answers beside it."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = load("digits-vlm", device="cpu").processor.tokenizer
    tokenizer.chat_template = _TEMPLATE
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3, generator=generator)
    model.save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    rows = [{"question": f"{_WORDS[n % 12]} {_WORDS[n // 12]} {_WORDS[n % 5]}"} for n in range(48)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "questions.jsonl").write_text(lines)
    return folder


def test_a_study_of_a_decoder_ends_with_a_verified_checkpoint(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = decoder / "questions.jsonl"
    words = ("--task", "qa", "--data", data, "--out", "text.toml", "--keep-ratio", "0.6")
    proposed = invoke("init", decoder / "decoder", *words)
    assert "48 of 48 rows have no answer" in proposed.stdout
    config = load_config("text.toml")
    assert config.projector.steps == 0
    assert config.quality.measure == "agreement"
    assert (config.task.proxy, config.task.validation, config.task.test) == (24, 12, 12)
    settings = [word for size in _SIZES for word in ("--set", size)]
    checked = invoke("check", "text.toml", "--deep")
    assert "the dense model answers, in the place of labels" in checked.stdout
    assert re.search(r"the dense model takes [\d.]+ ms for the workload of \[l", checked.stdout)
    done = invoke("run", "text.toml", *settings)
    assert "projector" not in done.stdout
    assert re.search(r"reloaded in a fresh process: logits differ by 0.0e\+00", done.stdout)
    exported = load("text.pruned", device="cpu")
    dense = load(decoder / "decoder", device="cpu")
    assert exported.model.num_parameters() < dense.model.num_parameters()
    assert exported.processor.chat_template == _TEMPLATE


def test_pictures_are_refused_by_name(decoder: Path) -> None:
    done = invoke("init", decoder / "decoder", "--task", "scienceqa", check=False)
    assert done.returncode == 2
    assert "takes no pictures, but task 'scienceqa' has pictures" in done.stderr
    tokenizer = load(decoder / "decoder", device="cpu").processor
    samples = Digits(proxy=8).samples(Split.PROXY)
    with pytest.raises(TaskError, match="has a picture, but the model takes none"):
        encode_prompts(tokenizer, samples)
