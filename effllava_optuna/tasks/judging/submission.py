"""Submission files for the official evaluators and servers of benchmarks.

Files are written atomically, in UTF-8, and are equal for equal answers. They are not checked for
missing questions: the evaluators do that.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.files import write_atomically, write_errors_as

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from effllava_optuna.tasks.judging.benchmark_judges import AnsweredQuestion

_MMVET_PREFIX = "v1_"
_N_OPTIONS = 26  # letters; `--options` of eval_science_qa.py lists them, A to E by default
_UNPARSED = -1


def write_mmvet(path: Path, answers: Mapping[str, str]) -> None:
    """Write ``{"v1_<id>": text}`` for MM-Vet's evaluator, ordered by id.

    The server is https://huggingface.co/spaces/whyu/MM-Vet_Evaluator; format as in
    ``scripts/convert_mmvet_for_eval.py`` (haotian-liu/LLaVA).

    Args:
        path: The file; its directory is created.
        answers: Text by id, with or without the prefix ``v1_``.

    Raises:
        TaskError: There are no answers, a question has two, or the file cannot be written.
    """
    _require_answers(path, answers)
    prefixed: dict[str, str] = {}
    for id_ in sorted(answers, key=_natural_order):
        question = f"{_MMVET_PREFIX}{id_.removeprefix(_MMVET_PREFIX)}"
        if question in prefixed:
            raise TaskError(
                f"MM-Vet's question {shorten(question)} has two answers.",
                hint="Remove one of them.",
            )
        prefixed[question] = answers[id_]
    _write(path, _to_json(prefixed, indent=2))


def write_llava_bench(path: Path, rows: Sequence[AnsweredQuestion], model_id: str) -> None:
    """Write one JSON object per line, in the order of ``rows``, as ``llava/eval/model_vqa.py``.

    ``eval_gpt_review_bench.py`` (haotian-liu/LLaVA) pairs lines by position, so ``rows`` must be
    in the order of the official ``questions.jsonl``. ``question_id`` is a number if the id is
    one, as in the official file. ``answer_id``, which is random there, is a digest of the line.

    Args:
        path: The file; its directory is created.
        rows: At least one row; unique ids.
        model_id: Name of the model in the results.

    Raises:
        TaskError: There are no rows, an id occurs twice, or the file cannot be written.
    """
    _require_answers(path, rows)
    if len({row.id for row in rows}) < len(rows):
        raise TaskError(
            f"A question would occur twice in {path}.", hint="Keep one answer per question."
        )
    _write(path, "".join(f"{_to_json(_llava_bench_line(row, model_id))}\n" for row in rows))


def write_vizwiz(
    path: Path, answers: Mapping[str, str], *, normalise: Callable[[str], str]
) -> None:
    """Write ``[{"image": name, "answer": text}, ...]`` for VizWiz's server, ordered by image.

    The server is EvalAI; format as in ``scripts/convert_vizwiz_for_submission.py``
    (haotian-liu/LLaVA), which normalises answers by its ``EvalAIAnswerProcessor``.

    Args:
        path: The file; its directory is created.
        answers: Text by file name, such as ``VizWiz_test_00000000.jpg``.
        normalise: A function that normalises like that processor.

    Raises:
        TaskError: There are no answers, or the file cannot be written.
    """
    _require_answers(path, answers)
    entries = [
        {"image": image, "answer": normalise(answers[image])}
        for image in sorted(answers, key=_natural_order)
    ]
    _write(path, _to_json(entries))


def write_scienceqa(
    path: Path,
    choices: Mapping[str, int],
    texts: Mapping[str, str],
    *,
    correct: Mapping[str, int] | None = None,
) -> None:
    """Write the result file of ``llava/eval/eval_science_qa.py`` (haotian-liu/LLaVA), by id.

    ``tools/evaluate_acc.py`` (lupantech/ScienceQA) reads its ``results``. ``acc`` (in percent),
    ``correct`` and ``count`` are null if the correct answers are unknown.

    Args:
        path: The file; its directory is created.
        choices: Index of the chosen letter by problem id, 0 for A; -1 if the text names none.
        texts: The generated answers by problem id.
        correct: Index of the correct letter by problem id.

    Raises:
        TaskError: There are no answers, the ids differ, an index is outside A to Z, or the file
            cannot be written.
    """
    _require_answers(path, choices)
    for other in (texts, choices if correct is None else correct):
        if incomplete := choices.keys() ^ other.keys():
            problem = min(incomplete, key=_natural_order)
            raise TaskError(
                f"ScienceQA's problem {shorten(problem)} lacks its choice, text or correct "
                "answer.",
                hint="Pass all of them for the same problems.",
            )
    ids = sorted(choices, key=_natural_order)
    for id_ in ids:
        if not _UNPARSED <= choices[id_] < _N_OPTIONS:
            raise TaskError(
                f"ScienceQA's problem {shorten(id_)} has choice {choices[id_]}.",
                hint=f"Use 0 to {_N_OPTIONS - 1}, or {_UNPARSED} for none.",
            )
    n_correct = None if correct is None else sum(choices[id_] == correct[id_] for id_ in ids)
    result = {
        "acc": None if n_correct is None else n_correct / len(ids) * 100,
        "correct": n_correct,
        "count": None if n_correct is None else len(ids),
        "results": {id_: choices[id_] for id_ in ids},
        "outputs": {id_: texts[id_] for id_ in ids},
    }
    _write(path, _to_json(result, indent=2))


def _llava_bench_line(row: AnsweredQuestion, model_id: str) -> dict[str, Any]:
    content = _to_json([model_id, row.id, row.question, row.prediction])
    return {
        "question_id": int(row.id) if re.fullmatch("0|[1-9][0-9]*", row.id) else row.id,
        "prompt": row.question,
        "text": row.prediction,
        # 22 characters, the length of a shortuuid.
        "answer_id": hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
    }


def _natural_order(id_: str) -> tuple[int, str]:
    """Sort ``2`` before ``10``; the ids of a benchmark differ only in their digits."""
    digits = re.sub("[^0-9]", "", id_.removeprefix(_MMVET_PREFIX))
    return int(digits or -1), id_


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _require_answers(path: Path, answers: Mapping[str, Any] | Sequence[Any]) -> None:
    if not answers:
        raise TaskError(f"There are no answers for {path}.", hint="Evaluate the model first.")


def _write(path: Path, text: str) -> None:
    hint = "Use another path, or answers that are valid Unicode."
    with write_errors_as(TaskError, path, hint=hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
