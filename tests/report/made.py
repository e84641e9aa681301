"""Records and facts that are made up, for tests of what is read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import Policy, TrialRecord
from effllava_optuna.report import StudyFacts, entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import Anatomy

BUNDLE = {
    "dense": {
        "accuracy": 0.9, "expected": 0.88, "latency_ms": 50.0, "parameters": 1000, "gflops": 1.5,
    },
    "reference": [0.1, 52.5],
    "latency": {"error": 0.03, "spread": 0.02, "vision_ms": 5.0},
}  # fmt: skip


def record(anatomy: Anatomy, number: int, quality: float, ms: float, **other: Any) -> TrialRecord:
    known: dict[str, Any] = {
        "number": number, "state": "complete", "epoch": 0, "kind": "child", "origin": None,
        "keep": tuple(site.floor for site in anatomy.sites), "quality": quality,
        "latency_ms": ms, "accuracy": quality, "expected": quality, "risk": 0.0,
        "kept_share": 0.2, "feasible": True, "basis": "b", "hits": "1",
    }  # fmt: skip
    return TrialRecord(**(known | other))


def facts(anatomy: Anatomy | None, *trials: TrialRecord, **other: Any) -> StudyFacts:
    known: dict[str, Any] = {
        "name": "s", "epochs": 2, "planned": 48, "opened": 1, "finalists": 3,
        "accuracy": "expected", "eta": 0.02, "population": 4, "trials": trials, "digest": "0",
        "anatomy": anatomy,
    }  # fmt: skip
    return StudyFacts(**(known | other))


def row(anatomy: Anatomy, hits: Sequence[int], ms: float, **other: Any) -> dict[str, Any]:
    """An entry whose accuracy is the share of ``hits``, on all splits."""
    accuracy = sum(hits) / len(hits)
    splits = ("proxy", "validation", "test")
    known: dict[str, Any] = {f"accuracy_{split}": accuracy for split in splits}
    known |= {f"accuracy_{split}_interval": (0.0, 1.0) for split in splits}
    known |= {
        "policy": Policy.dense(anatomy), "gap": 0.0, "latency_ms": ms, "latency_ms_measured": ms,
        "speedup_predicted": 50.0 / ms, "speedup_measured": 50.0 / ms, "parameters": 1000,
        "quality": accuracy, "risk": -0.5, "epoch": 0, "gflops": 1.0,
    }  # fmt: skip
    return entry(anatomy=anatomy, **(known | other))


SPEC: dict[str, dict[str, Any]] = {
    "study": {"name": "s", "seed": 0}, "task": {"name": "digits", "seed": None, "proxy": 64},
    "search": {"sampler": "nsga2"},
    "quality": {"accuracy": "expected", "eta": 0.02, "risk": "paper"},
    "latency": {"table": None},
}  # fmt: skip


def finished(anatomy: Anatomy, hits: dict[str, list[int]], **other: Any) -> StudyFacts:
    """A study that is over.

    Args:
        hits: Of ``dense``, ``uniform2``, and of trials by number, each twice as fast as the one
            before it; the first trial is the chosen one. Used as validation and as test.
    """
    trials = [name for name in hits if name.isdigit()]
    rows = {
        name: row(anatomy, hits[name], 50.0 / 2 ** (place + 1), trial=int(name))
        for place, name in enumerate(trials)
    }
    results = {
        "dense": row(anatomy, hits["dense"], 50.0),
        "uniform": None,
        "uniform2": row(anatomy, hits["uniform2"], 25.0),
        "front": list(rows.values()),
        "chosen": rows[trials[0]],
    }
    answered = {"units": list(range(len(hits["dense"]))), "hits": hits}
    known: dict[str, Any] = {
        "bundle": BUNDLE, "results": results, "spec": SPEC,
        "scores": dict.fromkeys(("proxy", "validation", "test"), answered),
    }  # fmt: skip
    return facts(anatomy, **(known | other))
