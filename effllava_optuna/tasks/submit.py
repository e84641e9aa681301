"""Write answers as the benchmarks' own evaluators and servers read them.

Every file appears at once or not at all, is UTF-8, and has the same bytes for the same answers.
Which questions a benchmark has is not known here: evaluators refuse files that lack some.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError
from effllava_optuna.files import write_atomically, write_errors_as

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from effllava_optuna.tasks.judge import LlavaBenchRow

_MMVET_PREFIX = "v1_"
_OPTIONS = 5  # A to E: `--options` of eval_science_qa.py
_UNPARSED = -1


def write_mmvet(path: Path, answers: Mapping[str, str]) -> None:
    """Write ``{"v1_<id>": text}`` for MM-Vet's evaluator, ordered by id.

    The server is https://huggingface.co/spaces/whyu/MM-Vet_Evaluator; format as in
    ``scripts/convert_mmvet_for_eval.py`` (haotian-liu/LLaVA).

    Args:
        path: Where to; its folder is made.
        answers: Text by id, with or without ``v1_`` in front.

    Raises:
        TaskError: There are none, two ids are one, or the file cannot be written.
    """
    _some(path, answers)
    named: dict[str, str] = {}
    for id_ in sorted(answers, key=_natural):
        name = f"{_MMVET_PREFIX}{id_.removeprefix(_MMVET_PREFIX)}"
        if name in named:
            raise TaskError(
                f"MM-Vet's question {name!r} has two answers.", hint="Give it one of them."
            )
        named[name] = answers[id_]
    _write(path, _json(named, indent=2))


def write_llava_bench(path: Path, rows: Sequence[LlavaBenchRow], model_id: str) -> None:
    """Write one JSON object a line, in the order of ``rows``, as ``llava/eval/model_vqa.py`` does.

    ``eval_gpt_review_bench.py`` (haotian-liu/LLaVA) pairs lines by position, so ``rows`` must be
    in the order of the official ``questions.jsonl``. ``question_id`` is a number there, and is
    one here where an id is. ``answer_id`` is random there; here it is a digest of the line.

    Args:
        path: Where to; its folder is made.
        rows: At least one; unique ids.
        model_id: How the results shall call the model.

    Raises:
        TaskError: There are no rows, one comes twice, or the file cannot be written.
    """
    _some(path, rows)
    if len({row.id for row in rows}) < len(rows):
        raise TaskError(f"A question comes twice in {path}.", hint="Give it one answer.")
    _write(path, "".join(f"{_json(_llava_bench_line(row, model_id))}\n" for row in rows))


def write_vizwiz(
    path: Path, answers: Mapping[str, str], *, normalise: Callable[[str], str]
) -> None:
    """Write ``[{"image": name, "answer": text}, ...]`` for VizWiz's server, ordered by image.

    The server is EvalAI; format as in ``scripts/convert_vizwiz_for_submission.py``
    (haotian-liu/LLaVA), which normalises answers by its ``EvalAIAnswerProcessor``.

    Args:
        path: Where to; its folder is made.
        answers: Text by file name, such as ``VizWiz_test_00000000.jpg``.
        normalise: That processor.

    Raises:
        TaskError: There are none, or the file cannot be written.
    """
    _some(path, answers)
    listed = [
        {"image": image, "answer": normalise(answers[image])}
        for image in sorted(answers, key=_natural)
    ]
    _write(path, _json(listed))


def write_scienceqa(
    path: Path,
    choices: Mapping[str, int],
    texts: Mapping[str, str],
    *,
    right: Mapping[str, int] | None = None,
) -> None:
    """Write the result file of ``llava/eval/eval_science_qa.py`` (haotian-liu/LLaVA), by id.

    ``tools/evaluate_acc.py`` (lupantech/ScienceQA) reads its ``results``. ``acc`` (in percent),
    ``correct`` and ``count`` are null without ``right``.

    Args:
        path: Where to; its folder is made.
        choices: Index of the chosen letter by problem id, A is 0; -1 where the text names none.
        texts: What the model said, by the same ids.
        right: Index of the right letter by the same ids.

    Raises:
        TaskError: There are none, the ids differ, an index is no letter from A to E, or the
            file cannot be written.
    """
    _some(path, choices)
    for other in (texts, choices if right is None else right):
        if odd := choices.keys() ^ other.keys():
            raise TaskError(
                f"ScienceQA's problem {min(odd, key=_natural)!r} lacks its index, text or answer.",
                hint="Give all of them for the same problems.",
            )
    ids = sorted(choices, key=_natural)
    for id_ in ids:
        if not _UNPARSED <= choices[id_] < _OPTIONS:
            raise TaskError(
                f"ScienceQA's problem {id_!r} has choice {choices[id_]}.",
                hint=f"Use 0 to {_OPTIONS - 1}, or {_UNPARSED} for none.",
            )
    correct = None if right is None else sum(choices[id_] == right[id_] for id_ in ids)
    result = {
        "acc": None if correct is None else correct / len(ids) * 100,
        "correct": correct,
        "count": None if correct is None else len(ids),
        "results": {id_: choices[id_] for id_ in ids},
        "outputs": {id_: texts[id_] for id_ in ids},
    }
    _write(path, _json(result, indent=2))


def _llava_bench_line(row: LlavaBenchRow, model_id: str) -> dict[str, Any]:
    said = _json([model_id, row.id, row.question, row.prediction])
    return {
        "question_id": int(row.id) if re.fullmatch("0|[1-9][0-9]*", row.id) else row.id,
        "prompt": row.question,
        "text": row.prediction,
        # 22 characters, as those of shortuuid.
        "answer_id": hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
    }


def _natural(id_: str) -> tuple[int, str]:
    """Order ``2`` before ``10``: ids of one benchmark differ in their digits only."""
    digits = re.sub("[^0-9]", "", id_.removeprefix(_MMVET_PREFIX))
    return int(digits or -1), id_


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _some(path: Path, answers: Mapping[str, Any] | Sequence[Any]) -> None:
    if not answers:
        raise TaskError(f"There are no answers for {path}.", hint="Answer the questions first.")


def _write(path: Path, text: str) -> None:
    hint = "Choose another path, or give answers that are valid text."
    with write_errors_as(TaskError, path, hint=hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
