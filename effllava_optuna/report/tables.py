"""The document of a study as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from effllava_optuna.policy import Anatomy, Kind, Site


_STATES = {
    "complete": "complete",
    "pruned": "stopped early",
    "running": "running",
    "waiting": "waiting",
    "fail": "fail",
}


def summary(document: Mapping[str, Any]) -> RenderableType:
    """Say where a study stands, in a few lines."""
    trials, epochs = document["trials"], document["epochs"]
    states = ", ".join(
        f"{trials[state]} {word}" for state, word in _STATES.items() if trials[state]
    )
    lines = [
        f"study {document['study']}: epoch {max(epochs['opened'] - 1, 0)} of "
        f"0 to {epochs['planned'] - 1}, {trials['planned']} trials planned"
        + (f" ({states})" if states else ""),
    ]
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


def policies(document: Mapping[str, Any]) -> RenderableType:
    """Compare the dense model, the baselines, the finalists and the chosen policy."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("policy")
    for name in (
        "epoch", "kept", "proxy", "validation", "test", "gap", "ms", "ms\nmeasured",
        "speed-up", "speed-up\nmeasured", "params", "GFLOPs",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    chosen = document["chosen"]
    for label, row in (
        ("dense", document["dense"]),
        ("uniform", document["uniform"]),
        ("uniform, 2 numbers", document["uniform2"]),
        *((f"trial {row['trial']}", row) for row in document["front"]),
    ):
        if row is None:
            continue
        mine = chosen is not None and row["trial"] is not None and row["trial"] == chosen["trial"]
        table.add_row(
            f"{label}  <- chosen" if mine else label,
            _number(row["epoch"], "d"),
            _number(row["kept_share"], ".3f"),
            _accuracy(row, "proxy"),
            _accuracy(row, "validation"),
            _accuracy(row, "test"),
            _number(row["gap"], "+.3f"),
            _number(row["latency_ms"], ".1f"),
            _number(row["latency_ms_measured"], ".1f"),
            _number(row["speedup_predicted"], ".2f"),
            _number(row["speedup_measured"], ".2f"),
            _number(row["parameters"], ",d"),
            _number(row["gflops"], ".2f"),
            style="bold" if mine else None,
        )
    notes = _graded(document)
    if document.get("latency_table"):
        notes.append(_timed(document["latency_table"]))
    if document.get("memory"):
        memory = document["memory"]
        whose = "this process" if memory["device"] == "cpu" else "torch on the GPU"
        notes.append(
            f"Peak memory of {whose}: {memory['peak_mb']:,.0f} MB, of them dense weights "
            f"{memory['dense_mb']:,.0f}, refit tables {memory['table_mb']:,.0f}."
        )
    if document["chosen"] is None:
        notes.append("The search is not over: nothing was measured on validation or test yet.")
    else:
        notes.append(
            "proxy: cross-fitted, on the samples of the search; gap: proxy minus test; [..]: 95 % "
            "intervals; the choice was made by validation, before test "
            "was opened."
        )
    return Group(table, Text("\n" + "\n".join(notes)))


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


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _accuracy(row: Mapping[str, Any], split: str) -> str:
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
