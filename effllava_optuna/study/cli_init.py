"""The verb that begins: ``init``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from effllava_optuna.errors import SpecError
from effllava_optuna.files import write_atomically, write_errors_as
from effllava_optuna.study.screen import quiet_transformers
from effllava_optuna.study.target import ours


@click.command()
@click.argument("model")
@click.option(
    "--task", required=True, metavar="NAME", help="As task.name: digits, scienceqa, qa ..."
)
@click.option("--data", help="Rows of the task: a file, a directory, or a hub id.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The study file; named after model and task if not given.",
)
@click.option(
    "--kept-share",
    type=click.FloatRange(0, 1, min_open=True),
    help="Keep at most this share of the weights that may be cut.",
)
@click.option(
    "--speedup", type=click.FloatRange(1), help="Instead: be so much faster than the dense model."
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@ours
def init(
    model: str,
    task: str,
    data: str | None,
    out: Path | None,
    kept_share: float | None,
    speedup: float | None,
    *,
    overwrite: bool,
) -> None:
    """Write a study file for a MODEL and a task, after a look at the model's configuration.

    No weights are read. What it says of time and memory is an estimate by a cost model.

    \b
    Example:
      python -m effllava_optuna.study init digits-vlm --task digits --out mine.toml
    """
    place = out or Path(f"{_plain(model)}-{_plain(task)}.toml")
    _refuse_place(place, overwrite=overwrite)
    quiet_transformers()
    from effllava_optuna.study.proposal import Wish, propose

    proposal = propose(Wish(model, task, place, data, kept_share, speedup))
    with write_errors_as(SpecError, place, hint="Give another --out."):
        write_atomically(place, proposal.text, overwrite=overwrite)
    for line in proposal.told:
        click.echo(line)
    following = shlex.join(["python", "-m", "effllava_optuna.study", "check", str(place)])
    click.echo(f"Written to {place}. Next: {following}")


def _plain(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "study"


def _refuse_place(place: Path, *, overwrite: bool) -> None:
    if "\0" in str(place) or not place.name:
        raise SpecError(f"--out {str(place)!r} is no file.", hint="Give a name.")
    try:
        if place.is_dir():
            raise SpecError(f"{place} is a directory.", hint="Give --out FILE.")
        if not place.absolute().parent.is_dir():
            raise SpecError(
                f"{place}: there is no directory {str(place.parent)!r}.",
                hint="Make it, or give another --out.",
            )
        if place.exists() and not overwrite:
            raise SpecError(
                f"{place} is there already.", hint="Give another --out, or --overwrite."
            )
    except OSError as error:
        raise SpecError(f"{place}: {error.strerror}.", hint="Give another --out.") from error
