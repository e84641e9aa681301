"""Models as lmms-eval evaluates them.

Tests that need lmms-eval itself are skipped if it is not installed.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from operator import attrgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import effllava_optuna
from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.evaluation import lmms_eval as lmms
from effllava_optuna.evaluation.generation import AnsweringModel, GenerationOptions, Question
from effllava_optuna.evaluation.lmms_eval import LmmsEvalAdapter, generation_options
from effllava_optuna.surgery import answer_logits, encode_images, reduced_tokens
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.tasks import Digits, Split, encode_with_answers, score_logits

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

SAMPLES = Digits(test=40).samples(Split.TEST)
PICTURES = [p for sample in SAMPLES if (p := sample.load_image()) is not None]
QUESTIONS = [Question(s.question, (p,)) for s, p in zip(SAMPLES, PICTURES, strict=True)]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: {output}
doc_to_visual: !function seeing.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
SEEING = """
from PIL import Image

def pictures(row):
    return [Image.open(row["picture"])] if row["picture"] else None
"""


@pytest.fixture(scope="module")
def pruned() -> LoadedModel:
    """A model that is right on some of the samples."""
    loaded = effllava_optuna.load("digits-vlm", device="cpu")
    policy = Policy.uniform(loaded.structure, ratio={"attn": 0.5, "mlp": 0.3})
    return sliced(loaded, policy, rank_units(loaded, importance="magnitude"))


@pytest.fixture(scope="module")
def right(pruned: LoadedModel) -> list[bool]:
    """Whether it is right on each sample, by the scores of this package."""
    (batch,) = encode_with_answers(pruned.processor, SAMPLES)
    hit = (
        score_logits(answer_logits(pruned, encode_images(pruned, batch.inputs)), batch)
        .hit.astype(bool)
        .tolist()
    )
    assert 0.2 < np.mean(hit) < 0.9
    return list(hit)


@pytest.fixture(scope="module")
def adapter_of_rows(pruned: LoadedModel) -> LmmsEvalAdapter:
    """An adapter without lmms-eval; its task has rows with and without a picture."""
    adapter = LmmsEvalAdapter(pruned, batch_size=4)
    rows = [{"pictures": list(q.pictures) if i % 3 else []} for i, q in enumerate(QUESTIONS)]
    adapter.task_dict = {"digits": {"test": rows}}
    return adapter


def request(row: int, second: Any, text: str = "", task: str = "digits") -> Any:
    context = text or SAMPLES[row].question
    return SimpleNamespace(args=(context, second, lambda doc: doc["pictures"], row, task, "test"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files for lmms-eval."""
    directory = tmp_path_factory.mktemp("tasks")
    rows = []
    for index, sample in enumerate(SAMPLES):
        PICTURES[index].save(directory / f"{sample.id}.png")
        rows.append(
            {
                "picture": str(directory / f"{sample.id}.png"),
                "question": sample.question,
                "answer": sample.correct_answer,
                "index": sample.answer,
                "choices": list(sample.targets),
            }
        )
        if index % 4 == 0:
            rows.append({**rows[-1], "picture": None, "answer": "none"})
    pictured = [row for row in rows if row["picture"]]
    for name, task_rows in (("mixed", rows), ("pictured", pictured)):
        (directory / f"{name}.jsonl").write_text(
            "\n".join(map(json.dumps, task_rows)), encoding="utf-8"
        )
    (directory / "seeing.py").write_text(SEEING, encoding="utf-8")
    limit = "generation_kwargs:\n  max_new_tokens: 6"
    for name, rows_of, output, target, metric, more in (
        ("digits_words", "pictured", "generate_until", "answer", "exact_match", limit),
        ("digits_mixed", "mixed", "generate_until", "answer", "exact_match", limit),
        ("digits_choice", "pictured", "multiple_choice", "index", "acc", "doc_to_choice: choices"),
    ):
        text = TASK.format(
            name=name, rows=directory / f"{rows_of}.jsonl", output=output, target=target,
            metric=metric, more=more,
        )  # fmt: skip
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
    return directory


def evaluated(tasks: Path, name: str, model: Any, **options: Any) -> Any:
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    manager = pytest.importorskip("lmms_eval.tasks").TaskManager
    return evaluator.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )


def test_without_lmms_eval_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    message = r"is not installed\. Run `pip install 'effllava-optuna\[lmms\]'`\."
    with pytest.raises(TaskError, match=message):
        attrgetter("EffllavaLmms")(lmms)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"lmms_eval' has no attribute 'Effllava'"):
        attrgetter("Effllava")(lmms)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, GenerationOptions(50)),
        ({"max_new_tokens": 16, "temperature": 0, "do_sample": False}, GenerationOptions(16)),
        ({"temperature": 0, "do_sample": True, "top_p": None}, GenerationOptions(50)),
        ({"temperature": 0.7, "do_sample": False}, GenerationOptions(50)),
        ({"temperature": "0.7", "top_p": 0.9}, GenerationOptions(50, temperature=0.7, top_p=0.9)),
        ({"do_sample": True, "top_k": -1}, GenerationOptions(50, temperature=1.0, top_k=0)),
        (
            {"num_beams": 3, "repetition_penalty": 1.1},
            GenerationOptions(50, beams=3, repetition_penalty=1.1),
        ),
        ({"until": "</s>", "image_aspect_ratio": "pad"}, GenerationOptions(50, until=("</s>",))),
        ({"until": ["\n\n", "Q:", ""]}, GenerationOptions(50, until=("Q:",))),
    ],
)
def test_generation_kwargs_are_converted_to_options(
    options: dict[str, Any], expected: GenerationOptions
) -> None:
    assert generation_options(options, 50) == expected


def test_an_option_that_is_not_a_number_is_named() -> None:
    with pytest.raises(TaskError, match=r"generation_kwargs \{'temperature': 'hot'\}: could not"):
        generation_options({"temperature": "hot"}, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, r"batch_size is 'auto'\. Use a number from 1 up"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"attn": "sdpa"}, "has no argument 'attn'. Use pretrained, device,"),
    ],
)
def test_a_wrong_argument_is_named(
    pruned: LoadedModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        LmmsEvalAdapter(pruned, **arguments)


def test_several_processes_are_refused(
    pruned: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TaskError, match="runs in one process, not in 2"):
        LmmsEvalAdapter(pruned)


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(ModelError, match=r"There is no directory './nowhere'"):
        LmmsEvalAdapter("./nowhere")


def test_answers_have_the_order_and_the_options_of_the_requests(
    adapter_of_rows: LmmsEvalAdapter, pruned: LoadedModel
) -> None:
    limits = [1 + 5 * (row % 2) for row in range(16)]
    options = [{"max_new_tokens": most, "until": "\n\n"} for most in limits]
    result = adapter_of_rows.generate_until(
        [request(row, kwargs) for row, kwargs in enumerate(options)]
    )
    expected = []
    for row, question in enumerate(QUESTIONS[:16]):
        alone = question if row % 3 else Question(question.text)
        expected += AnsweringModel(pruned).generate([alone], GenerationOptions(limits[row]))
    assert result == expected
    assert len(set(result)) > 3


def test_an_export_with_fewer_image_tokens_answers_as_the_reduced_model(
    pruned: LoadedModel, tmp_path: Path
) -> None:
    directory = tmp_path / "reduced"
    with reduced_tokens(pruned, 0.5) as reduced:
        expected = AnsweringModel(reduced).generate(QUESTIONS[:12], GenerationOptions(6))
        alone = sliced(reduced, Policy.dense(pruned.structure), rank_units(pruned))
        write_checkpoint(alone, directory, size_plan(alone))
    adapter = LmmsEvalAdapter(directory, device="cpu", batch_size=4)
    rows = [{"pictures": list(question.pictures)} for question in QUESTIONS[:12]]
    adapter.task_dict = {"digits": {"test": rows}}
    options = {"max_new_tokens": 6}
    answers = adapter.generate_until([request(row, options) for row in range(12)])
    assert answers == expected
    assert answers != AnsweringModel(pruned).generate(QUESTIONS[:12], GenerationOptions(6))


def test_the_image_token_is_removed_from_the_text(adapter_of_rows: LmmsEvalAdapter) -> None:
    options = {"max_new_tokens": 6}
    plain = adapter_of_rows.generate_until([request(row, options) for row in (1, 2)])
    marked = [request(row, options, f"<image>\n{SAMPLES[row].question}") for row in (1, 2)]
    assert adapter_of_rows.generate_until(marked) == plain


def test_the_system_prompt_and_the_token_limit_are_used(
    pruned: LoadedModel, adapter_of_rows: LmmsEvalAdapter
) -> None:
    system = "how many digits are even?"
    adapter = LmmsEvalAdapter(pruned, system_prompt=system, max_new_tokens=1)
    adapter.task_dict = adapter_of_rows.task_dict
    result = adapter.generate_until([request(row, {}) for row in (1, 2, 4, 5)])
    questions = [QUESTIONS[row] for row in (1, 2, 4, 5)]
    assert result == AnsweringModel(pruned, system=system).generate(
        questions, GenerationOptions(1)
    )


def test_a_video_is_refused(pruned: LoadedModel) -> None:
    adapter = LmmsEvalAdapter(pruned)
    adapter.task_dict = {"clips": {"test": [{"pictures": ["a.mp4"]}]}}
    message = r"Document 0 of 'clips' \(test\) has a visual of type str, such as a video"
    with pytest.raises(TaskError, match=message):
        adapter.generate_until([request(0, {}, task="clips")])


def test_a_damaged_picture_is_named(pruned: LoadedModel, tmp_path: Path) -> None:
    whole = tmp_path / "a.png"
    Image.effect_noise((64, 64), 9.0).save(whole)
    whole.write_bytes(whole.read_bytes()[:900])
    adapter = LmmsEvalAdapter(pruned)
    message = r"Document 0 of 'torn' \(test\) has a picture that cannot be opened: "
    with Image.open(whole) as torn:
        adapter.task_dict = {"torn": {"test": [{"pictures": [torn]}]}}
        with pytest.raises(TaskError, match=message):
            adapter.generate_until([request(0, {}, task="torn")])


def test_several_rounds_are_refused(adapter_of_rows: LmmsEvalAdapter) -> None:
    with pytest.raises(TaskError, match="'digits' is a task of several rounds"):
        adapter_of_rows.generate_until_multi_round([request(0, {})])


def test_likelihoods_are_losses_in_the_order_of_the_requests(
    adapter_of_rows: LmmsEvalAdapter, pruned: LoadedModel
) -> None:
    pytest.importorskip("lmms_eval.api.instance")
    rows = [1, 2, 4, 5, 7]
    results = adapter_of_rows.loglikelihood(
        [request(1, " 3"), *(request(row, lambda _: "3 1") for row in rows[1:])]
    )
    pairs = [(QUESTIONS[row], "3" if row == 1 else "3 1") for row in rows]
    for result, likelihood in zip(results, AnsweringModel(pruned).likelihoods(pairs), strict=True):
        assert result.text[0] == pytest.approx(-likelihood.log_probability, abs=1e-4)
        assert result.text[0] > 0
        assert result.text[1] == likelihood.greedy
    (bare,) = adapter_of_rows.loglikelihood([SimpleNamespace(args=("", "3"))])
    (likelihood,) = AnsweringModel(pruned).likelihoods([(Question(""), "3")])
    assert bare.text[0] == pytest.approx(-likelihood.log_probability, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_lmms_eval_measures_the_same_accuracy(
    pruned: LoadedModel, right: list[bool], tasks: Path, batch_size: int
) -> None:
    pytest.importorskip("lmms_eval.api.model")
    model = lmms.EffllavaLmms(pruned, batch_size=batch_size)
    result = evaluated(tasks, "digits_words", model)
    assert result["results"]["digits_words"]["exact_match,none"] == pytest.approx(np.mean(right))
    correct = {s["doc_id"]: bool(s["exact_match"]) for s in result["samples"]["digits_words"]}
    assert [correct[index] for index in range(len(right))] == right


def test_lmms_eval_selects_the_likeliest_choice(
    pruned: LoadedModel, right: list[bool], tasks: Path
) -> None:
    pytest.importorskip("lmms_eval.api.model")
    model = lmms.EffllavaLmms(pruned, batch_size=32)
    result = evaluated(tasks, "digits_choice", model, limit=12)
    correct = {s["doc_id"]: bool(s["acc"]) for s in result["samples"]["digits_choice"]}
    assert [correct[index] for index in range(12)] == right[:12]


def test_a_model_is_evaluated_twice_and_without_pictures(
    pruned: LoadedModel, right: list[bool], tasks: Path
) -> None:
    pytest.importorskip("lmms_eval.api.model")
    model = lmms.EffllavaLmms(pruned, batch_size=8)
    evaluated(tasks, "digits_words", model, limit=2)
    result = evaluated(tasks, "digits_mixed", model)
    texts = [s["resps"][0][0] for s in result["samples"]["digits_mixed"]]
    assert len(texts) == 50
    assert result["results"]["digits_mixed"]["exact_match,none"] == pytest.approx(sum(right) / 50)
    assert (model.rank, model.world_size) == (0, 1)


def test_lmms_eval_loads_the_model_by_name(tasks: Path) -> None:
    pytest.importorskip("lmms_eval.models")
    result = evaluated(
        tasks, "digits_words", "effllava",
        model_args="pretrained=digits-vlm,device=cpu,max_new_tokens=6", batch_size=8,
    )  # fmt: skip
    assert result["results"]["digits_words"]["exact_match,none"] > 0.95
    assert (
        result["config"]["model_backend"]
        == "effllava_optuna.evaluation.lmms_eval.EffllavaLmms (simple)"
    )


@pytest.mark.benchmarks
def test_the_command_of_lmms_eval_evaluates_an_exported_checkpoint(
    pruned: LoadedModel, right: list[bool], tasks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lmms_eval.__main__")
    pytest.importorskip("pytablewriter")
    effllava_optuna.export(pruned, tmp_path / "small.pruned")
    run = subprocess.run(
        [
            sys.executable, "-m", "lmms_eval", "--model", "effllava",
            "--model_args", "pretrained=small.pruned,device=cpu", "--tasks", "digits_words",
            "--include_path", str(tasks), "--batch_size", "8", "--output_path", "out",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    assert "exact_match" in run.stdout
    (written,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(written.read_text(encoding="utf-8"))["results"]
    assert results["digits_words"]["exact_match,none"] == pytest.approx(np.mean(right))


def test_pictures_of_a_benchmark_are_shown_as_a_viewer_shows_them() -> None:
    transparent = Image.new("RGBA", (4, 2), (9, 9, 9, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    Image.new("L", (4, 2)).save(file, "PNG", exif=exif)
    white, turned = lmms._pictures([transparent, Image.open(file)], 0, "task", "test")
    assert (white.getpixel((0, 0)), turned.size) == ((255, 255, 255), (2, 4))
    deep = Image.fromarray(np.array([[-1, 0]], dtype=np.int32))
    with pytest.raises(TaskError, match=r"Document 3 of 'task' .*its values are from -1 to 0"):
        lmms._pictures([deep], 3, "task", "test")
