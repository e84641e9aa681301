"""What the dashboard shows beyond trials: figures, a note, and the finalists' artifacts."""

from __future__ import annotations

import copy
import json
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from optuna.exceptions import ExperimentalWarning

from effllava_optuna.errors import StudyError
from effllava_optuna.report import compared
from effllava_optuna.study.artifacts import shown_with
from effllava_optuna.study.facts import facts_of
from effllava_optuna.study.storage import place_of, spec_of
from effllava_optuna.study.target import named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from optuna import Study
    from optuna.storages import BaseStorage

    from effllava_optuna.study.artifacts import Vault
    from effllava_optuna.study.evolution import Epochs

_REASONS = 3  # that are told in a note


def draw(epochs: Epochs) -> None:
    """Bring the pages of a study and of its control study up to date."""
    paint(epochs.study, epochs.ledger.study)


def paint(study: Study, control: Study) -> None:
    """Write figures and notes over the earlier ones, each study in one transaction."""
    from optuna_dashboard import save_note, save_plotly_graph_object

    from effllava_optuna.report import document
    from effllava_optuna.report.figures import figures

    facts = facts_of(study)
    found = document(facts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        with at_once(study) as page:
            for name, figure in figures(facts, found).items():
                save_plotly_graph_object(page, figure, graph_object_id=name)
            save_note(page, note(study, found))
        with at_once(control) as page:
            save_note(page, _CONTROL_NOTE.format(name=study.study_name))
        if control.metric_names is None:
            control.set_metric_names(["proxy accuracy"])


class _Collected:
    """A storage that keeps back what is written about one study."""

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self.known = dict(storage.get_study_system_attrs(study_id))
        self.fresh: dict[str, Any] = {}

    def get_study_system_attrs(self, _: int) -> dict[str, Any]:
        """Give what is stored and what will be."""
        return self.known | self.fresh

    def set_study_system_attr(self, _: int, key: str, value: Any) -> None:
        """Keep an attribute back, if it changes anything."""
        if self.known.get(key) != value:
            self.fresh[key] = value


@contextmanager
def at_once(study: Study) -> Iterator[Study]:
    """Give a study whose system attributes are written in one transaction at the end.

    Figures are stored in many pieces: a page that is read meanwhile would show none, and each
    piece would be a commit. Storages without such a transaction get them one by one.
    """
    storage, number = study._storage, study._study_id
    page = copy.copy(study)
    collected: Any = _Collected(storage, number)
    page._storage = collected
    yield page
    write = getattr(getattr(storage, "_backend", storage), "set_study_system_attrs", None)
    if write is not None:
        write(number, collected.fresh)
        return
    for key, value in collected.fresh.items():
        storage.set_study_system_attr(number, key, value)


_CONTROL_NOTE = """# Epochs of `{name}`

One trial is one attempt to publish what an epoch has: epoch 0 the calibration (order, refit
tables, latency and risk tables), every later one a trained projector and a new space; its page has
the file. The value is the cross-fitted accuracy on the proxy. The lowest-numbered complete attempt
of an epoch counts. The one after the last epoch is the report.
"""

_READ_WITH_CARE = (
    "Quality is accuracy minus eta times the structural risk; accuracy is cross-fitted on the "
    "proxy. **The dashboard's own Pareto front and best trials mix epochs**, whose values belong "
    "to different projectors: the front of each epoch is in the figure `front_by_epoch`."
)


def note(study: Study, found: Mapping[str, Any]) -> str:
    """Write the note of a study, in Markdown.

    Args:
        study: The study.
        found: Its document.
    """
    lines = [f"# {found['study']}", "", *_state(study, found), "", _READ_WITH_CARE, ""]
    lines += ["## Dense, uniform, front", "", *_table(found), ""]
    if found["front"]:
        best = found["chosen"] or found["front"][0]
        lines += ["## Export", "", *_export(study, best["trial"])]
    return "\n".join(lines)


def _state(study: Study, found: Mapping[str, Any]) -> list[str]:
    spec, trials, epochs = spec_of(study), found["trials"], found["epochs"]
    done = trials["complete"] + trials["pruned"]
    if found["chosen"] is not None:
        chosen = found["chosen"]["trial"]
        state = f"**Finished**: trial {chosen} was chosen by validation, before test was opened."
    elif done + trials["fail"] < trials["planned"]:
        state = f"**Searching**, epoch {max(epochs['opened'] - 1, 0)} of 0 to "
        state += f"{epochs['planned'] - 1}. Nothing was measured on validation or test yet."
    else:
        state = "**The search is over**; its finalists are yet to be measured on validation."
    lines = [state, "", f"- Model `{spec.model.path}`, task `{spec.task.name}`"]
    if spec.search.kept_share is not None:
        share = 100 * spec.search.kept_share
        lines.append(f"- Budget: keep at most {share:g} % of the weights that may be cut")
    elif spec.search.speedup is not None:
        lines.append(f"- Budget: {spec.search.speedup:g} times as fast as dense, by the table")
    lines.append(f"- Trials: {done} of {trials['planned']} measured")
    reasons = Counter(found["failures"])
    if reasons:
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(_REASONS))
        lines.append(f"- Failed: {reasons.total()} (attribute `reason`): {told}")
    return lines + [f"- {compared(one)}" for one in found["comparisons"] if one["split"] == "test"]


_GAP = "\u00a0\u00a0"  # the dashboard's tables have no padding of their own
_COLUMNS = (
    ("epoch", "epoch", 0),
    ("kept", "kept_share", 3),
    ("proxy", "accuracy_proxy", 3),
    ("validation", "accuracy_validation", 3),
    ("test", "accuracy_test", 3),
    ("ms", "latency_ms", 1),
    ("speed-up", "speedup_predicted", 2),
)


def _table(found: Mapping[str, Any]) -> list[str]:
    """Show what a report compares; columns of which nothing is known are left out."""
    rows = [
        ("dense", found["dense"]),
        ("uniform, 1 number", found["uniform"]),
        ("uniform, 2 numbers", found["uniform2"]),
        *((f"trial {row['trial']}", row) for row in found["front"]),
    ]
    known = [(label, row) for label, row in rows if row is not None]
    columns = [
        (head, key, digits)
        for head, key, digits in _COLUMNS
        if any(row[key] is not None for _, row in known)
    ]
    chosen = None if found["chosen"] is None else f"trial {found['chosen']['trial']}"
    lines = [
        f"| policy | {' | '.join(f'{_GAP}{head}' for head, _, _ in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for label, row in known:
        cells = [
            "" if row[key] is None else f"{row[key]:.{digits}f}" for _, key, digits in columns
        ]
        if label == chosen:
            label, cells = f"**{label}, chosen**", [f"**{cell}**" for cell in cells]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _export(study: Study, number: int) -> list[str]:
    place = place_of(study)
    where = ", in the folder of the database" if "///" in place else ""
    return [
        f"Write a policy as a checkpoint{where}:",
        "",
        "```sh",
        f"python -m effllava_optuna.study export {named(place, study.study_name)} "
        f"--trial {number} --out trial-{number}.pruned",
        "```",
        "",
    ]


def attach(study: Study, vault: Vault) -> None:
    """Give the finalists' trials a file with their policy, and a picture of it."""
    from effllava_optuna.report.bars import bars

    facts = facts_of(study)
    if facts.anatomy is None or facts.results is None:
        return
    ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
    shown = {}
    for row in facts.results["front"]:
        title = f"{study.study_name}, trial {row['trial']}: {row['kept_share']:.1%} kept"
        widths = {site.id: site.width for site in facts.anatomy.sites}
        told = {"study": study.study_name, "widths": widths} | row
        for content, label, kind in (
            (bars(facts.anatomy, row["policy"], title), "policy.png", "image/png"),
            (json.dumps(told, indent=1).encode(), "policy.json", "application/json"),
        ):
            key, value = shown_with(ids[row["trial"]], vault.keep(content), label, kind)
            shown[key] = value
    with at_once(study) as page:
        for key, value in shown.items():
            page._storage.set_study_system_attr(study._study_id, key, value)


def serve(study: Study, url: str, host: str, port: int) -> None:
    """Serve optuna-dashboard over a study's database and artifacts, until Ctrl-C.

    Raises:
        StudyError: The address is taken or not ours.
    """
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from effllava_optuna.study.dashboard import application

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the terminal free of one line a request."""

    try:
        server = make_server(host, port, application(study, url), handler_class=Quiet)
    except OSError as error:
        raise StudyError(
            f"{host}:{port} cannot be served: {error.strerror}.", hint="Give another --port."
        ) from error
    with server:
        address = f"http://{host}:{server.server_port}/dashboard/studies/{study._study_id}"
        click.echo(f"optuna-dashboard on {address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped")
