"""The server of optuna-dashboard for a study: its database and its artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna_dashboard

from effllava_optuna.dashboard.study_properties import use_incremental_properties
from effllava_optuna.dashboard.stylesheet import with_stylesheet
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.artifact_store import artifact_backend_of
from effllava_optuna.storage.storage_internals import storage_of, study_id_of
from effllava_optuna.storage.studies import config_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Study

    from effllava_optuna.config.schema import StudyConfig


def application(study: Study, url: str, config: StudyConfig | None = None) -> Any:
    """Return the WSGI application of optuna-dashboard for a study.

    Args:
        study: The study.
        url: The URL of its storage.
        config: The config of the study if its paths differ from the stored ones.
    """
    artifact_store = artifact_backend_of(url, config or config_of(study))
    wsgi_application = optuna_dashboard.wsgi(storage_of(study), artifact_store=artifact_store)
    use_incremental_properties(wsgi_application, study_id_of(study))
    return with_stylesheet(wsgi_application)


def serve(
    study: Study, served: Any, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Serve optuna-dashboard for a study until Ctrl-C.

    Args:
        study: The study.
        served: Its `application`.
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
        announce: Called with a line that contains the URL, and with a line at the end.

    Raises:
        StudyError: The port is in use, or the address is not available.
    """
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class QuietHandler(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing; the base class prints a line per request."""

    try:
        server = make_server(host, port, served, handler_class=QuietHandler)
    except OSError as error:
        raise StudyError(
            f"{host}:{port} cannot be served: {error.strerror}.", hint="Use another --port."
        ) from error
    with server:
        address = f"http://{host}:{server.server_port}/dashboard/studies/{study_id_of(study)}"
        announce(f"optuna-dashboard on {address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            announce("stopped")
