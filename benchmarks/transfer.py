"""Does a result for one purpose serve another one? ``python benchmarks/transfer.py``.

Policy and projector are searched for one kind of question (calibration, proxy and validation of
that kind alone) and evaluated on all kinds; and a front that was searched at one workload of the
latency table is measured at another one.

``--tiny`` does this in seconds and publishes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from _cases import EARLIER, EARLIER_FIXED, KINDS, Case, study_id
from _evidence import announce, parse_form, publish
from _fields import WIDTHS
from _means import Mean, by_pair, difference, markdown, mean
from _outcome import relative_hypervolume
from _records import RecordId
from _sentences import paragraph
from _studies import StudyRunner, load_once

from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form
    from _means import Rows
    from _records import Record

TITLE = "Transfer to other questions and other workloads"
# One update of the projector, for the best policy, after half of the search.
_CHANGES = (
    *EARLIER, "search.epochs=2", "search.generations=6", "projector.elites=1", "projector.steps=8",
)  # fmt: skip
ALL = "all kinds"
WORKLOADS = {
    "prefill of 64": EARLIER_FIXED,
    "16 prompts, 16 new tokens": Case(
        "decode", (*EARLIER_FIXED.changes, "latency.batch=16", "latency.new_tokens=16"), "transfer"
    ),
}


def case_of(kind: str) -> Case:
    """Return the study of a kind of question."""
    label = f"only-{kind.replace(' ', '-')}"
    return Case(label, _CHANGES, "transfer", only="" if kind == ALL else kind)


def kinds_of(form: Form) -> list[str]:
    """Return the kinds that are searched for; the smaller forms have two."""
    return [ALL, *KINDS][: form.pick(5, 2, 2)]


def workloads(runner: StudyRunner, seed: int) -> Record:
    """Measure the front of each workload at each workload, by the latency table of the latter."""
    fronts = {name: runner.study("first", seed, case)["front"] for name, case in WORKLOADS.items()}
    structure = load_once(runner.form.models["first"]).structure
    volumes = {}
    for measured, case in WORKLOADS.items():
        calibration = runner.calibration(runner.config("first", seed, case), case)
        for searched, front in fronts.items():
            points = []
            for entry in front:
                latency_ms = calibration.latency.predict(Policy.of(structure, entry[WIDTHS]))
                points.append({"test": entry["test"], "latency_ms": latency_ms})
            volume = relative_hypervolume(points, calibration.reference)
            volumes[f"{searched} > {measured}"] = volume
    return {"seed": seed, "model": "first", "volumes": volumes}


def gather(runner: StudyRunner) -> tuple[dict[str, list[Record]], list[Record]]:
    """Run or read all studies; return records by kind of question, and those of workloads."""
    by_kind: dict[str, list[Record]] = {}
    of_workloads = []
    for seed in range(runner.form.seeds):
        for kind in kinds_of(runner.form):
            if record := runner.study("first", seed, case_of(kind)):
                by_kind.setdefault(kind, []).append(record)
        record_id = RecordId("transfer", ("workloads", "first", seed))
        if record := runner.record(record_id, functools.partial(workloads, runner, seed)):
            of_workloads.append(record)
    return by_kind, of_workloads


def kind_gains(by_kind: Mapping[str, Rows]) -> tuple[Mean, Mean]:
    """Compute what a search for one kind gains on it, and on the others.

    Returns:
        Two differences in test accuracy to the search for all kinds.
    """
    own: list[float] = []
    others: list[float] = []
    for name, records in by_kind.items():
        for kind in KINDS if name != ALL else ():
            tests = by_pair(records, "chosen", "kinds", kind)
            of_all = by_pair(by_kind[ALL], "chosen", "kinds", kind)
            pairs = [tests[key] - of_all[key] for key in tests if key in of_all]
            (own if kind == name else others).extend(pairs)
    return mean(own), mean(others)


def moved_gain(of_workloads: Rows) -> Mean:
    """Compute what a front loses that was searched at another workload, in hypervolume."""
    return mean(
        [
            record["volumes"][f"{searched} > {measured}"]
            - record["volumes"][f"{measured} > {measured}"]
            for record in of_workloads
            for searched in WORKLOADS
            for measured in WORKLOADS
            if searched != measured
        ]
    )


def summary(by_kind: Mapping[str, Rows], of_workloads: Rows) -> str:
    """Return the main figures."""
    own, others = kind_gains(by_kind)
    return paragraph(f"""
        A policy that was searched for one kind of question differs from one for all kinds by
        {own.text("+")} in accuracy on that kind, and by {others.text("+")} on the others. A front
        that was searched at one latency workload and is used at another differs by
        {moved_gain(of_workloads).text("+")} in hypervolume from one searched there. Measured under
        earlier defaults: importance `taylor`, and a search without curves and screening.""")


def kinds_table(by_kind: Mapping[str, Rows]) -> str:
    """Format test accuracies by kind of question, for each kind that was searched for."""
    lines = []
    for name, records in by_kind.items():
        cells = []
        for kind in KINDS:
            tests = by_pair(records, "chosen", "kinds", kind)
            cell = mean(list(tests.values())).text()
            if name != ALL:
                of_all = by_pair(by_kind[ALL], "chosen", "kinds", kind)
                cell += f"; {difference(tests, of_all).text('+')}"
            cells.append(f"**{cell}**" if name == kind else cell)
        evaluations = np.mean([record["evaluations"] for record in records])
        cpu_s = np.mean([record["search_cpu_s"] for record in records])
        lines.append([name, *cells, f"{evaluations:.0f}", f"{cpu_s:.0f}"])
    asked = [f"asked: {kind}" for kind in KINDS]
    return markdown(["searched for", *asked, "evaluations", "CPU s of the search"], lines)


def workloads_table(of_workloads: Rows) -> str:
    """Format the hypervolumes of fronts at the workload of the search and at the other one."""
    lines = []
    for searched in WORKLOADS:
        for measured in WORKLOADS:
            volumes = by_pair(of_workloads, "volumes", f"{searched} > {measured}")
            own = by_pair(of_workloads, "volumes", f"{measured} > {measured}")
            gain = difference(volumes, own).text("+") if searched != measured else "-"
            lines.append([searched, measured, mean(list(volumes.values())).text(), gain])
    head = ["searched at", "measured at", "hypervolume", "minus the front searched there"]
    return markdown(head, lines)


def section(by_kind: Mapping[str, Rows], of_workloads: Rows) -> str:
    """Format the page of the benchmark."""
    draws = max(len(records) for records in by_kind.values())
    return f"""{summary(by_kind, of_workloads)}

Generated by `python benchmarks/transfer.py`; do not edit. Figures:
[transfer](../results/transfer.jsonl), [studies](../results/studies.jsonl).

The embedded digits model under the earlier defaults (importance `taylor`, a search without curves
and screening), {draws} draws; 95 % intervals (Student's t over draws). Test accuracy
by kind of question (about 250 questions each) of the policy and projector that were searched for
one kind: 64 proxy and up to 500 validation samples of that kind; after the semicolon the
difference to those that were searched for all kinds, paired by draw. Two epochs of six generations
of 20, one projector update.

{kinds_table(by_kind)}

Searched at one workload, the front measured at another: hypervolume of the finalists by test
accuracy and latency by the table of the second workload, as a share of the largest; the difference
to the front searched at the second workload, paired by draw; 240 evaluations each.

{workloads_table(of_workloads)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing studies, and write the tables."""
    form = parse_form(__doc__, arguments, draws=5)
    runner = StudyRunner(form)
    cases = [*map(case_of, kinds_of(form)), *WORKLOADS.values()]
    ids = [study_id("first", seed, case) for seed in range(form.seeds) for case in cases]
    announce(runner.missing(ids), form.pick(25, 15, 3))
    by_kind, of_workloads = gather(runner)
    if ALL not in by_kind or not of_workloads:
        raise SystemExit(f"{form.folder} has no records of this question.")
    records = [*(record for rows in by_kind.values() for record in rows), *of_workloads]
    origins = [record["provenance"] for record in records]
    publish(form, TITLE, section(by_kind, of_workloads), origins)


if __name__ == "__main__":
    main()
