"""The commands that write and check a study file: ``init``, ``check``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.options import OutputFormat, UserPath, format_option, study_file_argument
from effllava_optuna.cli.output import print_json, print_line, quiet_transformers
from effllava_optuna.cli.progress import ProgressDisplay
from effllava_optuna.errors import ConfigError, shorten
from effllava_optuna.files import write_atomically, write_errors_as
from effllava_optuna.passwords import hide_in_document, shown_url
from effllava_optuna.storage.location import check_outputs, locate_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.tasks import Sample
    from effllava_optuna.tasks.data.row_summary import RowSummary

_SHOWN_ANSWERS = 3
# What rounding to whole heads may add to the smallest width ratio, as a share of the weights of an
# ordinary decoder.
_ROUNDED_WIDTHS = 0.15


@click.command()
@click.argument("model")
@click.option(
    "--task",
    required=True,
    metavar="NAME",
    help="Task, as task.name of a study file: digits, scienceqa, qa, ...",
)
@click.option("--data", help="Rows of the task: a file, a directory, or a hub id.")
@click.option(
    "--out",
    type=UserPath(),
    help="Path of the study file; by default named after model and task.",
)
@click.option(
    "--keep-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    help="Budget: the maximum share of the prunable weights that a policy keeps.",
)
@click.option(
    "--speedup",
    type=click.FloatRange(1),
    help="Budget, instead: the minimum speed-up relative to the dense model.",
)
@click.option(
    "--latency-ms",
    type=click.FloatRange(0, min_open=True),
    help="Budget, instead: the maximum latency of the workload in [latency], in ms.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def init(
    model: str,
    task: str,
    data: str | None,
    out: Path | None,
    *,
    overwrite: bool,
    **budgets: float | None,
) -> None:
    """Write a study file for a MODEL and a task.

    Reads the configuration of the model, but no weights. The time and memory that the study needs
    are estimated by a cost model.

    \b
    Example:
      effllava-optuna init digits-vlm --task digits --latency-ms 60 --out mine.toml
    """
    if model.endswith(".toml"):
        raise ConfigError(
            f"{model} is a study file, and init takes a model.",
            hint="Use init MODEL --task TASK --out FILE, or check and run the file.",
        )
    file = out or Path(f"{_file_name(model)}-{_file_name(task)}.toml")
    _check_path(file, overwrite=overwrite)
    budget = {name: value for name, value in sorted(budgets.items()) if value is not None}
    quiet_transformers()
    from effllava_optuna.config.study_proposal import StudyRequest, propose_study

    proposal = propose_study(
        StudyRequest(model=model, task=task, out=file, data=data, budget=budget)
    )
    with write_errors_as(ConfigError, file, hint="Use another --out."):
        write_atomically(file, proposal.text, overwrite=overwrite)
    for line in proposal.summary:
        print_line(line)
    print_line(f"Written to {file}. Next: {shlex.join([PROGRAM, 'check', str(file), '--deep'])}")


def _file_name(name: str) -> str:
    """Return the last part of a path or hub id, without characters that need quotes."""
    last = name.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "study"


def _check_path(file: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, before the model is read.

    Raises:
        ConfigError: The path is not that of a new file in an existing directory.
    """
    if "\0" in str(file) or not file.name:
        raise ConfigError(f"--out {str(file)!r} is not a file name.", hint="Use a file name.")
    try:
        if file.is_dir():
            raise ConfigError(f"{file} is a directory.", hint="Use --out FILE.")
        if not file.absolute().parent.is_dir():
            raise ConfigError(
                f"{file}: there is no directory {str(file.parent)!r}.",
                hint="Create it, or use another --out.",
            )
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists already.", hint="Use another --out, or --overwrite.")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}.", hint="Use another --out.") from error


@click.command()
@study_file_argument
@click.option(
    "--deep", is_flag=True, help="Load the model and the samples, too, and open every picture."
)
@format_option
def check(file: Path, *, deep: bool, output_format: OutputFormat) -> None:
    """Check a study file, and the rows that it names; nothing is created.

    Every row is read, but pictures are only looked up. With --deep they are opened, the model is
    loaded, and every sample is encoded.

    \b
    Example:
      effllava-optuna check studies/quickstart.toml --deep
    """
    from effllava_optuna.checkpoint_format import check_format, check_weights, has_video_part
    from effllava_optuna.config.loading import load_config
    from effllava_optuna.torchvision_package import require_torchvision

    config = load_config(file)
    location = locate_file(file, config)
    check_format(config.model.path)
    check_weights(config.model.path)
    if has_video_part(config.model.path):
        require_torchvision(config.model.path)
    if not location.is_read_only:  # such a study exists, to be looked at
        check_outputs(location, config)
    config, rows = _check_rows(config)
    if not deep:  # which knows the model itself
        _check_keep_ratio(config)
    search = config.search
    show_table = output_format == "table"
    if show_table:
        print_line(
            f"{file}: study {config.study.name!r}, {search.epochs} epochs x {search.generations} "
            f"generations x {search.population} policies = {search.trials} trials, in "
            f"{shown_url(location.url)}"
        )
        for line in [] if rows is None else rows.lines():
            print_line(line)
    document = hide_in_document(config.document())
    document |= {"trials": search.trials, "url": shown_url(location.url)}
    document["rows"] = None if rows is None else rows.to_json()
    if deep:
        quiet_transformers()
        with ProgressDisplay(
            f"check --deep {location.arguments}", stderr=not show_table
        ) as display:
            document["deep"], lines = _check_deep(config, display, rows)
        if show_table:
            display.print(*lines)
    if not show_table:
        print_json(document)


def _check_rows(config: StudyConfig) -> tuple[StudyConfig, RowSummary | None]:
    """Read the rows of a study file; those of the hub are not downloaded.

    Returns:
        The study file with the sizes of the splits, and a summary; None: the task has no rows, or
        they are on the hub.

    Raises:
        TaskError: Rows cannot be read or used.
    """
    from effllava_optuna.config.row_task_factory import (
        check_task,
        make_row_task,
        with_task_sizes,
    )
    from effllava_optuna.config.schema import ROWS
    from effllava_optuna.tasks.data.row_summary import summarise_rows

    if config.task.name not in ROWS:
        return config, None
    task = make_row_task(config, open_images=False)
    if not task.is_local:
        return config, None
    check_task(config, task)
    return with_task_sizes(config, task), summarise_rows(task)


def _check_keep_ratio(config: StudyConfig) -> None:
    """Refuse a keep ratio that the model cannot reach, from its configuration.

    The model is not looked at if the ratio is far above the smallest width ratio, nor if it is
    on the hub, nor if its stock configuration limits the widths, too: then the search begins with
    this check.

    Raises:
        ConfigError: No policy is within the limit.
    """
    from effllava_optuna.checkpoint_format import local_directory

    keep_ratio, pruning = config.search.keep_ratio, config.pruning
    if keep_ratio is None or pruning.tied or local_directory(config.model.path) is None:
        return
    if keep_ratio > min(pruning.width_ratios) + _ROUNDED_WIDTHS:
        return
    quiet_transformers()
    from effllava_optuna.calibration.calibration import independent_widths
    from effllava_optuna.search.budget import weight_budget
    from effllava_optuna.surgery import inspect_checkpoint

    parts = inspect_checkpoint(config.model.path).select(pruning.towers, depth=pruning.depth)
    weight_budget(config, parts.structure, independent_widths(parts.structure, config))


def _check_deep(
    config: StudyConfig, display: ProgressDisplay, rows: RowSummary | None
) -> tuple[dict[str, Any], list[str]]:
    """Load the model and check every sample; return the result as JSON values and as lines."""
    from effllava_optuna.calibration.calibration import allowed_widths
    from effllava_optuna.calibration.cost_measurement import measure_cost, measure_dense_latency
    from effllava_optuna.calibration.inputs import answer_proxy, load_model
    from effllava_optuna.config.cost_estimate import describe_cost
    from effllava_optuna.config.task_factory import make_task
    from effllava_optuna.config.user_functions import user_functions
    from effllava_optuna.objectives import describe_task
    from effllava_optuna.policy import Policy
    from effllava_optuna.search.allocation_study import sized_for, without_search
    from effllava_optuna.search.budget import weight_budget
    from effllava_optuna.tasks import DataTask, Split, answers_to_json
    from effllava_optuna.tasks.data.row_summary import WHY_UNUSED
    from effllava_optuna.tasks.sample_check import check_samples

    functions = user_functions(config)
    loaded, task = load_model(config), make_task(config)
    if config.search.keep_ratio is not None:
        weight_budget(config, loaded.structure, allowed_widths(loaded, config))
    if functions.term is not None:
        functions.term(Policy.dense(loaded.structure), loaded)
    sizes = {str(split): len(task.samples(split)) for split in Split}
    generate, agreement = (
        config.task.measure == "generation",
        config.quality.measure == "agreement",
    )
    check_samples(
        task,
        loaded.processor,
        loaded.context,
        generate=generate or agreement,
        progress=lambda share: display.report_stage("checking the samples", share),
    )
    described = describe_task(task, config.quality.measure, generate=generate)
    metric, measures = described["metric"], described["measures"]
    components = len(loaded.structure.components)
    allocation = sized_for(without_search(config), loaded).search
    lines = [
        f"model {config.model.path!r}: {components} components on {loaded.device}; "
        f"task {task.name!r}: {', '.join(f'{size} {role}' for role, size in sizes.items())}",
        f"metric: {metric['report']}; in the search: {metric['search']}",
        f"without a search: `allocate` measures {allocation.trials} policies ({allocation.curves} "
        "curves)",
    ]
    if rows is None and isinstance(task, DataTask):
        unused, count = task.unused_rows
        lines.append(f"{unused:,} of {count:,} rows are in no split, {WHY_UNUSED}")
    answers: dict[str, Any] = {}
    if agreement:
        answers = answers_to_json(answer_proxy(loaded, task, display.report_stage))
        lines += [
            ", ".join(f"{split}: {measure}" for split, measure in measures.items()),
            _answers_line(task.samples(Split.PROXY), answers),
        ]
    display.report_stage("timing the model", 0.0)
    dense_ms, table = measure_dense_latency(config, loaded, task), config.latency
    cost, hardware = measure_cost(config, loaded, task)
    tokens = f" and {table.new_tokens} new tokens" if table.new_tokens > 1 else ""
    lines += [
        f"the dense model takes {dense_ms:.1f} ms for the workload of [latency] ({table.batch} "
        f"prompts{tokens}): a first timing, to compare a budget with",
        f"the study needs {describe_cost(cost, hardware)}: an estimate from the time of one batch",
    ]
    facts = {
        "components": components,
        "trials_of_allocate": allocation.trials,
        "estimated_hours": round(cost.hours, 3),
        "dense_ms": round(dense_ms, 3),
        "device": str(loaded.device),
        "samples": sizes,
        "metric": metric,
        "measures": measures,
        "answers": answers,
    }
    return facts, lines


def _answers_line(samples: Sequence[Sample], answers: Mapping[str, Any]) -> str:
    """Show the dense model's answers to the first questions, which replace labels in a search."""
    shown = []
    for sample in samples[:_SHOWN_ANSWERS]:
        answer = answers[sample.id]
        text = sample.targets[answer] if isinstance(answer, int) else answer[0]
        shown.append(f"{shorten(sample.question)} -> {shorten(text)}")
    return f"the dense model answers, in the place of labels: {'; '.join(shown)}"
