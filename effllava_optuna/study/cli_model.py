"""The verbs that are about models: ``anatomy``, ``export``, ``recover``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from effllava_optuna.errors import SpecError
from effllava_optuna.study.screen import (
    Screen,
    console,
    exported,
    quiet_transformers,
    recovered,
)
from effllava_optuna.study.target import (
    Format,
    Target,
    export_directory,
    ours,
    print_json,
    targeted,
    with_format,
)


@click.command()
@click.argument("model")
@click.option("--device", default="auto", show_default=True, help="What to load the model on.")
@click.option(
    "--quick",
    is_flag=True,
    help="From the configuration alone: no weights are read, and nothing is tested.",
)
@with_format
@ours
def anatomy(model: str, device: str, *, quick: bool, form: Format) -> None:
    """Show what of a MODEL (a directory, a hub id, digits-vlm) can be cut, and what not and why.

    \b
    Example:
      python -m effllava_optuna.study anatomy llava-hf/llava-1.5-7b-hf --quick
    """
    quiet_transformers()
    from effllava_optuna.report import anatomy_table
    from effllava_optuna.surgery import load, outline

    whole = None if quick else load(model, device=device, towers=None, depth=True)
    parts = outline(model) if whole is None else whole.parts
    refused = [(refusal.place, refusal.reason) for refusal in parts.refused]
    if form != "table":
        sites = parts.anatomy.to_json()
        print_json({"sites": sites, "refused": dict(refused)})
        return
    console().print(*anatomy_table(parts.anatomy, refused), sep="\n")


@click.command("export")
@targeted
@click.option("--trial", type=int, help="Which trial; the chosen one if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the checkpoint.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("native", "portable", "onnx")),
    help="native: each layer has its own size. portable: loads wherever the base model does. "
    "onnx: a file with the language part. Not given: as the study file says, or native.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.option(
    "--sequential",
    is_flag=True,
    help="Fit layer after layer on the pruned layers before it, and measure again.",
)
def export_(
    target: Target,
    trial: int | None,
    out: Path | None,
    form: Literal["native", "portable", "onnx"] | None,
    *,
    overwrite: bool,
    sequential: bool,
) -> None:
    """Write a policy's checkpoint with its own basis, and verify it in a fresh process.

    \b
    Example:
      python -m effllava_optuna.study export studies/quickstart.toml --trial 17 --out pruned
      python -m effllava_optuna.study export studies/quickstart.toml --format onnx --out a.onnx
    """
    from effllava_optuna.study import storage

    study = target.study()
    spec = storage.spec_of(study)
    number = trial if trial is not None else study.user_attrs.get(storage.CHOSEN)
    if number is None:
        raise SpecError(
            f"Study {study.study_name!r} has chosen no trial yet.",
            hint="Finish it with `resume`, or give --trial.",
        )
    directory = out or export_directory(spec, target.file)
    if directory is None:
        raise SpecError("There is no directory to write to.", hint="Give --out DIR.")
    quiet_transformers()
    from effllava_optuna.study.checkpoint import write_checkpoint
    from effllava_optuna.study.loop import continued

    if form == "onnx" and out is None:
        directory = directory.with_suffix(".onnx")
    with Screen(target.again) as screen, continued(study, target.url, screen.say) as epochs:
        screen.say("exporting and verifying", 0.0)
        written = write_checkpoint(
            epochs,
            number,
            directory,
            form=form or spec.form,
            overwrite=overwrite,
            sequential=sequential or spec.export.sequential,
        )
        screen.told(exported(written))


@click.command()
@targeted
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory of the new checkpoint.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="What to recover; the study's export if not given.",
)
@click.option(
    "--part",
    type=click.Choice(("projector", "lora")),
    default="lora",
    show_default=True,
    help="What learns: the projector, or adapters on the decoder that are merged.",
)
@click.option(
    "--data",
    metavar="TASK",
    help="Whose proxy split teaches, as task.name; the study's if not given.",
)
@click.option(
    "--samples", type=click.IntRange(8, 4096), help="How many; the study's if not given."
)
@click.option("--steps", default=300, show_default=True, type=click.IntRange(1))
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
def recover(
    target: Target, out: Path, checkpoint: Path | None, *, overwrite: bool, **course: Any
) -> None:
    """Distil the dense model's answers into an exported checkpoint, and export it again.

    Nothing is learned from validation or test; accuracy on validation is printed.

    \b
    Example:
      python -m effllava_optuna.study recover studies/quickstart.toml --out recovered
    """
    from effllava_optuna.study import storage

    spec = storage.spec_of(target.study())
    place = checkpoint or export_directory(spec, target.file)
    if place is None:
        raise SpecError("There is no checkpoint to recover.", hint="Give --checkpoint DIR.")
    quiet_transformers()
    from effllava_optuna.study.recovery import Course, recover_checkpoint

    with Screen(target.again) as screen:
        report = recover_checkpoint(
            spec, Course(**course), place, out, screen.say, overwrite=overwrite
        )
        screen.told(recovered(report))
