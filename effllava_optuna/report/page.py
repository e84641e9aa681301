"""One HTML page, which needs no network, for a study or for a comparison of studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tomli_w
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from effllava_optuna.policy import IMAGE_TOKENS
from effllava_optuna.report.figures.accuracy_figures import finalists_by_study
from effllava_optuna.report.figures.sensitivity_figure import full_height
from effllava_optuna.report.finalist_choices import choice_table
from effllava_optuna.report.policy_table import detail_notes, policy_table, status_lines
from effllava_optuna.report.speedup_parts import speedup_table
from effllava_optuna.report.study_comparison import comparison_tables
from effllava_optuna.report.subset_scores import subset_table
from effllava_optuna.report.text_table import (
    TableRow,
    TextTable,
    format_number,
    measure_of_split,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

_COMMAND = "effllava-optuna"
_FRONT, _WIDTHS, _SENSITIVITY = "front_by_epoch", "width_ratios", "sensitivity"
_FIGURE_SECTIONS = {
    _FRONT: (
        "The front",
        "Each dot is a policy that the search measured. A line connects the front of an epoch: "
        "the policies that no other one exceeds in both accuracy and speed. Their speed-up is "
        "predicted by the latency table; diamonds are policies that were timed at the end, at "
        "their measured speed-up, as in the table below. Farther up is more accurate, farther "
        "right is faster.",
    ),
    _WIDTHS: (
        "Widths of the layers",
        "Each cell is the share of its key/value groups (attention) or channels (MLP) that a "
        "layer keeps.",
    ),
    _SENSITIVITY: (
        "Sensitivity curves",
        "Each cell is one width of one component; yellow cells can be narrowed at little loss. "
        "Colours are logarithmic over four decades.",
    ),
}  # heading and explanation by the id of the figure
_INTRODUCTION = (
    "A policy states how many key/value groups and MLP channels each layer keeps{tokens}. Each "
    "trial of the search measures one policy on the proxy, a small set of samples; at the end the "
    "finalists are measured on validation, the best of them is chosen, and test is opened last."
)


@dataclass(frozen=True, slots=True)
class PageSection:
    """A section of the page; empty parts are left out.

    Attributes:
        title: The heading.
        table: A table; its notes become paragraphs.
        notes: Paragraphs.
        charts: Figures as HTML.
        pairs: Names and values.
        code: Commands that can be copied.
        collapsed: A heading, and a text that is hidden until the heading is clicked.
        folded: Whether the section is hidden until its title is clicked.
    """

    title: str
    table: TextTable | None = None
    notes: Sequence[str] = ()
    charts: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()
    code: Sequence[str] = ()
    collapsed: tuple[str, str] | None = None
    folded: bool = False


def study_page(
    document: Mapping[str, Any], figures: Mapping[str, go.Figure], study_arguments: str
) -> str:
    """Return the HTML page of one study.

    Args:
        document: The document of the study, see `effllava_optuna.report.study_document`.
        figures: Its figures by id, see `study_figures` of `effllava_optuna.report.figures`.
        study_arguments: The study in a command: its file, or ``--storage`` and ``--study-name``.
    """
    others = {name: figure for name, figure in figures.items() if name not in _FIGURE_SECTIONS}
    sections = [
        _figure_section(figures, _FRONT),
        PageSection("Policies", policy_table(document)),
        _table_section(speedup_table(document)),
        _figure_section(figures, _WIDTHS),
        _figure_section(figures, _SENSITIVITY),
        _table_section(choice_table(document)),
        _table_section(subset_table(document)),
        PageSection("More figures", charts=_charts(others)) if others else None,
        _command_section(document, study_arguments),
        _failure_section(document),
        _detail_section(document),
        _risk_section(document),
        _context_section(document),
        _projector_section(document),
        _provenance_section(document),
    ]
    title = f"Study {document['study']}"
    progress, *conclusion = status_lines(document, study_arguments)
    searched = document["dense"] is not None and IMAGE_TOKENS.id in document["dense"]["policy"]
    tokens = ", and how many image tokens are read" if searched else ""
    lead = [*conclusion, progress, _INTRODUCTION.format(tokens=tokens)]
    return _render(title, lead, sections, with_plotly=bool(figures))


def comparison_page(comparison: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the HTML page of a comparison of studies.

    Args:
        comparison: The result of `effllava_optuna.report.study_comparison.compare_studies`.
        documents: The documents of the studies.
    """
    sections = [
        *map(_table_section, comparison_tables(comparison)),
        PageSection("Finalists on test", charts=_charts({"tests": finalists_by_study(documents)})),
    ]
    keys = ", ".join(comparison["differing_keys"]) or "nothing but their names"
    lead = [f"They differ in: {keys}."]
    return _render(f"{len(documents)} studies", lead, sections, with_plotly=True)


def _render(
    title: str,
    lead: Sequence[str],
    sections: Sequence[PageSection | None],
    *,
    with_plotly: bool,
) -> str:
    """Fill the template; sections that are None are left out."""
    environment = Environment(
        loader=PackageLoader("effllava_optuna", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        sections=[section for section in sections if section is not None],
        plotly=get_plotlyjs() if with_plotly else "",
    )


def _charts(figures: Mapping[str, go.Figure]) -> list[str]:
    """Return figures as HTML that needs the script of plotly on the page."""
    return [_chart(figure, name) for name, figure in figures.items()]


def _chart(figure: go.Figure, name: str, height: int | None = None) -> str:
    """Return a figure as HTML; without a height in pixels, it has that of its layout."""
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height="100%" if height is None else f"{height}px",
        config={"displaylogo": False, "responsive": True, "showSendToCloud": False},
    )
    return html


def _table_section(table: TextTable | None) -> PageSection | None:
    """Return the section of a table under its title."""
    return None if table is None else PageSection(table.title, table)


def _figure_section(figures: Mapping[str, go.Figure], name: str) -> PageSection | None:
    """Show one figure at the width of the page; sensitivity curves at a height of their own."""
    if name not in figures:
        return None
    title, note = _FIGURE_SECTIONS[name]
    height = full_height(figures[name]) if name == _SENSITIVITY else None
    return PageSection(title, notes=[note], charts=[_chart(figures[name], name, height)])


def _detail_section(document: Mapping[str, Any]) -> PageSection | None:
    """Show the noise of the proxy, the latency table, memory and hypervolume."""
    notes = detail_notes(document)
    return (
        PageSection("Details: noise, latency, memory", notes=notes, folded=True) if notes else None
    )


def _risk_section(document: Mapping[str, Any]) -> PageSection | None:
    """Show the terms of the quality: accuracy and structural risk."""
    config = document["config"]
    rows = [row for row in document["front"] if row["risk"] is not None]
    if not rows:
        return None
    quality, proxy_samples = config["quality"], config["task"]["proxy"]
    eta = quality["eta"]
    table_rows = []
    for row in rows:
        penalty = eta * row["risk"]
        cells = (
            f"trial {row['trial']}",
            format_number(row["quality"] + penalty, ".4f"),
            format_number(row["risk"], "+.4f"),
            format_number(penalty, "+.4f"),
            format_number(row["quality"], ".4f"),
        )
        table_rows.append(TableRow(cells))
    notes = [
        f"quality = {measure_of_split(document, 'proxy')} ({quality['accuracy']}, cross-fitted on "
        "the proxy) - eta * Omega, "
        f"with eta = {eta:g} per nat. Omega is the mean over the weight matrices, weighted by "
        "their parameters, of log(Frobenius norm of the kept weights / of all weights), form "
        f"{quality['risk']!r}; it is 0 for the dense model. The paper does not state the term "
        "in this form: it is inferred."
    ]
    if document["risk_spread"] is not None:
        notes.append(
            f"eta * Omega has a range of {document['risk_spread']:.4f} in the first generation; "
            f"one of the {proxy_samples} proxy samples is {1 / proxy_samples:.4f}."
        )
    columns = ("policy", "quality + eta * Omega", "Omega", "eta * Omega", "quality")
    table = TextTable(columns, table_rows, notes=notes)
    return PageSection("Details: structural risk", table, folded=True)


def _context_section(document: Mapping[str, Any]) -> PageSection | None:
    """Show the compensation tables that were fitted in context, and whether they are used."""
    rows = []
    for epoch, update in enumerate(document["projector"], start=2):
        compared = update["in_context"]
        if compared is None:
            continue
        changes = [
            f"{compared['before'][key]:.3f} to {compared['after'][key]:.3f}"
            for key in ("loss", "accuracy")
        ]
        kept = "yes" if compared["kept"] else "no"
        rows.append(TableRow((str(epoch), kept, f"{compared['seconds']:.0f}", *changes)))
    if not rows:
        return None
    measure = measure_of_split(document, "proxy")
    columns = ("for epoch", "kept", "seconds", "cross-fitted loss", f"cross-fitted {measure}")
    notes = [
        "Compensation tables fitted on the activations of the best policy of the epoch before. "
        "They are kept if the loss of the elites, with the projector as it was loaded, is lower; "
        "otherwise the epoch has the tables of the epoch before."
    ]
    table = TextTable(columns, rows, notes=notes)
    return PageSection("Details: compensation in context", table, folded=True)


def _projector_section(document: Mapping[str, Any]) -> PageSection | None:
    """Show the effect of each projector update on held-out and on training samples."""
    keys = ("crossfit_accuracy", "crossfit_loss", "proxy_accuracy")
    rows = []
    for epoch, update in enumerate(document["projector"], start=2):
        if "seconds" not in update:  # nothing was trained
            continue
        changes = [
            f"{update[f'{key}_before']:.3f} to {update[f'{key}_after']:.3f}" for key in keys
        ]
        cells = (str(epoch), str(update["steps"]), f"{update['seconds']:.0f}", *changes)
        rows.append(TableRow(cells))
    if not rows:
        return None
    measure = measure_of_split(document, "proxy")
    columns = (
        "for epoch", "steps", "seconds", f"held-out {measure}", "held-out loss",
        f"{measure} on training samples",
    )  # fmt: skip
    notes = [
        "The number of steps is chosen on held-out proxy samples, zero included. "
        f"{measure.capitalize()} and loss are means over the elites, for which the projector was "
        "trained."
    ]
    table = TextTable(columns, rows, notes=notes)
    return PageSection("Details: projector updates", table, folded=True)


def _failure_section(document: Mapping[str, Any]) -> PageSection | None:
    if not document["failures"]:
        return None
    rows = [TableRow((reason, str(count))) for reason, count in document["failures"].items()]
    return PageSection("Failed trials", TextTable(("reason", "trials"), rows))


def _provenance_section(document: Mapping[str, Any]) -> PageSection:
    """Show what the values were measured on."""
    provenance = dict(document["provenance"])
    changes = provenance.pop("changes")
    pairs = [(name.replace("_", " "), str(value)) for name, value in provenance.items() if value]
    pairs.append(("digest of the measured values", document["digest"]))
    notes = []
    for change in changes:
        entries = (
            f"{name} from {values[0]} to {values[1]}"
            for name, values in change.items()
            if name != "at"
        )
        notes.append(f"Changed at {change['at']}: {', '.join(entries)}")
    return PageSection("Details: provenance", notes=notes, pairs=pairs, folded=True)


def _command_section(document: Mapping[str, Any], study_arguments: str) -> PageSection:
    """Show the commands that repeat the study, and those that continue or export it."""
    file = "study.toml" if "--" in study_arguments else study_arguments
    code = [f"{_COMMAND} run {file}"]
    if document["chosen"] is None:
        code.append(f"{_COMMAND} resume {study_arguments}")
    else:
        trial = document["chosen"]["trial"]
        code.append(f"{_COMMAND} export {study_arguments} --trial {trial} --out pruned")
    return PageSection(
        "Commands",
        notes=[
            "The first command repeats the study (in another directory, or under another name). "
            "The study file with all defaults is below."
        ],
        code=code,
        collapsed=("The study file", tomli_w.dumps(_without_none(document["config"]))),
    )


def _without_none(value: Any) -> Any:
    """Remove None from nested tables, because TOML has no null."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
