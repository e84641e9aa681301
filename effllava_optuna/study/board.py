"""What the dashboard shows beyond trials: a front coloured by epoch, and notes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import click
from optuna.exceptions import ExperimentalWarning

from effllava_optuna.errors import StudyError
from effllava_optuna.logging import get_logger
from effllava_optuna.study.artifacts import store_for
from effllava_optuna.study.facts import facts_of
from effllava_optuna.study.records import trials_of
from effllava_optuna.study.storage import CHOSEN, spec_of

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.study.evolution import Epochs

_logger = get_logger(__name__)
FIGURE = "front_by_epoch"


def draw(epochs: Epochs) -> None:
    """Put the figure and the notes into the study, over the earlier ones."""
    from optuna_dashboard import save_note, save_plotly_graph_object

    from effllava_optuna.report.figures import front_by_epoch

    study, control = epochs.study, epochs.ledger.study
    dense = epochs.bench.bundle.dense
    figure = front_by_epoch(
        trials_of(study),
        epochs.epoch + 1,
        {"latency_ms": dense.latency_ms, "expected": dense.expected},
        study.user_attrs.get(CHOSEN),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        save_plotly_graph_object(study, figure, graph_object_id=FIGURE)
        save_note(study, note(epochs))
        save_note(control, _CONTROL_NOTE.format(name=study.study_name))
        if control.metric_names is None:
            control.set_metric_names(["proxy accuracy"])


_CONTROL_NOTE = """# Epochs of `{name}`

One trial is one attempt to publish what an epoch has: epoch 0 the calibration (order, refit
tables, latency and risk tables), every later one a trained projector and a new space. The value
is the cross-fitted accuracy on the proxy. The lowest-numbered complete attempt of an epoch counts.
The one after the last epoch is the report.
"""


def note(epochs: Epochs) -> str:
    """Write the study's note, in Markdown."""
    from effllava_optuna.report import document

    found = document(facts_of(epochs.study))
    lines = [
        f"# {found['study']}",
        "",
        "Quality is accuracy minus eta times the structural risk; accuracy is cross-fitted on the "
        "proxy. The Pareto front and the best trials of the dashboard mix epochs, whose values "
        f"belong to different projectors: see the figure `{FIGURE}`.",
        "",
        "| policy | epoch | kept | proxy | validation | test | ms | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [("dense", found["dense"]), ("uniform, 2 numbers", found["uniform2"])]
    rows += [(f"trial {row['trial']}", row) for row in found["front"]]
    for label, row in rows:
        if row is not None:
            cells = [
                label,
                *(
                    "" if row[key] is None else f"{row[key]:.{digits}f}"
                    for key, digits in (
                        ("epoch", 0), ("kept_share", 3), ("accuracy_proxy", 3),
                        ("accuracy_validation", 3), ("accuracy_test", 3), ("latency_ms", 1),
                        ("speedup_predicted", 2),
                    )
                ),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if found["trials"]["pruned"]:
        lines += [
            "",
            f"{found['trials']['pruned']} policies were stopped before they had answered all of "
            "the proxy (state PRUNED): the attribute `stopped` says which trial beats them.",
        ]
    if found["chosen"] is not None:
        lines += ["", f"Chosen by validation: trial {found['chosen']['trial']}."]
    return "\n".join(lines)


def serve(study: Study, url: str, host: str, port: int) -> None:
    """Serve optuna-dashboard over a study's database and artifacts, until Ctrl-C.

    Raises:
        StudyError: The address is taken or not ours.
    """
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    import optuna_dashboard

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the terminal free of one line a request."""

    store = store_for(url, spec_of(study))
    application = optuna_dashboard.wsgi(study._storage, artifact_store=store)
    try:
        server = make_server(host, port, application, handler_class=Quiet)
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
