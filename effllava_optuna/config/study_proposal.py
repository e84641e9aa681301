"""Propose a study for a model and a task, from the model's configuration alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.checkpoint_format import EMBEDDED
from effllava_optuna.config.commented_toml import format_study_file, parse_study_file
from effllava_optuna.config.cost_estimate import (
    H200,
    Hardware,
    ModelSize,
    cpu,
    describe_cost,
    estimate_cost,
)
from effllava_optuna.config.schema import ROWS, WIDTH_RATIOS, StudyConfig
from effllava_optuna.errors import ConfigError, ModelError, TaskError
from effllava_optuna.files import expand_home
from effllava_optuna.policy import Kind
from effllava_optuna.tasks import DataTask

if TYPE_CHECKING:
    from effllava_optuna.policy import Component
    from effllava_optuna.surgery import CheckpointOutline

_LARGE_MODEL = 1e9  # parameters, from which a model needs a GPU
_THREADED_MODEL = 2e7  # parameters, from which an operation uses all threads
_MLP_STEPS = (256, 128, 64, 32, 16, 8)  # multiples of MLP widths that suit matrix kernels
_MIN_MLP_STEPS = 32  # number of allowed widths of an MLP
_KEEP_RATIOS = {"digits-vlm": 0.225, "drawn-vlm": 0.6}  # measured on the embedded models
_DEFAULT_KEEP_RATIO = 0.55
_COARSE_WIDTH_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of large tables
_MIN_TABLE_GB = 0.8

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class StudyRequest:
    """The model, task and budget of a proposed study.

    Attributes:
        model: A directory, a hub id, or a model of the package.
        task: Task, as ``task.name``.
        out: Path of the study file.
        data: Data, as ``task.data``, but relative to the current directory.
        keep_ratio: Budget; None: a default, unless ``speedup`` is set.
        speedup: Budget.
    """

    model: str
    task: str
    out: Path
    data: str | None = None
    keep_ratio: float | None = None
    speedup: float | None = None


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
    """
    _check_request(request)
    from effllava_optuna.surgery import outline_checkpoint

    outline = outline_checkpoint(request.model)
    if not outline.takes_images:
        raise ModelError(
            f"{request.model!r} takes no pictures, but the tasks have pictures.",
            hint="Use a vision-language model, such as a LLaVA checkpoint, or digits-vlm.",
        )
    hardware = _hardware(outline)
    size = _model_size(outline, request.task)
    tables = _tables(request, outline, size, hardware)
    cost = estimate_cost(_config(request, tables), size, hardware)
    tables["pruning"]["table_gb"] = _round_table_gb(cost.table_gb)
    config = _config(request, tables)
    cost = estimate_cost(config, size, hardware)
    summary = _summary(request, outline, config, describe_cost(cost, hardware))
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
    for name in ("keep_ratio", "speedup"):
        value = getattr(request, name)
        if value is not None and not math.isfinite(value):
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
    if request.keep_ratio is not None and request.speedup is not None:
        raise ConfigError(
            "--keep-ratio and --speedup are both given.", hint="Use one of them: one budget."
        )
    if request.speedup is not None:
        return {"speedup": request.speedup}
    default = _KEEP_RATIOS.get(request.model, _DEFAULT_KEEP_RATIO)
    return {"keep_ratio": default if request.keep_ratio is None else request.keep_ratio}


def _hardware(outline: CheckpointOutline) -> Hardware:
    """Return a GPU if there is one or the model needs one, or else this CPU."""
    import torch

    if torch.cuda.is_available() or outline.parameters >= _LARGE_MODEL:
        return H200
    return cpu(1 if outline.parameters < _THREADED_MODEL else torch.get_num_threads())


def _model_size(outline: CheckpointOutline, task: str) -> ModelSize:
    text_tokens = 12 if task == "digits" else 100
    size = ModelSize(
        layers=outline.decoder_layers,
        hidden_size=outline.hidden_size,
        mlp_width=outline.mlp_width,
        group_ratio=outline.group_ratio,
        other_parameters=0.0,
        prompt_tokens=outline.image_tokens + text_tokens,
        vision_flops=2.0 * outline.vision_parameters * outline.image_patches,
    )
    return replace(size, other_parameters=max(0.0, outline.parameters - size.prunable))


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
    request: StudyRequest, outline: CheckpointOutline, size: ModelSize, hardware: Hardware
) -> Tables:
    """Choose the values of the study file; ``pruning.table_gb`` is a placeholder."""
    large = outline.parameters >= _LARGE_MODEL
    genes = len(_pruned_components(outline))
    task: dict[str, Any] = {"name": request.task}
    if request.data is not None:
        task["data"] = _relative_path(request.data, request.out)
    task |= {"proxy": 64, "validation": 500, "test": 2000}
    quality = {"measure": "agreement"} if _count_unlabelled(request)[0] else {}
    pruning: dict[str, Any] = {
        "width_ratios": list(_COARSE_WIDTH_RATIOS if large else WIDTH_RATIOS),
        "multiple_of": _mlp_step(outline.mlp_width),
        "table_gb": 8.0,
    }
    # As many prompts at once as occupy the hardware.
    batch = 8 if large else max(1, min(64, 4096 // size.prompt_tokens))
    search = {
        "epochs": 3,
        "generations": 4 if genes <= 40 else 5,
        "population": 20 if genes <= 20 else 32,
    }
    return {
        "model": {
            "path": _relative_path(request.model, request.out),
            "dtype": "bfloat16" if hardware is H200 else "auto",
        },
        "task": task,
        "pruning": pruning,
        **({"quality": quality} if quality else {}),
        "latency": {"batch": batch},
        "search": search | _budget(request),
        "projector": {"elites": 3 if genes <= 20 else 4},
        "report": {"finalists": 5 if genes <= 20 else 8},
        "export": {"directory": f"{request.out.stem}.pruned"},
    }


def _count_unlabelled(request: StudyRequest) -> tuple[int, int]:
    """Count the rows of local data without a correct answer, and all rows; (0, 0): not known."""
    if request.data is None or not expand_home(request.data).exists():
        return 0, 0  # the rows of a hub id are not downloaded for a proposal
    try:
        return DataTask(request.task, request.data).unlabelled_rows
    except TaskError:  # `check` names what is wrong with the data
        return 0, 0


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
    request: StudyRequest, outline: CheckpointOutline, config: StudyConfig, cost: str
) -> tuple[str, ...]:
    components = _pruned_components(outline)
    prunable = sum(component.width * component.unit_params for component in components)
    unlabelled, rows = _count_unlabelled(request)
    labels = (
        f"{unlabelled:,} of {rows:,} rows have no answer: the quality is the agreement with the "
        "answers of the dense model."
    )
    return (
        f"{request.model} on {request.task}: {outline.parameters:,} parameters; the search can "
        f"prune {prunable:,} of them, in {len(components)} components (one gene each) of "
        f"{outline.decoder_layers} blocks.",
        f"{config.search.trials} policies; needs {cost}: an estimate by a cost model, not "
        "measured.",
        *([labels] if unlabelled else []),
    )
