"""The commands that work on a model: ``inspect``, ``export``, ``recover``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import click

from effllava_optuna.cli.messages import export_summary, form_summary, recovery_summary
from effllava_optuna.cli.options import (
    OutputFormat,
    UserPath,
    format_option,
    study_options,
)
from effllava_optuna.cli.output import console, print_json, quiet_transformers
from effllava_optuna.cli.progress import ProgressDisplay
from effllava_optuna.errors import ConfigError
from effllava_optuna.export_target import (
    EXPORT_FORMS,
    ExportForm,
    check_export_directory,
    check_gguf_file,
    check_onnx_file,
)
from effllava_optuna.storage.location import StudyLocation
from effllava_optuna.vllm_package import vllm_python

_FILES = {"onnx": (".onnx", check_onnx_file), "gguf": (".gguf", check_gguf_file)}


@click.command()
@click.argument("model")
@click.option("--device", default="auto", show_default=True, help="Device of the model.")
@click.option(
    "--quick",
    is_flag=True,
    help="Read only the configuration; no weights are loaded, and no component is tested.",
)
@format_option
def inspect(model: str, device: str, *, quick: bool, output_format: OutputFormat) -> None:
    """Show which parts of a MODEL can be pruned.

    Also shows why other parts cannot. MODEL is a directory, a hub id, or digits-vlm.

    \b
    Example:
      effllava-optuna inspect llava-hf/llava-1.5-7b-hf --quick
    """
    quiet_transformers()
    from effllava_optuna.cli.rendering import render_tables
    from effllava_optuna.report import structure_tables
    from effllava_optuna.surgery import describe_image_tokens, inspect_checkpoint, load

    tokens: dict[str, Any] = {}
    if quick:
        parts = inspect_checkpoint(model)
    else:
        loaded = load(model, device=device, towers=None, depth=True)
        parts, tokens = loaded.parts, {"image_tokens": describe_image_tokens(loaded)}
    unprunable = [(part.id, part.reason) for part in parts.unprunable]
    if output_format == "json":
        document = {"components": parts.structure.to_json(), "refused": dict(unprunable)}
        print_json(document | tokens)
        return
    console().print(render_tables(*structure_tables(parts.structure, unprunable)))
    if tokens:
        console().print(f"Image tokens: {tokens['image_tokens']}.")


@click.command("export")
@study_options(of_model="visual_tokens")
@click.option(
    "--trial", metavar="N", type=int, help="Number of the trial; by default the chosen one."
)
@click.option(
    "--out",
    type=UserPath(),
    help="Directory of the checkpoint, or file of the ONNX or GGUF model.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(EXPORT_FORMS),
    help="native: each layer has its own width. portable: loads wherever the base model does. "
    "onnx: a file with the language part. gguf: a file for llama.cpp, and one with the vision "
    "part, in float16 unless the name says more. By default as the study file says.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.option(
    "--sequential",
    is_flag=True,
    help="Fit the output matrices again, layer by layer, to the pruned layers before each, and "
    "measure the accuracy before and after.",
)
@click.option(
    "--verify-with",
    "engine",
    type=click.Choice(("vllm",)),
    help="Load the export in this engine, too, and compare its greedy tokens. vLLM is that of the "
    "Python that EFFLLAVA_VLLM names, or the one that is installed here.",
)
@click.option(
    "--visual-tokens",
    metavar="RATIO",
    type=click.FloatRange(0, 1, min_open=True),
    help="Export a model of whose image tokens this share is kept; FILE is a directory, a hub id "
    "or digits-vlm.",
)
@click.option(
    "--token-selection",
    type=click.Choice(("diversity", "pooling", "random")),
    help="How image tokens are selected; by default diversity.",
)
def export_(
    location: StudyLocation | None,
    model: str | None,
    trial: int | None,
    out: Path | None,
    form: ExportForm | None,
    *,
    overwrite: bool,
    sequential: bool,
    engine: Literal["vllm"] | None,
    visual_tokens: float | None,
    token_selection: str | None,
) -> None:
    """Export a policy as a checkpoint, and verify it.

    The checkpoint is loaded in a fresh process, and its logits and generations are compared;
    with --verify-with vllm, its generations in vLLM, too. If FILE is the directory of a
    checkpoint, such as an earlier export, that model is exported, in another form.

    \b
    Example:
      effllava-optuna export studies/quickstart.toml --trial 17 --out pruned
      effllava-optuna export studies/quickstart.toml --format onnx --out a.onnx
      effllava-optuna export studies/smollm-easyvqa.toml --format gguf --out a.gguf
      effllava-optuna export small.pruned --format gguf --out a.gguf
      effllava-optuna export digits-vlm --visual-tokens 0.5 --out reduced
    """
    suffix, check = _FILES.get((form or "").partition("-")[0], ("", check_export_directory))
    if suffix and engine is not None:
        raise ConfigError(
            f"--verify-with vllm is given with --format {form}, which vLLM does not load.",
            hint="Use native or portable, or leave out --verify-with.",
        )
    if token_selection is not None and visual_tokens is None:
        raise ConfigError(
            "--token-selection is given without --visual-tokens.", hint="Use both, or neither."
        )
    if engine is not None:
        vllm_python()  # before anything is computed
    if location is None:
        if model is None or out is None:
            raise ConfigError(
                "To export a model, a place for the export is needed.",
                hint="Use export MODEL --out DIR, with --visual-tokens RATIO or --format FORMAT.",
            )
        if trial is not None or sequential:
            raise ConfigError(
                "--trial and --sequential are for studies, and a model is exported.",
                hint="Leave them out.",
            )
        reduction = None
        if visual_tokens is not None:
            if form not in (None, "native"):
                raise ConfigError(
                    f"--visual-tokens is given with --format {form}, which does not carry it.",
                    hint="Use native, or leave out one of them.",
                )
            reduction = (visual_tokens, token_selection or "diversity")
        check(out, overwrite=overwrite)  # before the model is loaded
        _export_model(model, out, form or "native", reduction, engine=engine, overwrite=overwrite)
        return
    from effllava_optuna.storage.names import CHOSEN

    study = location.open()
    config = location.config_of(study)
    number = trial if trial is not None else study.user_attrs.get(CHOSEN)
    if number is None:
        raise ConfigError(
            f"Study {study.study_name!r} has not chosen a trial yet.",
            hint="Finish it with `resume`, or use --trial N.",
        )
    path = out or location.export_directory(config)
    if path is None:
        raise ConfigError("No directory for the export is given.", hint="Use --out DIR.")
    if suffix and out is None:
        path = path.with_suffix(suffix)
    check(path, overwrite=overwrite)  # before the model is loaded and the policy fitted again
    quiet_transformers()
    from effllava_optuna.search.runner import resume
    from effllava_optuna.search.trial_export import ExportOptions, export_trial

    options = ExportOptions(
        form or config.form,
        overwrite=overwrite,
        sequential=sequential or config.export.sequential,
        engine=engine,
    )
    with (
        ProgressDisplay(None) as display,
        resume(study, location.url, display.report_stage, config=config) as session,
    ):
        display.report_stage("exporting and verifying", 0.0)
        exported = export_trial(session, number, path, options)
        display.print(export_summary(exported))


def _export_model(
    model: str,
    out: Path,
    form: ExportForm,
    reduction: tuple[float, str] | None,
    *,
    engine: Literal["vllm"] | None,
    overwrite: bool,
) -> None:
    """Export a whole model, with fewer image tokens if there is a ratio and a selection."""
    quiet_transformers()
    from effllava_optuna.surgery import Verification, export_any_form, load, reduced_tokens

    with ProgressDisplay(None) as display, ExitStack() as stack:
        display.report_stage("loading the model", 0.0)
        exported, name = load(model), model
        if reduction is not None:
            ratio, selection = reduction
            exported = stack.enter_context(reduced_tokens(exported, ratio, selection=selection))
            name = f"{model} with {ratio:.0%} of its image tokens"
        display.report_stage("exporting and verifying", 0.0)
        verification = Verification(engine=engine)
        verified = export_any_form(
            exported, out, form, verification=verification, overwrite=overwrite
        )
        display.print(form_summary(name, verified))


@click.command()
@study_options()
@click.option(
    "--out",
    required=True,
    type=UserPath(),
    help="Directory of the new checkpoint.",
)
@click.option(
    "--checkpoint",
    type=UserPath(),
    help="Checkpoint to recover; by default the export of the study.",
)
@click.option(
    "--part",
    type=click.Choice(("projector", "lora", "both")),
    default="lora",
    show_default=True,
    help="Weights that are trained: the projector, adapters of the decoder, merged at the end, or "
    "both.",
)
@click.option(
    "--data",
    help="Training data: rows (a file, a directory, or a hub id), or a task, as task.name, whose "
    "proxy split is used; by default the proxy set of the study.",
)
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(8, 4096),
    help="Maximum number of training samples; by default all rows, or of a task as many as the "
    "study's proxy set has.",
)
@click.option(
    "--steps",
    metavar="N",
    default=300,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of training steps.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
def recover(
    location: StudyLocation, out: Path, checkpoint: Path | None, *, overwrite: bool, **options: Any
) -> None:
    """Distil the dense model into an exported checkpoint.

    The result is exported again. Validation and test samples are not used for training; the
    accuracy on validation is printed.

    \b
    Example:
      effllava-optuna recover studies/quickstart.toml --out recovered
      effllava-optuna recover my_data.toml --data more.jsonl --out recovered
    """
    config = location.config_of(location.open())
    source = checkpoint or location.export_directory(config)
    if source is None:
        raise ConfigError("No checkpoint to recover is given.", hint="Use --checkpoint DIR.")
    check_export_directory(out, overwrite=overwrite)  # before the training
    quiet_transformers()
    from effllava_optuna.evaluation.checkpoint_recovery import RecoveryOptions, recover_checkpoint

    with ProgressDisplay(None) as display:
        report = recover_checkpoint(
            config,
            RecoveryOptions(**options),
            source,
            out,
            display.report_stage,
            overwrite=overwrite,
        )
        display.print(recovery_summary(report))
