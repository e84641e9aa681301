"""The table of policies of a study, its notes, and the summary that is printed above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import IMAGE_TOKENS, meets_budget
from effllava_optuna.report.document import STATES
from effllava_optuna.report.finalist_choices import agreement_notes
from effllava_optuna.report.paired_differences import comparison_sentence
from effllava_optuna.report.proxy_noise import noise_notes, resolution_notes
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

_MOST_DRIFT = 0.15  # of the latency of the dense model, before it is mentioned
_SPLITS = ("proxy", "validation", "test")


def status_lines(document: Mapping[str, Any], study_arguments: str = "FILE") -> list[str]:
    """Return the progress of a study and, after its end, the chosen policy.

    If this policy misses the budget as timed, and another finalist meets it, the last line is a
    command.

    Args:
        document: See `effllava_optuna.report.study_document`.
        study_arguments: The study in a command: its file, or ``--storage`` and ``--study-name``.
    """
    trials, epochs = document["trials"], document["epochs"]
    states = ", ".join(f"{trials[state]} {state}" for state in STATES if trials[state])
    progress = (
        f"study {document['study']}: epoch {max(epochs['opened'], 1)} of {epochs['planned']}, "
        f"{trials['planned']} trials planned"
    )
    if document["dense"] is None:
        progress += "; it is not calibrated yet"
    lines = [f"{progress} ({states})" if states else progress]
    if document["chosen"] is not None:
        missed, *command = _missed_budget(document, study_arguments) or [""]
        lines += [_conclusion(document) + _drift(document) + missed, *command]
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


def _missed_budget(document: Mapping[str, Any], study_arguments: str) -> list[str]:
    """Return what to say if the chosen policy, timed as a whole, misses the budget of the study.

    This is a sentence, and a command if another finalist meets the budget.
    """
    search, chosen = document["config"].get("search", {}), document["chosen"]
    if _meets_budget(search, chosen):
        return []
    if search.get("latency_ms") is not None:
        option, budget = "latency-ms", search["latency_ms"]
        missed = (
            f" Timed as a whole, it takes {chosen['latency_ms_measured']:.1f} ms, more than "
            f"search.latency_ms = {budget:g} (predicted: {chosen['latency_ms']:.1f})."
        )
    else:
        option, budget = "speedup", search["speedup"]
        missed = (
            f" The speed-up is less than search.speedup = {budget:g} (predicted: "
            f"{chosen['speedup_predicted']:.2f})."
        )
    if not any(_meets_budget(search, row) for row in document["front"]):
        return [f"{missed} No finalist meets it."]
    command = f"effllava-optuna pick {study_arguments} --{option} {budget:g}"
    return [f"{missed} The best finalist that meets it:", command]


def _meets_budget(search: Mapping[str, float | None], row: Mapping[str, Any]) -> bool:
    """Return whether a finalist meets the budget of its study as timed as a whole."""
    return meets_budget(search, row["latency_ms_measured"], row["speedup_measured"])


def _drift(document: Mapping[str, Any]) -> str:
    """Return a sentence if the dense model, which a budget in ms refers to, changed its speed."""
    dense = document["dense"]
    before, after = dense["latency_ms"], dense["latency_ms_measured"]
    if document["config"].get("search", {}).get("latency_ms") is None:
        return ""
    if abs(after / before - 1) <= _MOST_DRIFT:
        return ""
    return (
        f" The dense model took {before:.1f} ms in calibration, by which the budget was applied, "
        f"and {after:.1f} ms at the end: run the study while nothing else runs."
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
    columns = (
        "policy", *headings, "speed-up\n(predicted)", "ms", "parameters", "weights\nkept",
    )  # fmt: skip
    return TextTable(columns, rows, title="Policies", notes=_notes(document))


def _notes(document: Mapping[str, Any]) -> list[str]:
    """Return the sentences that a reader of the table needs; `detail_notes` has the others."""
    notes = [*_grading_notes(document), *_latency_notes(document)]
    if document["chosen"] is None:
        notes.append("The search is not over: nothing was measured on validation or test yet.")
        return notes + resolution_notes(document)
    notes.append(
        "Uniform: one width ratio for all layers; uniform by kind: one for attention, one for "
        "MLPs. Proxy: the samples of the search, cross-fitted. The policy was chosen on "
        "validation, before the test set was opened. [..]: 95 % intervals. Weights kept: of those "
        "that can be pruned."
    )
    notes += [
        comparison_sentence(pair)
        for pair in document["comparisons"]
        if pair["split"] == "test" and pair["baseline"] != "dense"  # `_conclusion` has that
    ]
    return notes + agreement_notes(document) + resolution_notes(document)


def _latency_notes(document: Mapping[str, Any]) -> list[str]:
    """Describe the timed workload, and how far predicted values are off, in one sentence each."""
    table = document["latency_table"]
    if table is None:
        return []
    origin = table["origin"]
    threads = f", {_count(origin['threads'], 'thread')}" if origin["threads"] else ""
    prompts = f"{_count(origin['batch'], 'prompt')} of {origin['prompt_tokens']} tokens"
    workload = (
        f"ms: latency of {prompts} and {_count(origin['new_tokens'], 'new token')}, in "
        f"{origin['dtype']} on {origin['device']}{threads}."
    )
    error, measured = table["error"], f"the latency of {table['checks']} random policies"
    if table["finalists_error"] is not None:
        error = table["finalists_error"]
        measured = f"the speed-up of the {_count(len(document['front']), 'finalist')}"
    predicted = "(..): predicted by the latency table, which is off by"
    return [workload, f"{predicted} {error:.1%} on average for {measured}."]


def detail_notes(document: Mapping[str, Any]) -> list[str]:
    """Return what the page says of the measurements beside the tables, a paragraph each."""
    notes = noise_notes(document)
    table, memory = document["latency_table"], document["memory"]
    if table is not None:
        notes.append(_table_note(table))
        table_file = document["config"]["latency"]["table"]
        if table_file is not None:
            notes.append(
                f"The latency table comes from {table_file}: an earlier study may have measured "
                "it."
            )
    if memory is not None:
        owner = "this process" if memory["device"] == "cpu" else "torch on the GPU"
        notes.append(
            f"Peak memory of {owner}: {memory['peak_mb']:,.0f} MB, including "
            f"{memory['dense_mb']:,.0f} MB of dense weights and {memory['table_mb']:,.0f} MB of "
            "compensation tables."
        )
    if document["hypervolume"]:
        volumes = ", ".join(f"{volume:.4g}" for volume in document["hypervolume"])
        notes.append(
            f"Hypervolume by epoch ({measure_of_split(document, 'proxy')} x ms, the area between "
            f"the front and the reference point): {volumes}."
        )
    return notes


def _table_note(table: Mapping[str, Any]) -> str:
    """Describe how the latency table was measured, checked and corrected."""
    note = (
        f"Latency table: the predicted latency of {table['checks']} random policies, which were "
        f"timed as a whole before the search, was off by {table['error']:.1%} on average."
    )
    if table["rounds"]:
        note += f" Each width was timed {_count(table['rounds'], 'time')}."
    corrected = [update for update in table["corrections"] if update["latency_errors"]]
    if corrected:
        factors = ", ".join(f"{update['latency_factor']:.2f}" for update in corrected)
        note += (
            " After each epoch, policies of its front were timed as a whole; the next epoch "
            f"multiplies predicted savings by what these runs saved of them: {factors}."
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
            notes.append(f"Accuracy: the mean score by the rule {metric['report']!r}.")
        if metric["search"] != metric["report"]:
            notes.append(f"The search used another metric: {metric['search']}.")
    if constant is not None:
        notes.append(
            f"The constant answer {constant['text']!r} scores {constant['accuracy']:.3f} on test."
        )
    return notes
