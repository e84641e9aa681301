"""A study file: TOML, read into one validated, frozen value."""

from __future__ import annotations

import difflib
import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from effllava_optuna.errors import SpecError

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1)]
_LONGEST = 120  # signs of a value in a message
ROWS = ("scienceqa", "vizwiz", "mmvet", "llava-bench", "qa")
TASKS = ("digits", *ROWS)
SAMPLERS = ("nsga2", "cma", "sep-cma", "stock-nsga2", "tpe", "random")
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:function
Function = Annotated[str, Field(pattern=rf"^{_FUNCTION}$")]
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StudyTable(_Table):
    """``[study]``: its name, its seed, and where it lives."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\s][^\n]*$")]
    seed: Seed = 0
    storage: str | None = None
    artifacts: str | None = None


class ModelTable(_Table):
    """``[model]``: the checkpoint, and what it runs on.

    ``threads`` is how many threads an operation takes on a CPU; ``auto`` is one for a model of
    fewer than 20 million parameters, and torch's own number for a larger one.
    """

    path: Annotated[str, Field(min_length=1)]
    device: str = "auto"
    threads: Count | Literal["auto"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class SplitsTable(_Table):
    """``[task.splits]``: which split of the data each role is drawn from."""

    proxy: Text | None = None
    validation: Text | None = None
    test: Text | None = None


class TaskTable(_Table):
    """``[task]``: the samples, in three splits.

    ``name`` is ``digits``; ``scienceqa``, ``vizwiz``, ``mmvet`` or ``llava-bench``; ``qa`` for the
    user's own rows; or ``module:function``, which is called with ``seed``, ``proxy``,
    ``validation`` and ``test`` and returns a `effllava_optuna.tasks.Task`. The three numbers are
    the most samples of each role.

    Of benchmarks and own rows: ``data`` is a file, a directory beside the study file, or a hub id
    (where left out: the benchmark's own) and ``config`` its configuration there; ``columns`` says
    where a column of the schema has another name; ``harness`` whose rules grade answers,
    ``instruction`` what questions end in, ``system`` the system's turn, ``new_tokens`` how long
    answers may be. In the search, open questions are measured by ``measure``: the ``likelihood``
    of a right answer, or the rule's grade of what a ``generation`` says.
    """

    name: Annotated[str, Field(pattern=rf"^({'|'.join(TASKS)}|{_FUNCTION})$")]
    seed: Seed | None = None
    proxy: Annotated[int, Field(ge=8, le=4096)] = 64
    validation: Count = 500
    test: Count = 2000
    data: Text | None = None
    config: Text | None = None
    splits: SplitsTable = SplitsTable()
    columns: dict[str, str] = {}
    harness: Text | None = None
    instruction: str | None = None
    system: str = ""
    new_tokens: Count | None = None
    measure: Literal["likelihood", "generation"] = "likelihood"

    @model_validator(mode="after")
    def _has_rows(self) -> TaskTable:
        if self.name not in ROWS:
            for key in (
                "data", "config", "splits", "columns", "harness", "instruction", "system",
                "new_tokens",
            ):  # fmt: skip
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"task.{key} is given, but task {self.name!r} does not read rows; use "
                        f"one of {', '.join(ROWS)}"
                    )
        return self


class PruningTable(_Table):
    """``[pruning]``: what is cut, which units go first, how the rest is fitted, which widths.

    ``towers`` are those whose heads and channels are cut; with ``depth`` whole blocks of the
    decoder may go, too. ``mode`` is ``per-layer``, or ``vllm-safe``: only what a stock
    configuration can say, one width a tower and kind (and depth), so that the portable export
    needs no padding. ``tokens`` says what a token weighs in the moments that wanda, flap, obs and
    the refits use. The fits, and what it takes to make them, stay under ``table_gb``.
    """

    towers: Annotated[tuple[str, ...], Field(min_length=1)] = ("language",)
    depth: bool = False
    mode: Literal["per-layer", "vllm-safe"] = "per-layer"
    order: Literal["magnitude", "wanda", "flap", "taylor", "taylor-loss", "obs", "random"] = "obs"
    refit: Literal["none", "bias", "least-squares"] = "least-squares"
    tokens: Literal["gradient", "all", "text"] = "gradient"
    folds: Annotated[int, Field(ge=2, le=8)] = 2
    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = SHARES
    multiple_of: Count = 1
    table_gb: Annotated[float, Field(gt=0)] = 8.0


class QualityTable(_Table):
    """``[quality]``: ``accuracy - eta * risk``.

    ``term``, as ``module:function``, is called with a policy and the model, and gives what is
    subtracted besides, in accuracy. It must be the same whenever it is asked.
    """

    accuracy: Literal["expected", "hard"] = "expected"
    eta: Annotated[float, Field(ge=0)] = 0.02
    risk: Literal["paper", "refit"] = "paper"
    term: Function | None = None


class LatencyTable_(_Table):
    """``[latency]``: the workload that is timed, and how well.

    Everything is run ``repeats`` times at least; then until timings are known to ``precision``
    (half a 95 % interval, as a share), or ``seconds`` are over. ``checks`` random policies are
    run whole, to say by how much sums of the table are off. The finalists are timed in the same
    way. Tables are kept in the file ``table``, if one is named, and used again where model,
    machine, versions and this table of the spec are the same.
    """

    batch: Annotated[int, Field(ge=1, le=4096)] = 64
    new_tokens: Count = 1
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    repeats: Count = 5
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.01
    seconds: Annotated[float, Field(ge=0)] = 30.0
    checks: Annotated[int, Field(ge=1, le=1000)] = 20
    table: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00\n]+$")] | None = (
        None
    )


class SearchTable(_Table):
    """``[search]``: how many policies are tried, within which budget, and by whom.

    ``nsga2`` and ``cma`` search for a front; ``sep-cma`` for the best quality at ``speedup``;
    ``stock-nsga2``, ``tpe`` and ``random`` are Optuna's own, to compare with; ``module:function``
    is called with ``seed`` and returns any sampler of Optuna's kind. The budget is either
    ``kept_share`` (of the prunable weights) or ``speedup`` (against the dense model, as the
    latency table predicts it). More ``failures`` than that share of the trials stop a study; a
    trial fails after ``timeout`` seconds.
    """

    sampler: Annotated[str, Field(pattern=rf"^({'|'.join(SAMPLERS)}|{_FUNCTION})$")] = "nsga2"
    epochs: Count = 3
    generations: Count = 4
    population: Annotated[int, Field(ge=4, le=100_000)] = 20
    kept_share: Share | None = None
    speedup: Annotated[float, Field(ge=1)] | None = None
    kernels: Annotated[int, Field(ge=2, le=16)] = 3
    failures: Share = 0.25
    timeout: Annotated[float, Field(gt=0)] | None = None
    margin: Annotated[int, Field(ge=0, le=1_000_000)] = 2

    @property
    def trials(self) -> int:
        """Count the trials of the whole study."""
        return self.epochs * self.generations * self.population


class ProjectorTable(_Table):
    """``[projector]``: its training between epochs.

    It is trained for the best ``elites`` of an epoch, for as many of ``steps`` as samples that
    are held out approve (in turn each of ``parts``, looked at ``every`` so many steps), on the
    answer loss and ``kl`` times the divergence from the dense model. ``train``, as
    ``module:function``, does it instead of `effllava_optuna.hooks.train_projector`, is called
    with the same and returns the same.
    """

    elites: Count = 4
    parts: Annotated[int, Field(ge=2, le=16)] = 4
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 16
    every: Count = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    kl: Annotated[float, Field(ge=0)] = 1.0
    train: Function | None = None


class ReportTable(_Table):
    """``[report]``: what is measured on samples that the search never saw."""

    finalists: Annotated[int, Field(ge=1, le=64)] = 8


class ExportTable(_Table):
    """``[export]``: where ``run`` writes the chosen checkpoint; nothing: it does not.

    ``sequential`` fits its output matrices again, each to the layers that are pruned before it.
    ``form`` is ``native``, ``portable`` (one width a tower, for engines that load the base model
    only) or, left out, what fits ``pruning.mode``.
    """

    directory: str | None = None
    form: Literal["native", "portable"] | None = None
    sequential: bool = False


class StudySpec(_Table):
    """Everything that a study is told.

    Example:
        >>> spec = StudySpec.of(
        ...     {
        ...         "study": {"name": "tiny"},
        ...         "model": {"path": "digits-vlm"},
        ...         "task": {"name": "digits"},
        ...     }
        ... )
        >>> spec.search.trials
        240
    """

    study: StudyTable
    model: ModelTable
    task: TaskTable
    pruning: PruningTable = PruningTable()
    quality: QualityTable = QualityTable()
    latency: LatencyTable_ = LatencyTable_()
    search: SearchTable = SearchTable()
    projector: ProjectorTable = ProjectorTable()
    report: ReportTable = ReportTable()
    export: ExportTable = ExportTable()

    @model_validator(mode="after")
    def _fits_together(self) -> StudySpec:
        if self.projector.parts % self.pruning.folds:
            raise ValueError(
                f"projector.parts is {self.projector.parts}; use a multiple of pruning.folds "
                f"({self.pruning.folds})"
            )
        if "projector" in self.pruning.towers and self.projector.steps:
            raise ValueError(
                "pruning.towers cuts the projector, which is trained, too; set projector.steps = 0"
            )
        if self.pruning.refit == "bias" and self.form == "portable":
            raise ValueError(
                "pruning.refit is 'bias', which gives layers a bias that stock models do not "
                "have; use 'least-squares' with a portable export or pruning.mode = 'vllm-safe'"
            )
        if self.search.kept_share is not None and self.search.speedup is not None:
            raise ValueError(
                "search.kept_share and search.speedup are both given; a study has one budget"
            )
        if self.search.sampler == "sep-cma" and self.search.speedup is None:
            raise ValueError("search.sampler is 'sep-cma', which needs search.speedup")
        if self.search.sampler in ("cma", "sep-cma") and self.search.population < 5:
            raise ValueError("CMA-ES needs a search.population of 5 at least")
        if max(self.pruning.shares) != 1.0:
            raise ValueError("pruning.shares must contain 1.0, the dense width")
        return self

    @property
    def form(self) -> Literal["native", "portable"]:
        """Give the form in which the chosen checkpoint leaves."""
        fitting: Literal["native", "portable"] = (
            "portable" if self.pruning.mode == "vllm-safe" else "native"
        )
        return self.export.form or fitting

    @staticmethod
    def of(document: dict[str, Any], *, place: str = "study") -> StudySpec:
        """Validate a document.

        Raises:
            SpecError: With the place, the key, the value and the cure, for the first fault.
        """
        try:
            return StudySpec.model_validate_json(json.dumps(document, default=str))
        except ValidationError as error:
            raise _explained(error, place) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(f"{place}: {error}.", hint="Use TOML strings and numbers.") from error

    def document(self) -> dict[str, Any]:
        """Give the spec as JSON."""
        return self.model_dump(mode="json")

    @property
    def task_seed(self) -> int:
        """Give the seed that draws the samples: the task's own, or the study's."""
        return self.study.seed if self.task.seed is None else self.task.seed


def read_spec(path: str | Path, changes: tuple[str, ...] = ()) -> StudySpec:
    """Read a study file.

    Args:
        path: A TOML file.
        changes: ``table.key=value`` each, the value in TOML; they override the file.

    Raises:
        SpecError: The file is not there, is no TOML, or says no valid study.
    """
    place = Path(path)
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"{path}: there is no such file.", hint="Give a study file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}.", hint="Give a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: is no TOML: {error}.", hint="Mend that line.") from error
    except (ValueError, RecursionError) as error:  # a path with a null byte, a number too long
        raise SpecError(f"{path}: cannot be read: {error}.", hint="Give a TOML file.") from error
    for change in changes:
        _apply(document, change)
    document.setdefault("study", {})
    if isinstance(document["study"], dict):
        document["study"].setdefault("name", place.stem)
    latency = document.get("latency")
    if isinstance(latency, dict) and isinstance(latency.get("table"), str) and latency["table"]:
        latency["table"] = str(place.parent.resolve() / latency["table"])
    task = document.get("task")
    if isinstance(task, dict) and isinstance(task.get("data"), str):
        beside = place.parent / task["data"]
        with suppress(OSError):  # a name that is too long names no file
            if beside.exists():  # where the study file is, whatever directory we are in
                task["data"] = str(beside.resolve())
    return StudySpec.of(document, place=str(path))


def _apply(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    table, dot, leaf = key.strip().partition(".")
    if not (equals and dot and leaf):
        raise SpecError(f"--set {change!r} is not understood.", hint="Use table.key=value.")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number that is too long
        value = text.strip()
    if not isinstance(document.setdefault(table, {}), dict):
        raise SpecError(f"--set {change!r}: {table} is no table.", hint="Use table.key=value.")
    document[table][leaf] = value


def _explained(error: ValidationError, place: str) -> SpecError:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    value = _short(fault.get("input"))
    more = f" ({error.error_count() - 1} more faults.)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        known = _known(fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        cure = f"Did you mean {close[0]}?" if close else f"Known keys: {', '.join(sorted(known))}."
        return SpecError(f"{place}: {key} = {value} is no known key.{more}", hint=cure)
    if fault["type"] == "missing":
        return SpecError(f"{place}: {key} is missing.{more}", hint="Add it.")
    if fault["type"] == "value_error":
        return SpecError(f"{place}: {fault['ctx']['error']}.{more}", hint="Mend the study file.")
    message = fault["msg"]
    if not key:
        return SpecError(f"{place}: {message}.", hint="Use text in Unicode.")
    return SpecError(f"{place}: {key} = {value}: {message}.{more}", hint="Change the value.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _known(path: tuple[int | str, ...]) -> list[str]:
    model: Any = StudySpec
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
