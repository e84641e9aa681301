"""Invented records, facts and result rows of studies, for tests that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import Policy, TrialRecord
from effllava_optuna.report import StudyFacts, result_row, study_document
from effllava_optuna.report.figures.study_figures import study_figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.report import TextTable

CALIBRATION: dict[str, Any] = {
    "dense": {
        "accuracy": 0.9, "expected": 0.88, "latency_ms": 50.0, "parameters": 1000, "gflops": 1.5,
    },
    "reference": [0.1, 52.5],
    "latency": {
        "error": 0.03, "spread": 0.02, "vision_ms": 5.0, "errors": [0.02, -0.04], "launched": [],
        "origin": {
            "batch": 8, "prompt_tokens": 640, "new_tokens": 16, "dtype": "bfloat16",
            "device": "a card", "threads": 0,
        },
    },
}  # fmt: skip

CONFIG: dict[str, dict[str, Any]] = {
    "study": {"name": "s", "seed": 0}, "task": {"name": "digits", "seed": None, "proxy": 64},
    "search": {"sampler": "nsga2"},
    "quality": {"accuracy": "expected", "eta": 0.02, "risk": "paper"},
    "latency": {"table": None},
}  # fmt: skip


def record(
    structure: ModelStructure, number: int, quality: float, latency_ms: float, **changes: Any
) -> TrialRecord:
    """Return the record of a trial whose accuracies equal its quality."""
    fields: dict[str, Any] = {
        "number": number, "state": "complete", "epoch": 0, "kind": "child", "origin": None,
        "widths": tuple(component.floor for component in structure.components), "quality": quality,
        "latency_ms": latency_ms, "accuracy": quality, "expected": quality, "risk": 0.0,
        "keep_ratio": 0.2, "feasible": True, "weight_state": "b", "hits": (1.0,),
    }  # fmt: skip
    return TrialRecord(**(fields | changes))


def facts(structure: ModelStructure | None, *trials: TrialRecord, **changes: Any) -> StudyFacts:
    """Return the facts of a study that is not calibrated."""
    fields: dict[str, Any] = {
        "name": "s", "epochs": 2, "planned": 48, "opened": 1, "finalists": 3,
        "accuracy": "expected", "eta": 0.02, "population": 4, "trials": trials, "digest": "0",
        "structure": structure, "config": CONFIG, "groups": [0],
    }  # fmt: skip
    return StudyFacts(**(fields | changes))


def row(
    structure: ModelStructure, hits: Sequence[int], latency_ms: float, **changes: Any
) -> dict[str, Any]:
    """Return a result row whose accuracy is the mean of ``hits`` on all splits."""
    accuracy = sum(hits) / len(hits)
    splits = ("proxy", "validation", "test")
    fields: dict[str, Any] = {f"accuracy_{split}": accuracy for split in splits}
    fields |= {f"accuracy_{split}_interval": (0.0, 1.0) for split in splits}
    fields |= {
        "gap": 0.0, "latency_ms": latency_ms, "latency_ms_measured": latency_ms,
        "speedup_predicted": 50.0 / latency_ms, "speedup_measured": 50.0 / latency_ms,
        "parameters": 1000, "quality": accuracy, "risk": -0.5, "epoch": 0, "gflops": 1.0,
    }  # fmt: skip
    return result_row(Policy.dense(structure), **(fields | changes))


def finished(structure: ModelStructure, hits: dict[str, list[int]], **changes: Any) -> StudyFacts:
    """Return the facts of a finished study.

    Args:
        structure: The structure of the model.
        hits: The scores of ``dense``, of ``uniform_by_kind`` if there is such a row, and of
            trials by number, on all splits. Each trial is twice as fast as the one before it,
            beginning at 25 ms; the first one is the chosen one.
        changes: Other fields of the facts.
    """
    trials = [name for name in hits if name.isdigit()]
    rows = {
        name: row(structure, hits[name], 50.0 / 2 ** (index + 1), trial=int(name))
        for index, name in enumerate(trials)
    }
    uniform_by_kind = hits.get("uniform_by_kind")
    results = {
        "dense": row(structure, hits["dense"], 50.0),
        "uniform": None,
        "uniform_by_kind": uniform_by_kind and row(structure, uniform_by_kind, 25.0),
        "front": list(rows.values()),
        "chosen": rows[trials[0]],
    }
    scores = {"groups": list(range(len(hits["dense"]))), "hits": hits}
    fields: dict[str, Any] = {
        "calibration": CALIBRATION, "results": results,
        "scores": dict.fromkeys(("proxy", "validation", "test"), scores),
    }  # fmt: skip
    return facts(structure, **(fields | changes))


def two_epochs(structure: ModelStructure, count: int = 8, **changes: Any) -> StudyFacts:
    """Return the facts of a study of two epochs, in which later trials are better and slower."""
    trials = [
        record(
            structure, n, 0.5 + 0.4 * n / count, 20.0 + n * 25 / count, epoch=2 * n // count,
            expected=0.45 + 0.4 * n / count,
        )
        for n in range(count)
    ]  # fmt: skip
    update = {
        "latency_factor": 1.0, "latency_errors": [], "in_context": None,
        "steps": 4, "seconds": 1.0, "proxy_loss_before": 0.9, "proxy_loss_after": 0.4,
        "crossfit_curve": [{"steps": 0, "loss": 0.8}, {"steps": 4, "loss": 0.6}],
    }  # fmt: skip
    fields: dict[str, Any] = {"calibration": CALIBRATION, "updates": [update], "opened": 2}
    return facts(structure, *trials, **(fields | changes))


def figures_of(study: StudyFacts) -> dict[str, go.Figure]:
    """Return the figures of a study by id."""
    return study_figures(study, study_document(study))


def legend_of(figure: go.Figure) -> dict[str, Any]:
    """Return the traces of a figure that have an entry in its legend, by name."""
    return {trace.name: trace for trace in figure.data if trace.showlegend is not False}


def width_of(table: TextTable) -> int:
    """Return the width of a table on a terminal, in characters."""
    columns = zip(table.columns, *(row.cells for row in table.rows), strict=True)
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    return sum(widths) + 2 * (len(widths) - 1)


def text_of(*tables: TextTable) -> str:
    """Return titles, headings, cells and notes as plain text."""
    lines: list[str] = []
    for table in tables:
        lines += [table.title, " ".join(table.columns)]
        lines += [" ".join(row.cells) for row in table.rows]
        lines += table.notes
    return "\n".join(lines)
