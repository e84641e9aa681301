"""The document of a study as tables for a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from effllava_optuna.report.sureness import RIVALS, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from effllava_optuna.policy import Anatomy, Kind, Site


_STATES = {
    "complete": "complete",
    "pruned": "pruned",
    "running": "running",
    "waiting": "waiting",
    "fail": "fail",
}


def standing(document: Mapping[str, Any]) -> list[str]:
    """Say in a sentence or two where a study stands, and what it has found."""
    trials, epochs = document["trials"], document["epochs"]
    states = ", ".join(
        f"{trials[state]} {word}" for state, word in _STATES.items() if trials[state]
    )
    told = [
        f"study {document['study']}: epoch {max(epochs['opened'] - 1, 0)} of "
        f"0 to {epochs['planned'] - 1}, {trials['planned']} trials planned"
        + (f" ({states})" if states else "")
    ]
    chosen, dense = document["chosen"], document["dense"]
    if chosen is not None:
        told.append(
            f"Chosen: trial {chosen['trial']}, accuracy {_on_test(chosen)} on test (dense "
            f"{_on_test(dense)}), {chosen['speedup_measured']:.2f}x as fast, "
            f"{chosen['parameters'] / dense['parameters']:.0%} of the parameters."
        )
    return told


def _on_test(row: Mapping[str, Any]) -> str:
    low, high = row["accuracy_test_interval"]
    return f"{row['accuracy_test']:.3f} [{low:.3f}, {high:.3f}]"


def summary(document: Mapping[str, Any]) -> RenderableType:
    """Say where a study stands, in a few lines."""
    lines = standing(document)
    if document["hypervolume"]:
        volumes = "  ".join(f"{volume:.4g}" for volume in document["hypervolume"])
        lines.append(f"hypervolume by epoch: {volumes}")
    if document["risk_spread"] is not None and document["chosen"] is not None:
        lines.append(
            f"structural risk: eta * risk spreads over {document['risk_spread']:.4f} in the first "
            "generation (one answer of 64 is 0.0156)"
        )
    for number, update in enumerate(document["projector"], start=1):
        lines.append(
            f"projector of epoch {number}: {update['steps']} steps, {update['seconds']:.0f} s, "
            f"held-out accuracy {update['crossfit_accuracy_before']:.3f} to "
            f"{update['crossfit_accuracy_after']:.3f} (trained-on "
            f"{update['proxy_accuracy_before']:.3f} to {update['proxy_accuracy_after']:.3f})"
        )
    return Text("\n".join(lines))


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One line of the table of policies.

    Attributes:
        label: Whose line it is.
        cells: What it says, in the order of `COLUMNS`.
        chosen: Whether it is the chosen policy.
    """

    label: str
    cells: tuple[str, ...]
    chosen: bool


COLUMNS = (
    "epoch", "kept", "proxy", "validation", "test", "gap", "ms", "ms\nmeasured",
    "speed-up", "speed-up\nmeasured", "params", "GFLOPs",
)  # fmt: skip


def policy_rows(document: Mapping[str, Any]) -> list[PolicyRow]:
    """Give the lines that compare the dense model, the baselines and the finalists."""
    chosen = document["chosen"]
    named = [
        ("dense", document["dense"]),
        ("uniform", document["uniform"]),
        ("uniform, 2 numbers", document["uniform2"]),
        *((f"trial {row['trial']}", row) for row in document["front"]),
    ]
    return [
        PolicyRow(
            label,
            (
                number(row["epoch"], "d"),
                number(row["kept_share"], ".3f"),
                with_interval(row, "proxy"),
                with_interval(row, "validation"),
                with_interval(row, "test"),
                number(row["gap"], "+.3f"),
                number(row["latency_ms"], ".1f"),
                number(row["latency_ms_measured"], ".1f"),
                number(row["speedup_predicted"], ".2f"),
                number(row["speedup_measured"], ".2f"),
                number(row["parameters"], ",d"),
                number(row["gflops"], ".2f"),
            ),
            chosen is not None and row["trial"] is not None and row["trial"] == chosen["trial"],
        )
        for label, row in named
        if row is not None
    ]


def policies(document: Mapping[str, Any]) -> RenderableType:
    """Compare the dense model, the baselines, the finalists and the chosen policy."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("policy")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in policy_rows(document):
        label = f"{row.label}  <- chosen" if row.chosen else row.label
        table.add_row(label, *row.cells, style="bold" if row.chosen else None)
    return Group(table, Text("\n" + "\n".join(notes(document))))


def notes(document: Mapping[str, Any]) -> list[str]:
    """Say what the figures of a document mean, and how sure they are."""
    told = _graded(document)
    if document.get("latency_table"):
        told.append(_timed(document["latency_table"]))
        kept = document["spec"].get("latency", {}).get("table")
        if kept is not None:
            told.append(f"Latency tables are kept in {kept}: this one may be an earlier study's.")
    if document.get("memory"):
        memory = document["memory"]
        whose = "this process" if memory["device"] == "cpu" else "torch on the GPU"
        told.append(
            f"Peak memory of {whose}: {memory['peak_mb']:,.0f} MB, of them dense weights "
            f"{memory['dense_mb']:,.0f}, refit tables {memory['table_mb']:,.0f}."
        )
    if document["chosen"] is None:
        told.append("The search is not over: nothing was measured on validation or test yet.")
    else:
        told.append(
            "proxy: cross-fitted, on the samples of the search; gap: proxy minus test; [..]: 95 % "
            "intervals; the choice was made by validation, before test "
            "was opened."
        )
        told += [compared(found) for found in document["comparisons"] if found["split"] == "test"]
    return told


def compared(found: Mapping[str, Any]) -> str:
    """Say whether the choice is ahead of a rival, and how sure that is."""
    low, high = found["interval"]
    return (
        f"On {found['split']}, the choice {verdict(found)} {RIVALS[found['rival']]}: "
        f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}], paired."
    )


def _timed(table: Mapping[str, Any]) -> str:
    """Say what latency is the latency of, and by how much it is off."""
    count = f"{table['checks']} " if table.get("checks") else ""
    off = f"Predicted latency is off by {table['error']:.1%} on {count}random policies (mean)."
    origin = table.get("origin")
    if not origin:
        return off
    threads = f", threads: {origin['threads']}" if origin["threads"] else ""
    told = (
        f"ms: of {origin['batch']} prompts of {origin['prompt_tokens']} tokens, new tokens: "
        f"{origin['new_tokens']}, in {origin['dtype']} on {origin['device']}{threads}. {off}"
    )
    if table["launched"]:
        told += f" Launching kernels was timed, too: {', '.join(table['launched'])}."
    return told


def _graded(document: Mapping[str, Any]) -> list[str]:
    """Say what accuracy means here, and what a constant answer would get."""
    notes = []
    metric, constant = document.get("metric"), document.get("constant")
    if metric is not None:
        notes.append(f"Accuracy: {metric['report']}.")
        if metric["search"] != metric["report"]:
            notes.append(f"The search went by: {metric['search']}.")
    if constant is not None:
        said, share = constant["text"], constant["accuracy"]
        notes.append(f"Answering {said!r} always would score {share:.3f} on test.")
    return notes


def number(value: Any, form: str) -> str:
    """Write a number; a dash where there is none."""
    return "-" if value is None else format(value, form)


def with_interval(row: Mapping[str, Any], split: str) -> str:
    """Write the accuracy of a policy on a split, its interval below it."""
    value = row[f"accuracy_{split}"]
    if value is None:
        return "-"
    interval = row[f"accuracy_{split}_interval"]
    if interval is None:
        return f"{value:.3f}"
    return f"{value:.3f}\n[{interval[0]:.3f} {interval[1]:.3f}]"


def anatomy_table(
    anatomy: Anatomy, refused: Sequence[tuple[str, str]]
) -> tuple[Table, Table | str]:
    """Show what can be cut, blocks that are alike on one line, and what cannot and why.

    Args:
        anatomy: Of the model.
        refused: Places that cannot be cut, with the reason.
    """
    style: Any = {"box": None, "pad_edge": False, "header_style": "bold"}
    table = Table("tower", "blocks", "what", **style)
    for name in ("units", "parameters a unit", "parameters"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, Kind, int, int], list[Site]] = {}
    for site in anatomy.sites:
        key = (site.tower, site.kind, site.width, site.unit_params)
        groups.setdefault(key, []).append(site)
    for (tower, kind, width, each), sites in groups.items():
        numbers = _ranges([site.layer for site in sites])
        whole = f"{len(sites) * width * each:,}"
        table.add_row(tower, numbers, kind, f"{width:,}", f"{each:,}", whole)
    table.caption = f"{anatomy.parameters:,} parameters in {len(anatomy.sites)} sites"
    if not refused:
        return table, "Nothing else looks as if it could be cut."
    reasons: dict[str, list[str]] = {}
    for place, reason in refused:
        reasons.setdefault(reason, []).append(place)
    rest = Table("not cut", "because of", **style)
    for reason, places in reasons.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        rest.add_row(f"{places[0]}{more}", reason)
    return table, rest


def _ranges(numbers: Sequence[int]) -> str:
    """Write numbers as ranges: ``0-2, 5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
