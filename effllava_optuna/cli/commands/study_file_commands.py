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

_SHOWN_ANSWERS = 3


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
    """Check a study file; nothing is created.

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
    search = config.search
    show_table = output_format == "table"
    if show_table:
        print_line(
            f"{file}: study {config.study.name!r}, {search.epochs} epochs x {search.generations} "
            f"generations x {search.population} policies = {search.trials} trials, in "
            f"{shown_url(location.url)}"
        )
    document = hide_in_document(config.document())
    document |= {"trials": search.trials, "url": shown_url(location.url)}
    if deep:
        quiet_transformers()
        with ProgressDisplay(
            f"check --deep {location.arguments}", stderr=not show_table
        ) as display:
            document["deep"], lines = _check_deep(config, display)
        if show_table:
            display.print(*lines)
    if not show_table:
        print_json(document)


def _check_deep(config: StudyConfig, display: ProgressDisplay) -> tuple[dict[str, Any], list[str]]:
    """Load the model and check every sample; return the result as JSON values and as lines."""
    from effllava_optuna.calibration.cost_measurement import measure_cost
    from effllava_optuna.calibration.inputs import answer_proxy, load_model
    from effllava_optuna.config.cost_estimate import describe_cost
    from effllava_optuna.config.task_factory import make_task
    from effllava_optuna.config.user_functions import user_functions
    from effllava_optuna.objectives import describe_task
    from effllava_optuna.policy import Policy
    from effllava_optuna.search.allocation_study import sized_for, without_search
    from effllava_optuna.tasks import DataTask, Split, answers_to_json
    from effllava_optuna.tasks.sample_check import check_samples

    functions = user_functions(config)
    loaded, task = load_model(config), make_task(config)
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
    if isinstance(task, DataTask):
        unused, rows = task.unused_rows
        lines.append(
            f"{unused:,} of {rows:,} rows are in no split, because the splits are full or the "
            "picture is in another split"
        )
    answers: dict[str, Any] = {}
    if agreement:
        answers = answers_to_json(answer_proxy(loaded, task, display.report_stage))
        lines += [
            ", ".join(f"{split}: {measure}" for split, measure in measures.items()),
            _answers_line(task.samples(Split.PROXY), answers),
        ]
    cost, hardware = measure_cost(config, loaded, task)
    lines.append(
        f"the study needs {describe_cost(cost, hardware)}: an estimate from the time of one batch"
    )
    facts = {
        "components": components,
        "trials_of_allocate": allocation.trials,
        "estimated_hours": round(cost.hours, 3),
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
