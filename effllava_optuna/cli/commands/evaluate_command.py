"""The command that evaluates a model: ``evaluate``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from effllava_optuna.cli.options import (
    OutputFormat,
    UserPath,
    format_option,
    study_options,
)
from effllava_optuna.cli.output import console, print_json, quiet_transformers
from effllava_optuna.cli.progress import ProgressDisplay
from effllava_optuna.errors import ConfigError
from effllava_optuna.files import why_unwritable
from effllava_optuna.storage.location import StudyLocation

if TYPE_CHECKING:
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.evaluation.judged_answers import JudgeOptions
    from effllava_optuna.evaluation.split_evaluation import EvaluationOptions, EvaluationResult

# Parameters that name the study, or that must not be repeated.
_NOT_REPEATED = ("file", "url", "name", "overwrite")


@click.command()
@study_options()
@click.option(
    "--model",
    metavar="MODEL",
    default="chosen",
    show_default=True,
    help="chosen: the policy that the study chose. dense: the model that the study prunes. Or the "
    "number of a trial, a directory, or a hub id.",
)
@click.option(
    "--split",
    type=click.Choice(("proxy", "validation", "test", "full")),
    default="test",
    show_default=True,
    help="Split of the study; full: all rows of the data that test is drawn from.",
)
@click.option(
    "--letters",
    is_flag=True,
    help="Compare the options of closed questions in one forward pass, as the search does; "
    "otherwise the model generates an answer, which task.harness reads.",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="Evaluate only the first N samples."
)
@click.option(
    "--batch-size",
    metavar="N",
    type=click.IntRange(1),
    help="Samples per batch; by default as many as fit into memory.",
)
@click.option(
    "--text",
    type=UserPath(exists=True, dir_okay=False),
    help="Also measure the perplexity of this text, for what is kept besides the task.",
)
@click.option(
    "--out",
    type=UserPath(),
    help="File of the answers; samples that it has an answer to are not asked again.",
)
@click.option("--overwrite", is_flag=True, help="Remove the stored answers first.")
@click.option(
    "--submit",
    type=UserPath(dir_okay=False),
    help="Also write the answers to this file, in the format of the benchmark's script or server.",
)
@click.option(
    "--judge",
    metavar="MODEL",
    help="Model that scores MM-Vet or LLaVA-Bench, behind an OpenAI-compatible server.",
)
@click.option(
    "--judge-url",
    metavar="URL",
    default="https://api.openai.com/v1",
    show_default=True,
    help="Base URL of that server.",
)
@click.option(
    "--judge-key",
    metavar="NAME",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Environment variable with the API key; '' sends no key.",
)
@click.option(
    "--judge-prompt",
    type=UserPath(exists=True, dir_okay=False),
    help="The official mm-vet_evaluator.py or rule.json, or a text. Without it, scores cannot be "
    "compared with published ones.",
)
@format_option
def evaluate(
    location: StudyLocation,
    *,
    out: Path | None,
    overwrite: bool,
    submit: Path | None,
    judge: str | None,
    judge_url: str,
    judge_key: str,
    judge_prompt: Path | None,
    output_format: OutputFormat,
    **options: Any,
) -> None:
    """Evaluate a model on the task of a study.

    Answers, and replies of a judge, are stored: the same command continues after an interruption.
    Before the study has begun, only dense models, directories and hub ids can be evaluated.

    \b
    Example:
      effllava-optuna evaluate studies/quickstart.toml --model quickstart.pruned
    """
    config = location.config or location.config_of(location.open())
    quiet_transformers()
    from effllava_optuna.evaluation.judged_answers import (
        JudgeOptions,
        check_submission,
        connect_judge,
        write_submission,
    )
    from effllava_optuna.evaluation.split_evaluation import EvaluationOptions
    from effllava_optuna.evaluation.split_evaluation import evaluate as evaluate_split

    evaluation_options = EvaluationOptions(**options)
    answers_file = out or _answers_file(location, evaluation_options)
    for option, path in (("--out", answers_file), ("--submit", submit)):
        reason = "" if path is None else why_unwritable(path)
        if reason:
            raise ConfigError(
                f"{path} cannot be written: {reason}.", hint=f"Use another {option}."
            )
    if submit is not None:
        check_submission(config, letters=evaluation_options.letters)
    judge_options = None
    if judge is not None:
        judge_options = JudgeOptions(judge, judge_url, judge_key, judge_prompt)
        connect_judge(config, judge_options)  # refuses wrong options before the model is loaded
    command = ["evaluate", *repeated_options(click.get_current_context()), location.arguments]
    with ProgressDisplay(" ".join(command), stderr=output_format == "json") as display:
        result = evaluate_split(
            location,
            config,
            evaluation_options,
            answers_file,
            display.report_stage,
            overwrite=overwrite,
        )
        document = result.document | {"judged": None}
        if submit is not None:
            write_submission(config, result, submit)
        if judge_options is not None:
            replies = answers_file.with_suffix(".replies.jsonl")
            document["judged"] = _judge(config, result, judge_options, replies, display)
    if output_format == "json":
        print_json(document)
        return
    from effllava_optuna.cli.rendering import render_tables
    from effllava_optuna.report import evaluation_table

    console().print(render_tables(evaluation_table(document)))


def _judge(
    config: StudyConfig,
    result: EvaluationResult,
    options: JudgeOptions,
    replies: Path,
    display: ProgressDisplay,
) -> dict[str, Any]:
    """Score answers by a judge whose replies are stored in a file."""
    from effllava_optuna.evaluation.judged_answers import (
        CachingJudge,
        connect_judge,
        judge_answers,
    )

    judge = CachingJudge(
        connect_judge(config, options),
        options.model,
        replies,
        lambda count: display.report_stage("judging", min(1.0, count / len(result.samples))),
    )
    return judge_answers(config, result, judge, options)


def repeated_options(context: click.Context) -> list[str]:
    """Return the given options that a command needs again to continue, quoted for a shell."""
    words = []
    for option in context.command.params:
        name = option.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if name not in context.params or name in _NOT_REPEATED:  # the former: verbosity
            continue
        value = context.params[name]
        words.append(option.opts[-1])
        if value is not True:
            words.append(shlex.quote(str(value)))
    return words


def _answers_file(location: StudyLocation, options: EvaluationOptions) -> Path:
    """Return the default file of the answers, beside the study file."""
    if location.file is None:
        raise ConfigError("No file for the answers is given.", hint="Use --out FILE.")
    words = [options.model, options.split, "letters" if options.letters else "written"]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-")
    return location.file.with_suffix(".answers") / f"{name}.jsonl"
