"""By which rules the samples of a study are graded, and what that is worth knowing beside them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from effllava_optuna.objectives import LIKELIEST, compared
from effllava_optuna.tasks import Split, digest_of, grade

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.tasks import Sample, Task

READ = "tokens of a right answer that come first, a proxy"


def rule_of(samples: Sequence[Sample], *, letters: bool) -> str:
    """Name the rules by which answers to ``samples`` are graded, the most frequent first.

    Args:
        samples: Questions.
        letters: Whether the options of closed ones are compared.
    """
    names = Counter(
        LIKELIEST if compared(s, letters=letters) or s.rule is None else s.rule.name
        for s in samples
    )
    return "; ".join(name for name, _ in names.most_common())


def constant_of(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Give what the constant answer of the rules would score; None: they have none."""
    known = [sample for sample in samples if sample.targets]
    said = {sample.rule.constant for sample in known if sample.rule is not None}
    if len(said) != 1 or None in said:
        return None
    (text,) = said
    share = sum(grade(sample, str(text)) for sample in known) / len(known)
    return {"text": text, "accuracy": round(share, 6)}


def numbered(units: Sequence[str]) -> list[int]:
    """Number the units by their first appearance: which samples belong together, no more."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(unit, len(numbers)) for unit in units]


def told_of(spec: StudySpec, task: Task) -> dict[str, Any]:
    """Tell what a study is measured on: the proxy by id and hash, and the names of the metrics."""
    proxy = task.samples(Split.PROXY)
    read = spec.task.measure == "likelihood" and any(sample.open for sample in proxy)
    written = rule_of(proxy, letters=True)
    return {
        "proxy": {"ids": [sample.id for sample in proxy], "digest": digest_of(proxy)},
        "metric": {"search": READ if read else written, "report": written},
    }
