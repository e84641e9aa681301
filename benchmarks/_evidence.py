"""Command line and output of the scripts that compare studies."""

from __future__ import annotations

import argparse
import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from _pages import put_page
from _results import HERE, RESULTS, origin_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG = HERE.parent / "studies" / "quickstart.toml"
SEEDS = 10
EMBEDDED = "digits-vlm"
SECOND = str(HERE / "digits-vlm-1")  # `train_digits_vlm.py --seed 1`: other weights, other draws
CAVEAT = (
    "Small models that answer four kinds of question about digits support no claim about "
    "LLaVA-7B, nor about any other large model."
)
COMMON = ("task.test=1000",)
_CHANGES = {
    "full": (),
    "small": (
        "projector.steps=8", "projector.elites=1", "task.proxy=32", "task.validation=60",
        "task.test=120", "report.finalists=3",
    ),
    "tiny": (
        "projector.steps=4", "projector.elites=1", "latency.repeats=1", "latency.batch=4",
        "task.proxy=16", "task.validation=40", "task.test=40", "report.finalists=2",
        "pruning.width_ratios=[0.05, 0.2, 0.5, 1.0]",
    ),
}  # fmt: skip
_SIZES = {
    "full": (),
    "small": ("search.epochs=2", "search.generations=2", "search.population=10"),
    "tiny": ("search.epochs=2", "search.generations=1", "search.population=6"),
}


@dataclass(frozen=True, slots=True)
class Form:
    """How much is measured, and where the records are.

    Attributes:
        name: ``full``, ``small`` or ``tiny``.
        seeds: Number of draws and searches of each model.
        models: Paths by name.
        folder: Holds the records and the latency tables.
        published: Whether pages are written to ``tables/``.
        report: Whether existing records are read and nothing is measured.
        config: The study file that every case changes.
        common: Settings that all cases share.
        caveat: What the figures do not say.
        overrides: Settings that override those of a case.
        device: What the models run on.
    """

    name: str
    seeds: int
    models: Mapping[str, str]
    folder: Path
    published: bool
    report: bool = False
    config: Path = CONFIG
    common: tuple[str, ...] = COMMON
    caveat: str = CAVEAT
    overrides: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def changes(self) -> tuple[str, ...]:
        """Return settings of the study file that a case may override."""
        return _CHANGES[self.name]

    @property
    def sizes(self) -> tuple[str, ...]:
        """Return settings of the study file that override those of a case."""
        return (*_SIZES[self.name], *self.overrides)

    def pick(self, full: int, small: int, tiny: int) -> int:
        """Return the number for this form."""
        return {"full": full, "small": small, "tiny": tiny}[self.name]


def pairs_of(form: Form) -> list[tuple[str, int]]:
    """Return pairs of model and seed, all models of one seed first."""
    return [(model, seed) for seed in range(form.seeds) for model in form.models]


def parse_form(
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    two_models: bool = False,
    draws: int = SEEDS,
    any_device: bool = False,
) -> Form:
    """Read the command line of a script that compares studies.

    Args:
        description: The description of the script.
        arguments: The command line; None: that of the process.
        two_models: Whether the full form also runs on the second model.
        draws: Number of draws and searches of each model in the full form.
        any_device: Whether the models may run on another device than a CPU.
    """
    parser = argparse.ArgumentParser(description=description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    size.add_argument("--small", action="store_true", help="run for a minute or two; see --out")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; write tables of existing records"
    )
    parser.add_argument("--seeds", type=int, help=f"draws and searches (default: {draws})")
    parser.add_argument("--out", type=Path, help="folder of the records; nothing is published")
    parser.set_defaults(device="cpu")
    if any_device:
        parser.add_argument("--device", help="device of the models (default: cpu)")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = "tiny" if options.tiny else "small" if options.small else "full"
    models = {"first": EMBEDDED}
    if two_models and name == "full":
        models["second"] = SECOND
    return Form(
        name=name,
        seeds=options.seeds or {"tiny": 1, "small": 2, "full": draws}[name],
        models=models,
        folder=options.out or (RESULTS if name == "full" else _scratch(name)),
        published=name == "full" and options.out is None,
        report=options.report,
        device=options.device,
        common=(*COMMON, "search.keep_ratio=0.3") if name == "tiny" else COMMON,
    )


def _scratch(name: str) -> Path:
    """Create a folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix=f"evidence-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def announce(missing: int, seconds: float) -> None:
    """Print how long a run will take.

    Args:
        missing: Number of records that have to be measured.
        seconds: CPU seconds of one record.
    """
    hours = missing * seconds / 3600
    print(f"About {hours:.2f} hours of one core for {missing} records.", flush=True)


def publish(form: Form, title: str, text: str, origins: Sequence[Mapping[str, Any]]) -> None:
    """Print a section, and write it to the page of the form.

    Args:
        form: How much was measured; the tiny form has no page.
        title: The heading.
        text: The section without its caveat and provenance.
        origins: Provenance of its records.
    """
    commits = ", ".join(dict.fromkeys(str(origin["commit"]) for origin in origins))
    section = f"{text.strip()}\n\n{form.caveat}\n\n{_machines(origins)} Commits: {commits}."
    print(section)
    if form.published:
        put_page(title, section)
    elif form.name == "small":
        with (form.folder / "RESULTS.md").open("a", encoding="utf-8") as page:
            page.write(f"## {title}\n\n{section}\n\n")


def _machines(origins: Sequence[Mapping[str, Any]]) -> str:
    """Return a line with the last machine, and how many records are from a GPU."""
    on_cpu = [origin for origin in origins if "gpu" not in origin]
    if len(on_cpu) in (0, len(origins)):
        return origin_line(origins[-1])
    gpus = ", ".join(dict.fromkeys(origin["gpu"] for origin in origins if "gpu" in origin))
    others = len(origins) - len(on_cpu)
    return f"{origin_line(on_cpu[-1])} {others} of {len(origins)} records: {gpus}."
