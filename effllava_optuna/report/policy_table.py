"""The table of policies of a study, its notes, and the summary that is printed above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import IMAGE_TOKENS
from effllava_optuna.report.document import STATES
from effllava_optuna.report.paired_differences import comparison_sentence
from effllava_optuna.report.proxy_noise import noise_notes
from effllava_optuna.report.text_table import (
    TableRow,
    TextTable,
    format_accuracy,
    format_count,
    format_interval,
    format_measured,
    format_number,
    measure_of_split,
    split_heading,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPLITS = ("proxy", "validation", "test")


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the progress of a study and, after its end, the chosen policy."""
    trials, epochs = document["trials"], document["epochs"]
    states = ", ".join(f"{trials[state]} {state}" for state in STATES if trials[state])
    progress = (
        f"study {document['study']}: epoch {max(epochs['opened'] - 1, 0)} "
        f"(last epoch: {epochs['planned'] - 1}), {trials['planned']} trials planned"
    )
    lines = [f"{progress} ({states})" if states else progress]
    if document["chosen"] is not None:
        lines.append(_conclusion(document))
    return lines


def _conclusion(document: Mapping[str, Any]) -> str:
    """Return what the chosen policy gains and costs."""
    chosen, dense = document["chosen"], document["dense"]
    percent = chosen["policy"].get(IMAGE_TOKENS.id)
    tokens = "" if percent is None else f" and {percent} % of the image tokens"
    gain = (
        f"Trial {chosen['trial']} was chosen: {chosen['speedup_measured']:.2f} times as fast as "
        f"the dense model, with {chosen['parameters'] / dense['parameters']:.0%} of its "
        f"parameters{tokens}"
    )
    test = [pair for pair in document["comparisons"] if pair["split"] == "test"]
    differences = [pair for pair in test if pair["baseline"] == "dense"]
    measure = measure_of_split(document, "test")
    if not differences:
        interval = format_interval(chosen["accuracy_test_interval"])
        return f"{gain}; {measure} on test {chosen['accuracy_test']:.3f} {interval}."
    (difference,) = differences
    low, high = (100 * bound for bound in difference["interval"])
    change = 100 * difference["difference"]
    change, low, high = (change, low, high) if change > 0 else (-change, -high, -low)
    return (
        f"{gain}. On test it {'gains' if difference['difference'] > 0 else 'loses'} {change:.1f} "
        f"points of {measure} [{low:.1f}, {high:.1f}]: {chosen['accuracy_test']:.3f} instead of "
        f"{dense['accuracy_test']:.3f}."
    )


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """Return `status_lines`, and a line each on hypervolume, risk and what opened each epoch."""
    lines = status_lines(document)
    if document["hypervolume"]:
        volumes = "  ".join(f"{volume:.4g}" for volume in document["hypervolume"])
        lines.append(f"hypervolume by epoch: {volumes}")
    if document["risk_spread"] is not None and document["chosen"] is not None:
        samples = document["config"]["task"]["proxy"]
        lines.append(
            f"structural risk: eta * risk has a range of {document['risk_spread']:.4f} in the "
            f"first generation (one of {samples} proxy samples is {1 / samples:.4f})"
        )
    measure = measure_of_split(document, "proxy")
    for epoch, update in enumerate(document["projector"], start=1):
        if update["in_context"] is not None:
            note = _context_note(update["in_context"], measure)
            lines.append(f"tables in context, epoch {epoch}: {note}")
        if "seconds" not in update:  # nothing was trained
            continue
        lines.append(
            f"projector of epoch {epoch}: {update['steps']} steps, {update['seconds']:.0f} s, "
            f"held-out {measure} {update['crossfit_accuracy_before']:.3f} to "
            f"{update['crossfit_accuracy_after']:.3f} (training samples: "
            f"{update['proxy_accuracy_before']:.3f} to {update['proxy_accuracy_after']:.3f})"
        )
    return lines


def _context_note(compared: Mapping[str, Any], measure: str) -> str:
    """Describe whether tables that were fitted in context are used, and why."""
    before, after = compared["before"], compared["after"]
    return (
        f"{'kept' if compared['kept'] else 'not kept'}, {compared['seconds']:.0f} s, cross-fitted "
        f"loss {before['loss']:.3f} to {after['loss']:.3f}, {measure} {before['accuracy']:.3f} to "
        f"{after['accuracy']:.3f}"
    )


def labelled_rows(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the result rows of a document with their labels, those that were measured."""
    named = [
        ("dense", document["dense"]),
        ("uniform", document["uniform"]),
        ("uniform by kind", document["uniform_by_kind"]),
        *((f"trial {row['trial']}", row) for row in document["front"]),
    ]
    return [(label, row) for label, row in named if row is not None]


def is_chosen(document: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether ``row`` is the result row of the chosen policy."""
    chosen = document["chosen"]
    return chosen is not None and row["trial"] is not None and row["trial"] == chosen["trial"]


def policy_table(document: Mapping[str, Any]) -> TextTable:
    """Compare the dense model, the uniform baselines, the finalists and the chosen policy."""
    rows = []
    for label, row in labelled_rows(document):
        chosen = is_chosen(document, row)
        cells = (
            f"{label}\n(chosen)" if chosen else label.replace(" by", "\nby"),
            *(format_accuracy(row, split) for split in _SPLITS),
            format_measured(row["speedup_measured"], row["speedup_predicted"], ".2f"),
            format_measured(row["latency_ms_measured"], row["latency_ms"], ".1f"),
            format_count(row["parameters"]),
            format_number(row["keep_ratio"], ".1%"),
        )
        rows.append(TableRow(cells, emphasized=chosen))
    headings = (split_heading(document, split) for split in _SPLITS)
    columns = ("policy", *headings, "speed-up", "ms", "parameters", "weights\nkept")
    return TextTable(columns, rows, title="Policies", notes=_notes(document))


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = _grading_notes(document)
    if document["latency_table"] is not None:
        notes.append(_latency_note(document["latency_table"]))
        table_file = document["config"]["latency"]["table"]
        if table_file is not None:
            notes.append(
                f"The latency table comes from {table_file}: an earlier study may have measured "
                "it."
            )
    memory = document["memory"]
    if memory is not None:
        owner = "this process" if memory["device"] == "cpu" else "torch on the GPU"
        notes.append(
            f"Peak memory of {owner}: {memory['peak_mb']:,.0f} MB, including "
            f"{memory['dense_mb']:,.0f} MB of dense weights and {memory['table_mb']:,.0f} MB of "
            "compensation tables."
        )
    if document["chosen"] is None:
        notes.append("The search is not over: nothing was measured on validation or test yet.")
        return notes + noise_notes(document)
    notes.append(
        "uniform: one width ratio for all layers; by kind: one for attention, one for MLPs. "
        "proxy: the samples of the search, cross-fitted; [..]: 95 % intervals. The policy was "
        "chosen on validation, before the test set was opened. (..): predicted by the latency "
        "table. weights kept: of the prunable ones."
    )
    notes += [
        comparison_sentence(pair)
        for pair in document["comparisons"]
        if pair["split"] == "test" and pair["baseline"] != "dense"  # `_conclusion` has that
    ]
    return notes + noise_notes(document)


def _latency_note(table: Mapping[str, Any]) -> str:
    """Describe the timed workload and the error of the latency table."""
    origin = table["origin"]
    threads = f", {_count(origin['threads'], 'thread')}" if origin["threads"] else ""
    prompts = f"{_count(origin['batch'], 'prompt')} of {origin['prompt_tokens']} tokens"
    note = (
        f"ms: latency of {prompts} and {_count(origin['new_tokens'], 'new token')}, in "
        f"{origin['dtype']} on {origin['device']}{threads}. The predicted latency of "
        f"{table['checks']} random policies is off by {table['error']:.1%} (mean)."
    )
    if table["rounds"]:
        note += f" Each width was timed {_count(table['rounds'], 'time')}."
    corrected = [update for update in table["corrections"] if update["latency_errors"]]
    if corrected:
        factors = ", ".join(f"{update['latency_factor']:.2f}" for update in corrected)
        note += f" Factors of the predicted savings, from runs of each epoch's front: {factors}."
    if table["finalists_error"] is not None:
        note += (
            f" The predicted speed-up of the finalists is off by {table['finalists_error']:.1%}."
        )
    if table["launched"]:
        note += f" It includes the time to launch kernels: {', '.join(table['launched'])}."
    return note


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _grading_notes(document: Mapping[str, Any]) -> list[str]:
    """Describe the metric, and the accuracy of the best constant answer."""
    notes = []
    metric, constant = document["metric"], document["constant"]
    by_agreement = [s for s in _SPLITS if measure_of_split(document, s) == "agreement"]
    if by_agreement:
        notes.append(
            f"Agreement ({', '.join(by_agreement)}) with the answers of the dense model: of "
            "closed questions, the share with the same option; of open ones on the proxy, the "
            "share of tokens that stay the most likely, on other splits, the F1 of the words. No "
            "labels are used."
        )
    if metric is not None:
        if len(by_agreement) < len(_SPLITS):
            notes.append(f"Accuracy: {metric['report']}.")
        if metric["search"] != metric["report"]:
            notes.append(f"The search used another metric: {metric['search']}.")
    if constant is not None:
        notes.append(
            f"The constant answer {constant['text']!r} scores {constant['accuracy']:.3f} on test."
        )
    return notes
