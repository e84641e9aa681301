"""What does each part contribute? ``python benchmarks/ablation.py``.

One setting at a time is changed in the quickstart study, whose projector stays as it was loaded
(for its training see ``projector.py``): compensation, token weights, importance, cross-fitting,
the accuracy that is searched, and the number of epochs that the evaluations are divided into. All
of this on the embedded model; cross-fitting on a second model as well.

``--tiny`` does this in seconds and publishes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from _cases import FIXED, Case, study_id
from _evidence import announce, pairs_of, parse_form, publish
from _fields import KEEP_RATIO
from _means import by_model, by_pair, difference, label, markdown, mean
from _sentences import gains, joined, paragraph, plural
from _studies import StudyRunner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form
    from _means import Rows
    from _records import Record

TITLE = "What each part contributes"
REFERENCE = "the default"


def _case(label: str, *changes: str, **options: Any) -> Case:
    return Case(label, (*FIXED.changes, *changes), "ablation", **options)


CASES = {
    REFERENCE: FIXED,
    "compensation: none": _case("compensation-none", "pruning.compensation='none'"),
    "compensation: bias": _case("compensation-bias", "pruning.compensation='bias'"),
    "tokens: all alike": _case("tokens-all", "pruning.tokens='all'"),
    "importance: magnitude": _case("importance-magnitude", "pruning.importance='magnitude'"),
    "importance: taylor": _case("importance-taylor", "pruning.importance='taylor'"),
    "cross-fitting: none": _case("not-cross-fitted", cross_fitted=False),
    "cross-fitting: 4 folds": _case("folds-4", "pruning.folds=4"),
    "accuracy: hard": _case("hard", "quality.accuracy='hard'"),
    "1 epoch of 12 generations": _case("epochs-1", "search.epochs=1", "search.generations=12"),
}
ON_BOTH_MODELS = (REFERENCE, "cross-fitting: none")
TINY = (REFERENCE, "cross-fitting: none")


def cases_of(form: Form, model: str) -> dict[str, Case]:
    """Return the cases that are compared on a model; the smaller forms compare a selection."""
    if form.name == "full":
        names = [*CASES] if model == "first" else [*ON_BOTH_MODELS]
        return {name: case for name, case in CASES.items() if name in names}
    selected = TINY if form.name == "tiny" else [*CASES][:6]
    return {name: CASES[name] for name in selected}


def gather(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read all cases, the first draw of every case first; return records by case."""
    rows: dict[str, list[Record]] = {}
    for model, seed in pairs_of(runner.form):
        for name, case in cases_of(runner.form, model).items():
            if record := runner.study(model, seed, case):
                rows.setdefault(name, []).append(record)
    return rows


def summary(rows: Mapping[str, Rows]) -> str:
    """Return the main figures: what is decided, and what is not."""
    default = by_pair(rows[REFERENCE], "chosen", "test")
    changed = {
        name: difference(by_pair(records, "chosen", "test"), default)
        for name, records in rows.items()
        if name != REFERENCE
    }
    decided = [(name, gain) for name, gain in changed.items() if gain.decided]
    others = [name for name, gain in changed.items() if not gain.decided]
    sentences = [
        f"The default has a test accuracy of {mean(list(default.values())).text()} "
        f"({plural(len(default), 'pair')} of model and draw)."
    ]
    if decided:
        sentences.append(f"Differences to it that are decided: {gains(decided)}.")
    if others:
        sentences.append(f"Not decided: {joined(others)}.")
    return paragraph(" ".join(sentences))


def section(rows: Mapping[str, Rows], models: Mapping[str, str]) -> str:
    """Format the page of the benchmark."""
    default = by_pair(rows[REFERENCE], "chosen", "test")
    default_volumes = by_pair(rows[REFERENCE], "volume")
    lines = []
    for name, records in rows.items():
        tests, volumes = by_pair(records, "chosen", "test"), by_pair(records, "volume")
        differences = [difference(tests, default), difference(volumes, default_volumes)]
        gaps = [record["chosen"]["proxy"] - record["chosen"]["test"] for record in records]
        lines.append(
            [
                name,
                *by_model(tests, models),
                *("-" if name == REFERENCE else each.text("+") for each in differences),
                mean(gaps).text("+"),
                f"{np.mean([record['chosen'][KEEP_RATIO] for record in records]):.3f}",
                f"{np.mean([record['evaluations'] for record in records]):.0f}",
                f"{np.mean([record['search_cpu_s'] for record in records]):.0f}",
                str(len(records)),
            ]
        )
    head = [
        "changed", *(f"test, {label(path)}" for path in models.values()), "minus the default",
        "hypervolume minus that of the default", "proxy minus test of the choice", "keep ratio",
        "evaluations", "CPU s of the search", "pairs",
    ]  # fmt: skip
    return f"""{summary(rows)}

Generated by `python benchmarks/ablation.py`; do not edit. Figures:
[ablation](../results/ablation.jsonl), [studies](../results/studies.jsonl).

Test accuracy of the choice on 1,000 questions about digit images that neither calibration nor
search has seen; hypervolume of the finalists by test accuracy and latency, as a share of the
largest; means with 95 % intervals (Student's t over draws), the differences over pairs of model
and draw. The default was: importance obs, compensation least-squares with dampings chosen by
folds, tokens weighted by gradient, 2 folds, expected accuracy, 3 epochs of 4 generations of 20
policies; projector as loaded.

{markdown(head, lines)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing studies, and write the table."""
    form = parse_form(__doc__, arguments, two_models=True, draws=5)
    runner = StudyRunner(form)
    ids = [
        study_id(model, seed, case)
        for model, seed in pairs_of(form)
        for case in cases_of(form, model).values()
    ]
    announce(runner.missing(ids), form.pick(20, 15, 3))
    rows = gather(runner)
    origins = [record["provenance"] for records in rows.values() for record in records]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
