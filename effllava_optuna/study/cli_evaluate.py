"""The verb that evaluates: ``evaluate``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from effllava_optuna.errors import SpecError
from effllava_optuna.study.screen import Screen, console, quiet_transformers
from effllava_optuna.study.target import Format, Target, ours, print_json, targeted, with_format


@click.command()
@targeted
@click.option(
    "--model",
    default="chosen",
    show_default=True,
    help="chosen: by the study. dense: the model that it prunes. The number of a trial, a "
    "directory, or a hub id.",
)
@click.option(
    "--split",
    type=click.Choice(("proxy", "validation", "test", "full")),
    default="test",
    show_default=True,
    help="Of the study; full: all rows of the data that test is drawn from.",
)
@click.option(
    "--letters",
    is_flag=True,
    help="Compare the options of closed questions in one forward pass, as the search does; if "
    "not, the model writes, and task.harness reads it.",
)
@click.option("--limit", type=click.IntRange(1), help="The first so many samples only.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples at once; else what fits.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File of the answers; what it has is not asked again.",
)
@click.option("--overwrite", is_flag=True, help="Ask everything again.")
@click.option(
    "--submit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the answers here, too, as the benchmark's own script or server reads them.",
)
@click.option(
    "--judge",
    metavar="MODEL",
    help="Let this model grade MM-Vet or LLaVA-Bench, behind an OpenAI-compatible server.",
)
@click.option("--judge-url", default="https://api.openai.com/v1", show_default=True)
@click.option(
    "--judge-key",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Environment variable that has the key; nothing: no key is sent.",
)
@click.option(
    "--judge-prompt",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The official mm-vet_evaluator.py or rule.json, or a text; ours, if not given, gives "
    "scores that cannot be compared with published ones.",
)
@with_format
@ours
def evaluate(
    target: Target,
    model: str,
    out: Path | None,
    *,
    overwrite: bool,
    form: Format,
    submit: Path | None,
    judge: str | None,
    judge_url: str,
    judge_key: str,
    judge_prompt: Path | None,
    **exam: Any,
) -> None:
    """Let a model answer the task of a study, and grade what it says.

    Of a study that has not begun, only dense models, directories and hub ids can be evaluated.
    The answers, and a judge's replies, are kept: the same command goes on where it was stopped.

    \b
    Example:
      python -m effllava_optuna.study evaluate studies/quickstart.toml --model quickstart.pruned
    """
    from effllava_optuna.study import storage

    spec = target.spec or storage.spec_of(target.study())
    quiet_transformers()
    from effllava_optuna.report import evaluation
    from effllava_optuna.study import judging
    from effllava_optuna.study.evaluation import Exam
    from effllava_optuna.study.evaluation import evaluate as run
    from effllava_optuna.tasks.chat import OpenAIJudge

    place = out or _place(target, model, exam)
    server = None
    if submit is not None:
        judging.check_task(spec, "--submit", judging.SUBMITTED)
        if exam["letters"]:
            raise SpecError(
                "--submit and --letters are both given, but where options are compared nothing "
                "is written.",
                hint="Leave out --letters.",
            )
    if judge is not None:
        judging.check_task(spec, "--judge", judging.JUDGED)
        server = OpenAIJudge(judge, judge_url, judge_key or None, **_OFFICIAL[spec.task.name])
    with Screen(
        target.again,
        " ".join(["evaluate", *again(click.get_current_context())]),
        aside=form != "table",
    ) as screen:
        done = run(target, spec, model, Exam(**exam), place, screen.say, overwrite=overwrite)
        document = done.document | {"judged": None}
        if submit is not None:
            judging.submit(spec, done, submit)
        if server is not None and judge is not None:
            asked = judging.CachedJudge(
                server,
                judge,
                place.with_suffix(".replies.jsonl"),
                lambda replies: screen.say("judging", min(1.0, replies / len(done.samples))),
            )
            document["judged"] = judging.told(
                judging.judged(spec, done, asked, judge, judge_prompt)
            )
    if form != "table":
        print_json(document)
        return
    console().print(evaluation(document))


def again(context: click.Context) -> list[str]:
    """Give the options of a command as they must be given for it to go on."""
    words = []
    for option in context.command.params:
        name = option.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if name not in context.params:  # how loud it is
            continue
        if name in ("file", "url", "name", "overwrite"):  # which study; and not from the start
            continue
        value = context.params[name]
        words += [option.opts[-1], *([] if value is True else [shlex.quote(str(value))])]
    return words


# What the official scripts ask of a judge; see `OpenAIJudge`.
_OFFICIAL: dict[str, dict[str, Any]] = {
    "mmvet": {"temperature": 0.0, "max_tokens": 3},
    "llava-bench": {"temperature": 0.2, "max_tokens": 1024},
}


def _place(target: Target, model: str, exam: dict[str, Any]) -> Path:
    if target.file is None:
        raise SpecError("There is no file to keep the answers in.", hint="Give --out FILE.")
    words = [model, exam["split"], "letters" if exam["letters"] else "written"]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-")
    return target.file.with_suffix(".answers") / f"{name}.jsonl"
