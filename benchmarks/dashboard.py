"""Does optuna-dashboard stay quick over a large study? ``python benchmarks/dashboard.py``.

A study of 3,000 trials of 64 genes in six epochs, made up, is served as ``dashboard`` serves it.
Measured are: the first load of its page and the polls that follow (what a browser asks for every
ten seconds), in a fresh process each, by the application itself; writing the figures and the note;
and, where Debian's Chromium and playwright are installed, the time until a browser shows the
Pareto front.

Leaves ``benchmarks/results/dashboard.json`` and a section of ``benchmarks/RESULTS.md``.
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
from _results import HERE, provenance, publish
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from effllava_optuna.policy import Anatomy, Kind, Policy, Site
from effllava_optuna.report import document
from effllava_optuna.report.figures import figures
from effllava_optuna.study.board import note, paint
from effllava_optuna.study.dashboard import application
from effllava_optuna.study.facts import facts_of
from effllava_optuna.study.ledger import Ledger, Publication
from effllava_optuna.study.spec import StudySpec
from effllava_optuna.study.storage import ANATOMY, create_study, open_storage, open_study

NAME = "large"
LAYERS, EPOCHS, GENERATIONS, POPULATION = 32, 6, 10, 50  # 64 genes, 3,000 trials
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
POLLS = 5
CHROMIUM = Path("/usr/bin/chromium")
BUNDLE = {
    "dense": {
        "accuracy": 0.95, "expected": 0.9, "latency_ms": 200.0, "parameters": 10**9,
        "gflops": 100.0,
    },
    "reference": [0.1, 210.0],
    "latency": {"error": 0.03, "spread": 0.02, "vision_ms": 5.0},
}  # fmt: skip


def anatomy_of(layers: int) -> Anatomy:
    """Make up a decoder of two genes a layer."""
    return Anatomy(
        tuple(
            Site("language", layer, kind, width, 4096)
            for layer in range(layers)
            for kind, width in ((Kind.ATTN, 32), (Kind.MLP, 11008))
        )
    )


def fill(url: str, layers: int, epochs: int, generations: int, population: int) -> None:
    """Make a study that looks as if it had been searched."""
    anatomy = anatomy_of(layers)
    table = {
        "study": {"name": NAME},
        "model": {"path": "nowhere"},
        "task": {"name": "digits"},
        "search": {"epochs": epochs, "generations": generations, "population": population},
    }
    study = create_study(open_storage(url, create=True), StudySpec.of(table, place="here"))
    study.set_user_attr(ANATOMY, anatomy.to_json())
    ledger = Ledger(study._storage, NAME)
    for epoch in range(epochs):
        ledger.publish(epoch, lambda: Publication(0.9, update_of(), None))
        for place in range(generations * population):
            study.add_trial(trial_of(anatomy, epoch, *divmod(place, population)))


def update_of() -> dict[str, Any]:
    """Say what a calibration and an update publish, in one."""
    when = {
        f"{what}_{when}": 0.5
        for what in ("proxy_accuracy", "proxy_loss", "crossfit_accuracy", "crossfit_loss")
        for when in ("before", "after")
    }
    curve = [{"steps": 4 * look, "loss": 0.5, "accuracy": 0.9} for look in range(5)]
    return {"bundle": BUNDLE, "steps": 8, "seconds": 1.0, "crossfit_curve": curve} | when


def trial_of(anatomy: Anatomy, epoch: int, generation: int, index: int) -> Any:
    """Make up a trial that says what a trial of ours says."""
    rng = np.random.default_rng([epoch, generation, index])
    shares = rng.choice(SHARES, len(anatomy.sites))
    keep = [
        max(1, int(site.width * share)) for site, share in zip(anatomy.sites, shares, strict=True)
    ]
    share = Policy.of(anatomy, keep).kept_share(anatomy)
    accuracy = float(np.clip(0.4 + 0.6 * share + 0.1 * rng.normal(), 0, 1))
    return create_trial(
        state=TrialState.COMPLETE,
        params={site.id: kept for site, kept in zip(anatomy.sites, keep, strict=True)},
        distributions={site.id: IntDistribution(1, site.width) for site in anatomy.sites},
        values=[accuracy, 200.0 * share],
        user_attrs={
            "space": "0" * 16, "basis": "0" * 64, "keep": keep, "kept_share": round(share, 6),
            "risk": -0.5, "kind": "child", "epoch": epoch, "generation": generation,
            "index": index, "attempt": 0, "accuracy": accuracy, "expected": accuracy,
            "log_probability": -0.3, "hits": [1] * 64,
        },
        system_attrs={"constraints": [-0.01]},
    )  # fmt: skip


def ask(served: Any, path: str) -> tuple[float, int]:
    """Ask the application as a browser would; give seconds and bytes."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"], _, environ["QUERY_STRING"] = path.partition("?")
    status: list[str] = []
    start = time.perf_counter()
    body = b"".join(served(environ, lambda told, *_: status.append(told)))
    seconds = time.perf_counter() - start
    if not status[0].startswith("200"):
        raise RuntimeError(f"{path}: {status[0]}")
    return seconds, len(body)


def measure(url: str) -> dict[str, Any]:
    """Serve a study in this process, and write its page."""
    study = open_study(open_storage(url), NAME)
    control = Ledger(study._storage, NAME).study
    study.get_trials(deepcopy=False)  # as a process that searches has
    writing = []
    for _ in range(2):
        start = time.perf_counter()
        paint(study, control)
        writing.append(time.perf_counter() - start)
    facts = facts_of(study)
    found = document(facts)
    served = application(open_study(open_storage(url), NAME), url)
    here = f"/api/studies/{study._study_id}"
    first, size = ask(served, f"{here}?after=0")
    polls = [ask(served, f"{here}?after={len(facts.trials)}") for _ in range(POLLS)]
    return {
        "trials": len(facts.trials),
        "first_s": first,
        "first_mb": size / 1e6,
        "poll_s": float(np.median([seconds for seconds, _ in polls])),
        "poll_mb": polls[-1][1] / 1e6,
        "plain_poll_s": plain_poll(url, here, len(facts.trials)),
        "writing_s": writing[0],
        "again_s": writing[1],
        "note": len(note(study, found)),
        "figures": {name: len(drawn.to_json()) for name, drawn in figures(facts, found).items()},
        "browser_s": browser(url),
        "load": os.getloadavg()[0],
    }


def plain_poll(url: str, here: str, trials: int) -> float:
    """Give the seconds of a poll of optuna-dashboard as it comes."""
    plain = optuna_dashboard.wsgi(open_storage(url))
    ask(plain, f"{here}?after=0")
    return float(np.median([ask(plain, f"{here}?after={trials}")[0] for _ in range(POLLS)]))


@contextmanager
def serving(url: str) -> Iterator[str]:
    """Serve a study from a thread; give the address of its page."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    study = open_study(open_storage(url), NAME)
    with make_server("127.0.0.1", 0, application(study, url), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study._study_id}"
        server.shutdown()
        thread.join()


def browser(url: str) -> float | None:
    """Give the seconds until a browser shows the Pareto front; None where there is none."""
    if not CHROMIUM.exists():
        return None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with serving(url) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = chromium.new_page()
        start = time.perf_counter()
        page.goto(address)
        page.locator("#graph-pareto-front .scatterlayer .point").first.wait_for(timeout=300_000)
        seconds = time.perf_counter() - start
        chromium.close()
    return seconds


def section(found: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    """Write the section of ``RESULTS.md``."""
    seen = found["browser_s"]
    rows = [
        ("first load of the page's data", f"{found['first_s']:.1f} s, {found['first_mb']:.1f} MB"),
        (
            "each poll after it, nothing new",
            f"{1000 * found['poll_s']:.0f} ms, {found['poll_mb']:.2f} MB",
        ),
        (
            "Chromium, from the address to the Pareto front",
            "not measured" if seen is None else f"{seen:.1f} s",
        ),
        ("writing figures and note, first", f"{1000 * found['writing_s']:.0f} ms"),
        ("writing figures and note, again", f"{1000 * found['again_s']:.0f} ms"),
        ("the note", f"{found['note']:,} characters"),
        *(
            (f"figure `{name}`", f"{size / 1000:.1f} kB")
            for name, size in found["figures"].items()
        ),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""Generated by `python benchmarks/dashboard.py`; do not edit.

A made-up study of {found["trials"]:,} trials of {found["genes"]} genes in a SQLite file, as the
verb `dashboard` serves it. The first writing includes importing plotly. optuna-dashboard as it
comes takes {1000 * found["plain_poll_s"]:,.0f} ms for a poll, since it compares the genes of all
trials anew; the verb lets it look at each trial once. What stays is the first load: every gene of
every trial comes with its distribution, and the browser keeps them all.

| what | value |
|---|---|
{table}

{where["cpu"]}, {where["cores"]} shared cores (load average {found["load"]:.1f}: others were at
work where it is above 1); optuna {where["optuna"]}; {where["date"]}.
"""


def child(*words: object) -> Any:
    """Let a fresh process fill or measure."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, words)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, or do one step of it in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "scratch" / "dashboard")
    parser.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    url = f"sqlite:///{arguments.work / 'large.db'}"
    layers, *sizes = (2, 2, 2, 4) if arguments.tiny else (LAYERS, EPOCHS, GENERATIONS, POPULATION)
    fill(url, layers, *sizes)
    origin = provenance()
    found = child("--measure", url) | {"genes": 2 * layers}
    shutil.rmtree(arguments.work)
    if arguments.tiny:
        print(section(found, origin))
        return
    publish("dashboard", "The dashboard over a large study", found | {"provenance": origin},
            section(found, origin))  # fmt: skip


if __name__ == "__main__":
    main()
