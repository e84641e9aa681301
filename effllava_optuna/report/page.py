"""A study, or several beside each other, as one HTML page that needs no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tomli_w
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from effllava_optuna.report.marks import subset_rows
from effllava_optuna.report.tables import (
    COLUMNS,
    notes,
    number,
    policy_rows,
    standing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table of the page.

    Attributes:
        cells: What it says.
        marked: Whether it stands out.
    """

    cells: Sequence[str]
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of the page."""

    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; what is empty is left out.

    Attributes:
        title: Its heading.
        table: A table.
        notes: Paragraphs.
        charts: HTML of figures.
        pairs: Names and values.
        code: What can be copied.
        hidden: A heading, and what it hides until it is opened.
    """

    title: str
    table: Grid | None = None
    notes: Sequence[str] = ()
    charts: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()
    code: Sequence[str] = field(default_factory=tuple)
    hidden: tuple[str, str] | None = None


def page(document: Mapping[str, Any], charts: Mapping[str, go.Figure], again: str) -> str:
    """Write the page of one study.

    Args:
        document: Of the study, see `effllava_optuna.report.document`.
        charts: Its figures by name.
        again: How a command names the study: its file, or ``--storage`` and ``--study-name``.
    """
    sections = [
        Section("Policies", _policies(document), notes(document)),
        Section("Figures", charts=drawn(charts)),
        _risk(document),
        _projector(document),
        _by_subset(document),
        _failures(document),
        _provenance(document),
        _commands(document, again),
    ]
    return rendered(
        f"Study {document['study']}", standing(document), sections, scripts=bool(charts)
    )


def _policies(document: Mapping[str, Any]) -> Grid:
    lines = []
    for row in policy_rows(document):
        label = f"{row.label} (chosen)" if row.chosen else row.label
        lines.append(Row((label, *row.cells), row.chosen))
    return Grid(("policy", *COLUMNS), lines)


def rendered(
    title: str, lead: Sequence[str], sections: Sequence[Section | None], *, scripts: bool
) -> str:
    """Fill the template.

    Args:
        title: Of the page.
        lead: What is said first.
        sections: What follows; None is left out.
        scripts: Whether there are figures, which need plotly's script.
    """
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
        charts=scripts,
        plotly=get_plotlyjs() if scripts else "",
    )


def drawn(charts: Mapping[str, go.Figure]) -> list[str]:
    """Give figures as HTML that needs plotly's script on the page."""
    return [
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            config={"displaylogo": False, "responsive": True},
        )
        for name, figure in charts.items()
    ]


def _risk(document: Mapping[str, Any]) -> Section | None:
    """Show what the structural-risk bound adds to accuracy, term by term."""
    quality = document["spec"].get("quality")
    rows = [row for row in document["front"] if row["risk"] is not None]
    if quality is None or not rows:
        return None
    eta = quality["eta"]
    lines = []
    for row in rows:
        price = eta * row["risk"]
        cells = (
            f"trial {row['trial']}",
            number(row["quality"] + price, ".4f"),
            number(row["risk"], "+.4f"),
            number(price, "+.4f"),
            number(row["quality"], ".4f"),
        )
        lines.append(Row(cells))
    told = [
        f"quality = accuracy ({quality['accuracy']}, cross-fitted on the proxy) - eta * Omega, "
        f"with eta = {eta:g} per nat. Omega is the mean over the weight matrices, weighted by "
        "their parameters, of log(Frobenius norm of what stays / of all), form "
        f"{quality['risk']!r}: 0 for the dense model. That the term of the paper looks like this "
        "is inferred."
    ]
    if document["risk_spread"] is not None:
        told.append(
            f"eta * Omega spreads over {document['risk_spread']:.4f} in the first generation; one "
            f"answer of the {document['spec']['task']['proxy']} on the proxy is worth "
            f"{1 / document['spec']['task']['proxy']:.4f}."
        )
    columns = ("policy", "quality + eta * Omega", "Omega", "eta * Omega", "quality")
    return Section("Structural risk", Grid(columns, lines), told)


def _projector(document: Mapping[str, Any]) -> Section | None:
    """Show what each projector update did, on what it was trained on and on what it was not."""
    if not document["projector"]:
        return None
    keys = ("crossfit_accuracy", "crossfit_loss", "proxy_accuracy")
    lines = []
    for epoch, update in enumerate(document["projector"], start=1):
        moved = [f"{update[f'{key}_before']:.3f} to {update[f'{key}_after']:.3f}" for key in keys]
        cells = (str(epoch), str(update["steps"]), f"{update['seconds']:.0f}", *moved)
        lines.append(Row(cells))
    columns = (
        "for epoch", "steps", "seconds", "held-out accuracy", "held-out loss",
        "trained-on accuracy",
    )  # fmt: skip
    told = [
        "The number of steps is what held-out proxy samples approve of, zero included. Accuracy "
        "is the mean over the policies that it was trained for."
    ]
    return Section("Projector updates", Grid(columns, lines), told)


def _by_subset(document: Mapping[str, Any]) -> Section | None:
    columns, rows = subset_rows(document)
    if not rows:
        return None
    return Section("Test, by subset", Grid(("subset", *columns), [Row(cells) for cells in rows]))


def _failures(document: Mapping[str, Any]) -> Section | None:
    if not document["failures"]:
        return None
    rows = [Row((reason, str(count))) for reason, count in document["failures"].items()]
    return Section("Trials that failed", Grid(("reason", "trials"), rows))


def _provenance(document: Mapping[str, Any]) -> Section:
    """Say what the figures were measured on."""
    known = dict(document["provenance"])
    changes = known.pop("changes")
    pairs = [(name.replace("_", " "), str(value)) for name, value in known.items() if value]
    pairs.append(("digest of what was measured", document["digest"]))
    told = []
    for change in changes:
        moved = (f"{name} from {x[0]} to {x[1]}" for name, x in change.items() if name != "at")
        told.append(f"Changed at {change['at']}: {', '.join(moved)}")
    return Section("Provenance", notes=told, pairs=pairs)


def _commands(document: Mapping[str, Any], again: str) -> Section:
    """Give what reproduces the study, and what exports its choice."""
    command = "python -m effllava_optuna.study"
    code = [f"{command} run {again}" if "--" not in again else f"{command} run study.toml"]
    if document["chosen"] is None:
        code.append(f"{command} resume {again}")
    else:
        trial = document["chosen"]["trial"]
        code.append(f"{command} export {again} --trial {trial} --out pruned")
    return Section(
        "Commands",
        notes=["The study from its beginning (in another directory, or under another name); then "
               "what it leads to. The study file, defaults written out, is below."],
        code=code,
        hidden=("The study file", tomli_w.dumps(_without_none(document["spec"]))),
    )  # fmt: skip


def _without_none(value: Any) -> Any:
    """Leave out what TOML has no word for."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
