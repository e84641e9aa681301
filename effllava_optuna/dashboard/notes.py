"""The notes of a study and of its control study in optuna-dashboard, in Markdown."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from effllava_optuna.report import comparison_sentence, noise_notes
from effllava_optuna.report.policy_table import is_chosen, labelled_rows, status_lines
from effllava_optuna.report.text_table import measure_of_split, split_heading
from effllava_optuna.samplers import is_enqueued_by_user
from effllava_optuna.storage.location import storage_arguments
from effllava_optuna.storage.studies import config_of
from effllava_optuna.storage.urls import shareable_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study

_MAX_REASONS = 3
_PADDING = "\u00a0\u00a0"  # the dashboard draws tables without padding
_COLUMNS = (
    ("epoch", "epoch", 0),
    ("kept", "keep_ratio", 3),
    ("proxy", "accuracy_proxy", 3),
    ("validation", "accuracy_validation", 3),
    ("test", "accuracy_test", 3),
    ("ms, predicted", "latency_ms", 1),
    ("speed-up, predicted", "speedup_predicted", 2),
    ("speed-up, measured", "speedup_measured", 2),
)  # heading, key of the result row (an epoch is counted from 0 there), digits
_SPLITS = ("proxy", "validation", "test")
_FIGURES = (
    "The figures of this study are on its page, the first symbol of the bar on the left: accuracy "
    "against speed-up (`front_by_epoch`), the loss when one component alone is narrowed "
    "(`sensitivity`), and the widths of each layer (`width_ratios`)."
)
_WARNING = (
    "A policy states how many units each layer keeps; each trial measured one policy on the "
    "proxy, a small set of samples. Quality is {measure} minus eta times the structural risk; "
    "{measure} is cross-fitted on the proxy. **The dashboard's own Pareto front and best trials "
    "mix epochs**, whose values belong to different projectors: `front_by_epoch` shows the front "
    "of each epoch."
)
_CONTROL_NOTE = """# Epochs of `{name}`

Each trial is one attempt to publish an epoch: the first one publishes the calibration (ranking,
compensation tables, latency and risk tables), each later epoch a trained projector, a new search
space and, with `pruning.in_context`, whether compensation tables in context are kept (attribute
`in_context`); the page of the trial has the files. The value is the cross-fitted accuracy on the
proxy, or agreement with the dense model. The complete attempt with the lowest number counts. The
attempt after the last epoch is the final selection.
"""


def control_note(study_name: str) -> str:
    """Return the note of the control study of ``study_name``."""
    return _CONTROL_NOTE.format(name=study_name)


def study_note(study: Study, document: Mapping[str, Any]) -> str:
    """Return the note of a study: conclusion or progress, best policies, how to export one.

    Args:
        study: The study.
        document: Its document, see `effllava_optuna.report.study_document`.
    """
    lines = [f"# {document['study']}", "", _state(study, document), "", *_facts(study, document)]
    warning = _WARNING.format(measure=measure_of_split(document, "proxy"))
    lines += ["", _FIGURES, "", warning, "", "## Dense, uniform, front", "", *_table(document), ""]
    if document["front"]:
        best = document["chosen"] or document["front"][0]
        lines += ["## Export", "", *_export_command(study, best["trial"])]
    return "\n".join(lines)


def _state(study: Study, document: Mapping[str, Any]) -> str:
    trials, epochs = document["trials"], document["epochs"]
    if document["chosen"] is not None:
        trial = document["chosen"]["trial"]
        arguments = storage_arguments(shareable_url(study), study.study_name)
        _, conclusion, *commands = status_lines(document, arguments)
        listed = "".join(f"```sh\n{command}\n```\n\n" for command in commands)
        return (
            f"**{conclusion}**\n\n{listed}"
            f"**Finished**: trial {trial} was chosen on validation, before test was opened."
        )
    ended = trials["complete"] + trials["pruned"] + trials["fail"] - _enqueued(study)
    if ended < trials["planned"]:
        return (
            f"**Searching**, epoch {max(epochs['opened'], 1)} of {epochs['planned']}. Nothing was "
            "measured on validation or test yet."
        )
    return "**The search is over**; its finalists are not measured on validation yet."


def _enqueued(study: Study) -> int:
    """Count the trials that users enqueued and that have ended; they are not planned ones."""
    ended = (trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    return sum(map(is_enqueued_by_user, ended))


def _facts(study: Study, document: Mapping[str, Any]) -> list[str]:
    """Return model, task, budget, progress, failures and comparisons as list items."""
    config, trials = config_of(study), document["trials"]
    facts = [f"Model `{config.model.path}`, task `{config.task.name}`"]
    if config.search.keep_ratio is not None:
        facts.append(f"Budget: at most {config.search.keep_ratio:.4g} of the prunable weights")
    elif config.search.speedup is not None:
        facts.append(f"Budget: a predicted speed-up of at least {config.search.speedup:g}")
    elif config.search.latency_ms is not None:
        facts.append(f"Budget: a predicted latency of at most {config.search.latency_ms:g} ms")
    done = trials["complete"] + trials["pruned"]
    facts.append(f"Trials: {done} of {trials['planned']} measured")
    failures = Counter(document["failures"])
    if failures:
        reasons = "; ".join(
            f"{reason} ({count})" for reason, count in failures.most_common(_MAX_REASONS)
        )
        facts.append(f"Failed: {failures.total()} (attribute `reason`): {reasons}")
    facts += [
        comparison_sentence(comparison)
        for comparison in document["comparisons"]
        if comparison["split"] == "test"
    ]
    facts += noise_notes(document)
    return [f"- {fact}" for fact in facts]


def _table(document: Mapping[str, Any]) -> list[str]:
    """Return the table of policies; columns without a value are left out."""
    rows = labelled_rows(document)
    columns = [
        (heading, key, digits)
        for heading, key, digits in _COLUMNS
        if any(row[key] is not None for _, row in rows)
    ]
    headings = [
        split_heading(document, heading).replace("\n", " ") if heading in _SPLITS else heading
        for heading, _, _ in columns
    ]
    lines = [
        f"| policy | {' | '.join(f'{_PADDING}{heading}' for heading in headings)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for label, row in rows:
        cells = [label] + [
            "" if row[key] is None else f"{row[key] + (key == 'epoch'):.{digits}f}"
            for _, key, digits in columns
        ]
        if is_chosen(document, row):
            cells = [f"**{cell}**" for cell in (f"{label} (chosen)", *cells[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _export_command(study: Study, trial: int) -> list[str]:
    url = shareable_url(study)
    directory = ", in the directory of the database" if "///" in url else ""
    return [
        f"Write a policy as a checkpoint{directory}:",
        "",
        "```sh",
        f"effllava-optuna export {storage_arguments(url, study.study_name)} "
        f"--trial {trial} --out trial-{trial}.pruned",
        "```",
        "",
    ]
