"""How fast is optuna-dashboard with a large study? ``python benchmarks/dashboard.py``.

A synthetic study of 3,000 trials of 64 genes in six epochs is served as by the command
``dashboard``. Measured are the first load of its page and the polls that follow (a browser sends
one every ten seconds), by the application itself in a new process; writing the figures and the
note; and, if Debian's Chromium and playwright are installed, the time until a browser shows the
Pareto front.

Leaves ``benchmarks/results/dashboard.json`` and a page in ``benchmarks/tables``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import optuna_dashboard
from _means import markdown
from _pages import publish
from _results import HERE, provenance
from _sentences import paragraph
from _synthetic_study import NAME, Size, fill

from effllava_optuna.dashboard.app import application
from effllava_optuna.dashboard.notes import study_note
from effllava_optuna.dashboard.pages import write_pages
from effllava_optuna.report import study_document
from effllava_optuna.report.figures.study_figures import study_figures
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import open_control_study
from effllava_optuna.storage.storage_internals import study_id_of
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.study_facts import read_study_facts

FULL = Size(layers=32, epochs=6, generations=10, population=50)
TINY = Size(layers=2, epochs=2, generations=2, population=4)
POLLS = 5
CHROMIUM = Path("/usr/bin/chromium")


def request(served: Any, path: str) -> tuple[float, int]:
    """Send a request to the application; return seconds and bytes of the response."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"], _, environ["QUERY_STRING"] = path.partition("?")
    status: list[str] = []
    started = time.perf_counter()
    body = b"".join(served(environ, lambda line, *_: status.append(line)))
    seconds = time.perf_counter() - started
    if not status[0].startswith("200"):
        raise RuntimeError(f"{path}: {status[0]}")
    return seconds, len(body)


def measure(url: str) -> dict[str, Any]:
    """Serve a study in this process and write its pages; return the figures."""
    study = open_study(open_storage(url), NAME)
    control = open_control_study(study).study
    study.get_trials(deepcopy=False)  # a process that searches has them in memory, too
    writing_s = []
    for _ in range(2):
        started = time.perf_counter()
        write_pages(study, control)
        writing_s.append(time.perf_counter() - started)
    facts = read_study_facts(study)
    document = study_document(facts)
    served = application(open_study(open_storage(url), NAME), url)
    path = f"/api/studies/{study_id_of(study)}"
    first_s, size = request(served, f"{path}?after=0")
    polls = [request(served, f"{path}?after={len(facts.trials)}") for _ in range(POLLS)]
    return {
        "trials": len(facts.trials),
        "first_s": first_s,
        "first_mb": size / 1e6,
        "poll_s": float(np.median([seconds for seconds, _ in polls])),
        "poll_mb": polls[-1][1] / 1e6,
        "plain_poll_s": plain_poll(url, path, len(facts.trials)),
        "writing_s": writing_s[0],
        "again_s": writing_s[1],
        "note": len(study_note(study, document)),
        "figures": {
            name: len(drawn.to_json()) for name, drawn in study_figures(facts, document).items()
        },
        "browser_s": browser_seconds(url),
        "load": os.getloadavg()[0],
    }


def plain_poll(url: str, path: str, trials: int) -> float:
    """Return the seconds of a poll of the unmodified optuna-dashboard."""
    plain = optuna_dashboard.wsgi(open_storage(url))
    request(plain, f"{path}?after=0")
    return float(np.median([request(plain, f"{path}?after={trials}")[0] for _ in range(POLLS)]))


@contextmanager
def serving(url: str) -> Iterator[str]:
    """Serve a study from a thread; yield the address of its page."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Discard the message."""

    study = open_study(open_storage(url), NAME)
    with make_server("127.0.0.1", 0, application(study, url), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study_id_of(study)}"
        server.shutdown()
        thread.join()


def browser_seconds(url: str) -> float | None:
    """Return the seconds until a browser shows the Pareto front; None without a browser."""
    if not CHROMIUM.exists():
        return None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with serving(url) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = chromium.new_page()
        started = time.perf_counter()
        page.goto(address)
        page.locator("#graph-pareto-front .scatterlayer .point").first.wait_for(timeout=300_000)
        seconds = time.perf_counter() - started
        chromium.close()
    return seconds


def summary(figures: Mapping[str, Any]) -> str:
    """Return the main figures."""
    return paragraph(f"""
        With a study of {figures["trials"]:,} trials, the page of optuna-dashboard loads its data
        in {figures["first_s"]:.1f} s, and each update takes {1000 * figures["poll_s"]:.0f} ms
        (optuna-dashboard alone: {1000 * figures["plain_poll_s"]:,.0f} ms).""")


def section(figures: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    browser_s = figures["browser_s"]
    first = f"{figures['first_s']:.1f} s, {figures['first_mb']:.1f} MB"
    poll = f"{1000 * figures['poll_s']:.0f} ms, {figures['poll_mb']:.2f} MB"
    lines = [
        ["first load of the page's data", first],
        ["each poll after it, without news", poll],
        [
            "Chromium, from the address to the Pareto front",
            "not measured" if browser_s is None else f"{browser_s:.1f} s",
        ],
        ["writing figures and note, first time", f"{1000 * figures['writing_s']:.0f} ms"],
        ["writing figures and note, again", f"{1000 * figures['again_s']:.0f} ms"],
        ["the note", f"{figures['note']:,} characters"],
        *(
            [f"figure `{name}`", f"{size / 1000:.1f} kB"]
            for name, size in figures["figures"].items()
        ),
    ]
    return f"""{summary(figures)}

Generated by `python benchmarks/dashboard.py`; do not edit. Figures:
[results](../results/dashboard.json).

A synthetic study of {figures["trials"]:,} trials of {figures["genes"]} genes in a SQLite file, as
served by the command `dashboard`. The first time of writing includes the import of plotly. A poll
of the unmodified optuna-dashboard takes {1000 * figures["plain_poll_s"]:,.0f} ms, since it
compares the genes of all trials each time; the command processes each trial once. The first load
remains: every gene of every trial is sent with its distribution, and the browser stores them all.

{markdown(["quantity", "value"], lines)}

{origin["cpu"]}, {origin["cores"]} shared cores (load average {figures["load"]:.1f}: above 1, other
processes were active); optuna {origin["optuna"]}; {origin["date"]}.
"""


def run_child(*arguments: object) -> Any:
    """Measure in a process of its own, and return the figures."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, arguments)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return json.loads(process.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or run one step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "scratch" / "dashboard")
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    url = f"sqlite:///{options.work / 'large.db'}"
    size = TINY if options.tiny else FULL
    fill(url, size)
    origin = provenance()
    figures = run_child("--measure", url) | {"genes": 2 * size.layers}
    shutil.rmtree(options.work)
    text = section(figures, origin)
    if options.tiny:
        print(text)
        return
    title = "The dashboard with a large study"
    publish("dashboard", title, figures | {"provenance": origin}, text)


if __name__ == "__main__":
    main()
