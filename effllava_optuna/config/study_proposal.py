"""Propose a study for a model and a task, from the model's configuration alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.checkpoint_format import EMBEDDED, check_weights
from effllava_optuna.config.commented_toml import format_study_file, parse_study_file
from effllava_optuna.config.cost_estimate import (
    ANSWER_TOKENS,
    H200,
    Hardware,
    ModelSize,
    cpu,
    describe_cost,
    estimate_cost,
    model_size,
)
from effllava_optuna.config.schema import ROWS, TASKS, WIDTH_RATIOS, StudyConfig
from effllava_optuna.errors import ConfigError, ModelError, shorten
from effllava_optuna.files import expand_home
from effllava_optuna.policy import Kind
from effllava_optuna.tasks import DataTask, Split, TaskOptions
from effllava_optuna.tasks.data.split_sizes import sizes_for_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Component
    from effllava_optuna.surgery import CheckpointOutline
    from effllava_optuna.tasks import Sample

_LARGE_MODEL = 1e9  # parameters, from which a model needs a GPU
_MEDIUM_MODEL = 2e7  # parameters, from which operations use all threads, and widths are coarse
_TEXT_TOKENS = 100  # of a question with its answer, if its rows are not at hand
_TEMPLATE_TOKENS, _TOKEN_CHARACTERS = 20, 4  # guesses, for English text
_CPU_HOURS = 0.5  # of a study on a CPU, if the smallest of the `_EFFORTS` allows
_MLP_STEPS = (256, 128, 64, 32, 16, 8)  # multiples of MLP widths that suit matrix kernels
_MIN_MLP_STEPS = 32  # number of allowed widths of an MLP
_KEEP_RATIOS = {"digits-vlm": 0.225, "drawn-vlm": 0.6}  # measured on the embedded models
_DEFAULT_KEEP_RATIO = 0.55
_COARSE_WIDTH_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of large tables
_MIN_TABLE_GB = 0.8

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Effort:
    """How much a study measures.

    Attributes:
        samples: Samples of proxy, validation and test.
        search: Epochs, generations and population; None: by the number of components.
        finalists: Policies that are measured on validation and test; None: likewise.
        projector: Parts that cross-validate the training of the projector, its steps, and the
            steps between two scores; None: the defaults.
    """

    samples: tuple[int, int, int] = (64, 500, 2000)
    search: tuple[int, int, int] | None = None
    finalists: int | None = None
    projector: tuple[int, int, int] | None = None


_EFFORTS = (
    _Effort(),
    _Effort((64, 200, 400), (3, 3, 16), 5),
    _Effort((48, 100, 200), (2, 3, 12), 3, (2, 8, 4)),
    _Effort((32, 60, 120), (2, 2, 12), 3, (2, 4, 2)),
)


@dataclass(frozen=True, slots=True)
class _LocalRows:
    """What is known of local data.

    Attributes:
        samples: The rows that the proxy is drawn from; empty: not local, or of no use.
        unlabelled: Number of rows of all splits without a correct answer.
        count: Number of rows of all splits.
        note: What the user must add to the study file; empty: nothing.
    """

    samples: Sequence[Sample] = ()
    unlabelled: int = 0
    count: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class StudyRequest:
    """The model, task and budget of a proposed study.

    Attributes:
        model: A directory, a hub id, or a model of the package.
        task: Task, as ``task.name``.
        out: Path of the study file.
        data: Data, as ``task.data``, but relative to the current directory.
        budget: One of `BUDGETS` with its value; empty: a default share of the weights.
    """

    model: str
    task: str
    out: Path
    data: str | None = None
    budget: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProposedStudy:
    """A proposed study file.

    Attributes:
        text: Text of the file.
        config: Its content.
        summary: Lines about the model, the search and its estimated cost.
    """

    text: str
    config: StudyConfig
    summary: tuple[str, ...]


def propose_study(request: StudyRequest) -> ProposedStudy:
    """Propose a study file for a model, from the model's configuration.

    Raises:
        ModelError: There is no such model, or it takes no pictures.
        ConfigError: The request is not that of a valid study.
        TaskError: Local rows cannot be read or used, or are too few.
    """
    _check_request(request)
    check_weights(request.model)
    from effllava_optuna.surgery import outline_checkpoint

    outline = outline_checkpoint(request.model)
    if not outline.takes_images and request.task in TASKS and request.task != "qa":
        raise ModelError(
            f"{request.model!r} takes no pictures, but task {request.task!r} has pictures.",
            hint="Use a vision-language model, or --task qa with rows of text.",
        )
    hardware = _hardware(outline)
    rows = _read_rows(request)
    written = any(sample.is_open_ended for sample in rows.samples)
    tokens = _text_tokens(request, rows.samples)
    size = model_size(outline, tokens, ANSWER_TOKENS if written else 0)
    for effort in _EFFORTS:
        tables = _tables(request, outline, rows, size, hardware, effort)
        cost = estimate_cost(_config(request, tables), size, hardware)
        tables["pruning"]["table_gb"] = _round_table_gb(cost.table_gb)
        config = _config(request, tables)
        cost = estimate_cost(config, size, hardware)
        if hardware.is_gpu or cost.hours <= _CPU_HOURS:
            break
    summary = _summary(request, outline, config, rows, describe_cost(cost, hardware))
    text = format_study_file(summary, tables)
    if StudyConfig.of(parse_study_file(text), source=str(request.out)) != config:
        raise ConfigError(
            f"{request.model!r} cannot be written into a study file.",
            hint="Use a name without control characters.",
        )
    return ProposedStudy(text, config, summary)


def _check_request(request: StudyRequest) -> None:
    """Refuse a request that is not valid for any model."""
    if request.task == "qa" and request.data is None:
        raise ConfigError(
            "Task 'qa' reads your own rows.", hint="Use --data FILE or --data DIRECTORY."
        )
    if request.data is not None and request.task not in ROWS:
        raise ConfigError(
            f"--data is given, but task {request.task!r} does not read rows.",
            hint=f"Use one of {', '.join(ROWS)}.",
        )
    for name, value in request.budget.items():
        if not math.isfinite(value):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}.", hint="Use a finite number."
            )
    _config(request, {"search": _budget(request)})


def _config(request: StudyRequest, tables: Tables) -> StudyConfig:
    document: Tables = {
        "study": {"name": request.out.stem},
        "model": {"path": request.model},
        "task": {"name": request.task},
    }
    for name, table in tables.items():
        document[name] = document.get(name, {}) | table
    return StudyConfig.of(document, source="init")


def _budget(request: StudyRequest) -> dict[str, float]:
    if len(request.budget) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in request.budget)
        raise ConfigError(f"{names} are given.", hint="Use one of them: one budget.")
    if request.budget:
        return dict(request.budget)
    return {"keep_ratio": _KEEP_RATIOS.get(request.model, _DEFAULT_KEEP_RATIO)}


def _hardware(outline: CheckpointOutline) -> Hardware:
    """Return a GPU if there is one or the model needs one, or else this CPU."""
    import torch

    if torch.cuda.is_available() or outline.parameters >= _LARGE_MODEL:
        return H200
    if outline.parameters < _MEDIUM_MODEL:
        return cpu(1)
    return cpu(torch.get_num_threads(), large=True)


def _read_rows(request: StudyRequest) -> _LocalRows:
    """Read local data, but no images; the rows of a hub id are not downloaded.

    Raises:
        TaskError: The rows cannot be read or used, whatever columns a study file names.
    """
    if request.data is None:
        return _LocalRows()
    options = TaskOptions(labels=False)
    task = DataTask(request.task, request.data, options=options, open_images=False)
    if not task.is_local:
        return _LocalRows()
    missing = task.missing_columns
    note = ""
    if missing:
        note = (
            f"{request.data} has no column {shorten(missing[0])}; it has "
            f"{', '.join(map(shorten, task.column_names))}. If one of these is meant, set "
            f"task.columns.{missing[0]} to it in the study file."
        )
    if missing and missing != [task.label]:
        return _LocalRows(note=note)
    task.require_splits()
    unlabelled, count = task.unlabelled_rows
    return _LocalRows(task.all_rows(Split.PROXY), unlabelled, count, note)


def _text_tokens(request: StudyRequest, samples: Sequence[Sample]) -> int:
    """Estimate the mean number of tokens of a question with its answer."""
    if request.task == "digits":
        return 12
    if not samples:
        return _TEXT_TOKENS
    characters = sum(len(row.system + row.question + row.correct_answer) for row in samples)
    unlabelled = sum(not row.is_labelled for row in samples)
    return _TEMPLATE_TOKENS + round(
        (characters / _TOKEN_CHARACTERS + unlabelled * ANSWER_TOKENS) / len(samples)
    )


def _sizes(rows: _LocalRows, most: tuple[int, int, int], source: str) -> dict[str, int]:
    """Return sizes of the splits, smaller than ``most`` if local rows are few.

    Raises:
        TaskError: There are too few rows.
    """
    if rows.note and not rows.samples:
        return {}  # chosen when the rows are read
    sizes = dict(zip(Split, most, strict=True))
    count = len(rows.samples)
    if 0 < count == rows.count:  # known, and all splits are drawn from the same rows
        sizes = sizes_for_rows(count, sizes, source=source)
    return {str(split): size for split, size in sizes.items()}


def _round_table_gb(table_gb: float) -> float:
    """Return a round limit for compensation tables that need ``table_gb``."""
    return 1.0 if table_gb < _MIN_TABLE_GB else float(math.ceil(1.15 * table_gb))


def _mlp_step(mlp_width: int) -> int:
    """Return the largest suitable divisor of an MLP width that leaves enough allowed widths."""
    suitable = (
        step
        for step in _MLP_STEPS
        if mlp_width % step == 0 and mlp_width // step >= _MIN_MLP_STEPS
    )
    return next(suitable, 1)


def _tables(
    request: StudyRequest,
    outline: CheckpointOutline,
    rows: _LocalRows,
    size: ModelSize,
    hardware: Hardware,
    effort: _Effort,
) -> Tables:
    """Choose the values of the study file; ``pruning.table_gb`` is a placeholder."""
    large = outline.parameters >= _LARGE_MODEL
    coarse = outline.parameters >= _MEDIUM_MODEL
    genes = len(_pruned_components(outline))
    task: dict[str, Any] = {"name": request.task}
    if request.data is not None:
        task["data"] = _relative_path(request.data, request.out)
    task |= _sizes(rows, effort.samples, str(request.data))
    pruning: dict[str, Any] = {
        "width_ratios": list(_COARSE_WIDTH_RATIOS if coarse else WIDTH_RATIOS),
        "multiple_of": _mlp_step(outline.mlp_width),
        "table_gb": 8.0,
    }
    # As many prompts at once as occupy the hardware.
    batch = 8 if large else max(1, min(64, 4096 // size.prompt_tokens))
    if coarse and not hardware.is_gpu:
        batch = 1
    default = (3, 4 if genes <= 40 else 5, 20 if genes <= 20 else 32)
    search = dict(
        zip(("epochs", "generations", "population"), effort.search or default, strict=True)
    )
    finalists = effort.finalists or (5 if genes <= 20 else 8)
    return {
        "model": {
            "path": _relative_path(request.model, request.out),
            "dtype": "bfloat16" if hardware.is_gpu else "auto",
        },
        "task": task,
        "pruning": pruning,
        **({"quality": {"measure": "agreement"}} if rows.unlabelled else {}),
        "latency": {"batch": batch},
        "search": search | _budget(request),
        "projector": _projector(outline, genes, effort),
        "report": {"finalists": finalists},
        "export": {"directory": f"{request.out.stem}.pruned"},
    }


def _projector(outline: CheckpointOutline, genes: int, effort: _Effort) -> dict[str, Any]:
    """Choose how the projector is trained; a model without pictures has none."""
    if not outline.takes_images:
        return {"steps": 0}
    elites = {"elites": 3 if genes <= 20 else 4}
    if effort.projector is None:
        return elites
    return elites | dict(zip(("parts", "steps", "every"), effort.projector, strict=True))


def _pruned_components(outline: CheckpointOutline) -> list[Component]:
    """Return the components that a study prunes by default: those of the decoder, no blocks."""
    return [
        component
        for component in outline.parts.structure.components
        if component.tower == "language" and component.kind is not Kind.BLOCK
    ]


def _relative_path(data: str, out: Path) -> str:
    """Return a path relative to the study file; the name of a model is no path."""
    path = expand_home(data)
    if not path.exists() or ("/" not in data and (EMBEDDED / data).exists()):
        return data
    path, directory = path.resolve(), out.absolute().parent.resolve()
    return f"./{path.relative_to(directory)}" if path.is_relative_to(directory) else str(path)


def _summary(
    request: StudyRequest,
    outline: CheckpointOutline,
    config: StudyConfig,
    rows: _LocalRows,
    cost: str,
) -> tuple[str, ...]:
    components = _pruned_components(outline)
    prunable = sum(component.width * component.unit_params for component in components)
    first = next((f", the first at {s.place}" for s in rows.samples if not s.is_labelled), "")
    labels = (
        f"{rows.unlabelled:,} of {rows.count:,} rows have no answer{first}: the quality is the "
        "agreement with the answers of the dense model."
    )
    return (
        f"{request.model} on {request.task}: {outline.parameters:,} parameters; the search can "
        f"prune {prunable:,} of them, in {len(components)} components of "
        f"{outline.decoder_layers} blocks.",
        f"{config.search.trials} policies; needs {cost}: an estimate by a cost model, not "
        "measured.",
        *([labels] if rows.unlabelled else []),
        *([rows.note] if rows.note else []),
    )
