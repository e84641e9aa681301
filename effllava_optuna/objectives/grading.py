"""The rules by which the samples of a study are graded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from effllava_optuna.tasks import AGREEMENT, Split, digest_samples, grade_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.tasks import Sample, Task

LIKELIEST = "likeliest option"  # name of the rule that compares options in one forward pass
LIKELIHOOD = "likelihood of a right answer"
DIVERGENCE = "exp(-KL divergence from the dense model), over the tokens of its answers"

Measure = Literal["accuracy", "agreement"]


def options_compared(sample: Sample, *, letters: bool = False) -> bool:
    """Return whether the options of a sample are compared instead of generating an answer.

    Args:
        sample: A sample.
        letters: Whether the options of all closed questions are compared.
    """
    return not sample.is_open_ended and (letters or sample.rule is None)


def measure_of(samples: Sequence[Sample], measure: Measure) -> Measure:
    """Return what validation or test reports: the accuracy if all of its samples have answers.

    Args:
        samples: The samples of the split.
        measure: What the search maximizes.
    """
    labelled = all(sample.correct_answer for sample in samples)
    return "accuracy" if labelled else measure


def rule_of(samples: Sequence[Sample], *, letters: bool) -> str:
    """Return the names of the rules that grade ``samples``, the most frequent first.

    Args:
        samples: The samples.
        letters: Whether the options of all closed questions are compared.
    """
    names = Counter(
        LIKELIEST if options_compared(s, letters=letters) or s.rule is None else s.rule.name
        for s in samples
    )
    return "; ".join(name for name, _ in names.most_common())


def constant_of(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Return the score of always giving the constant answer of the rules; None: they have none."""
    labelled = [sample for sample in samples if sample.targets]
    constants = {sample.rule.baseline_answer for sample in labelled if sample.rule is not None}
    if len(constants) != 1 or None in constants:
        return None
    (text,) = constants
    score = sum(grade_answer(sample, str(text)) for sample in labelled) / len(labelled)
    return {"text": text, "accuracy": round(score, 6)}


def number_groups(groups: Sequence[str]) -> list[int]:
    """Number the groups by first appearance: which samples belong together, and no more."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def describe_task(task: Task, measure: Measure, *, generate: bool) -> dict[str, Any]:
    """Describe what a study is measured on: proxy samples by id and hash, names of the metrics.

    Args:
        task: The task of the study.
        measure: What the search maximizes.
        generate: Whether the search scores open questions by generated answers.
    """
    proxy = task.samples(Split.PROXY)
    final = {s: measure_of(task.samples(s), measure) for s in (Split.VALIDATION, Split.TEST)}
    graded = rule_of(proxy, letters=True)
    if measure == "agreement":
        labelled = [split for split, name in final.items() if name == "accuracy"]
        graded = rule_of(task.samples(labelled[-1]), letters=True) if labelled else AGREEMENT
        searched = DIVERGENCE
    elif not generate and any(sample.is_open_ended for sample in proxy):
        searched = LIKELIHOOD
    else:
        searched = graded
    return {
        "proxy": {"ids": [sample.id for sample in proxy], "digest": digest_samples(proxy)},
        "metric": {"search": searched, "report": graded},
        "measures": {str(split): name for split, name in {Split.PROXY: measure, **final}.items()},
    }
