from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.judging import judge_prompts
from effllava_optuna.tasks.judging.judge_prompts import (
    MMVET_PROMPT,
    JudgePrompt,
    PromptOrigin,
    load_llava_bench_prompt,
    load_mmvet_prompt,
)


def test_a_text_or_a_file_of_the_caller_is_a_prompt_of_the_caller(tmp_path: Path) -> None:
    text = "Grade. {braces} and 100 %\n"
    expected = JudgePrompt(text, PromptOrigin.CALLER)
    (tmp_path / "own.txt").write_text(text)
    (tmp_path / "own.py").write_text(f"import no_such_module\nprompt = {text!r}\n")
    for prompt in (text, tmp_path / "own.txt", tmp_path / "own.py"):
        assert load_mmvet_prompt(prompt) == expected
    rules = {f"llava_bench_{kind}": {"prompt": text} for kind in ("conv", "detail", "complex")}
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    assert load_llava_bench_prompt(tmp_path / "rule.json") == expected


def test_the_built_in_prompt_is_not_taken_for_the_official_one() -> None:
    assert load_mmvet_prompt().origin is PromptOrigin.BUILT_IN
    assert load_llava_bench_prompt().origin is PromptOrigin.BUILT_IN
    assert load_mmvet_prompt(MMVET_PROMPT).origin is PromptOrigin.CALLER
    assert load_mmvet_prompt("a lone surrogate: \ud800").origin is PromptOrigin.CALLER


def test_the_official_prompt_is_identified_by_its_digest_with_any_line_breaks_at_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text, load in (
        ("_MMVET_SHA256", "table\n", load_mmvet_prompt),
        ("_LLAVA_BENCH_SHA256", "table", load_llava_bench_prompt),
    ):
        monkeypatch.setattr(judge_prompts, name, hashlib.sha256(text.encode()).hexdigest())
        for ending in ("", "\n", "\n\n"):
            (tmp_path / "prompt.txt").write_text(f"table{ending}")
            prompt = load(tmp_path / "prompt.txt")
            assert prompt == JudgePrompt(text, PromptOrigin.OFFICIAL)
        assert load("table ") == JudgePrompt("table ", PromptOrigin.CALLER)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.py", "x = (", "is not a valid Python file"),
        ("own.py", "prompt = 3", "does not assign a text to 'prompt'"),
        ("own.txt", "\n", "prompt is empty"),
        ("own.txt", b"\xff\xfe", "cannot be read"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_a_file_without_a_prompt_for_mmvet_is_refused(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TaskError, match=message):
        load_mmvet_prompt(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "has no rules of LLaVA-Bench"),
        ("[]", "has no rules of LLaVA-Bench"),
        ('{"llava_bench_conv": {"prompt": "x"}}', "has no rules of LLaVA-Bench"),
        (
            '{"llava_bench_conv": {"prompt": "x"}, "llava_bench_detail": {"prompt": "y"},'
            ' "llava_bench_complex": {"prompt": "x"}}',
            "has 2 prompts",
        ),
    ],
)
def test_rules_without_exactly_one_prompt_for_llava_bench_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "rule.json"
    path.write_text(content)
    with pytest.raises(TaskError, match=message):
        load_llava_bench_prompt(path)
