"""Define the study file: one frozen, validated class for each of its tables."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from effllava_optuna.config.combinations import check_combinations
from effllava_optuna.config.validation_messages import config_error
from effllava_optuna.errors import ConfigError
from effllava_optuna.tasks.data.split_sizes import (
    DEFAULT_SIZES,
    FEWEST_PROXY,
    complete_sizes,
)
from effllava_optuna.tasks.sample import Split

Ratio = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1)]
ROWS = ("scienceqa", "vizwiz", "mmvet", "llava-bench", "qa")
TASKS = ("digits", *ROWS)
SAMPLERS = ("nsga2", "cma", "sep-cma", "stock-nsga2", "tpe", "random", "allocation", "spdy")
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:function
Function = Annotated[str, Field(pattern=rf"^{_FUNCTION}$")]
WIDTH_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_KEYS_OF_ROWS = ("data", "config", "splits", "columns", "harness", "instruction", "system",
                 "new_tokens")  # fmt: skip


def is_task_name(text: str) -> bool:
    """Return whether a text can be ``task.name``: a task of the package, or a function."""
    return text in TASKS or re.fullmatch(_FUNCTION, text) is not None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StudySettings(_Settings):
    """``[study]``: name, seed and storage of the study.

    Without ``storage`` the study is stored in an SQLite database beside the study file; without
    ``artifacts`` its tensors are stored in a directory beside the database. ``modules`` is the
    directory that functions (``module:function``) are imported from, by default that of the study
    file. All paths in a study file are relative to its directory, those in ``sqlite:///`` and
    ``journal:///`` URLs, too.
    """

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\s][^\n]*$")]
    seed: Seed = 0
    storage: str | None = None
    artifacts: str | None = None
    modules: Text | None = None


class ModelSettings(_Settings):
    """``[model]``: the checkpoint, and the device it runs on.

    ``threads`` is the number of threads of an operation on a CPU. ``auto`` means one thread for a
    model of fewer than 20 million parameters, and torch's default for a larger model.
    """

    path: Annotated[str, Field(min_length=1)]
    device: str = "auto"
    threads: Count | Literal["auto"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class SplitsSettings(_Settings):
    """``[task.splits]``: the split of the data that each role is drawn from."""

    proxy: Text | None = None
    validation: Text | None = None
    test: Text | None = None


class TaskSettings(_Settings):
    """``[task]``: the samples, in three splits.

    ``name`` is ``digits``; a benchmark (``scienceqa``, ``vizwiz``, ``mmvet`` or ``llava-bench``);
    ``qa`` for your own rows; or ``module:function``, a function that is called with ``seed``,
    ``proxy``, ``validation`` and ``test`` and returns a `effllava_optuna.tasks.Task`. ``proxy``,
    ``validation`` and ``test`` are the maximum numbers of samples: by default 64, 500 and 2000, or
    with fewer rows in one file half of them, a quarter and a quarter.

    The following keys apply to benchmarks and to your own rows. ``data`` is a file or directory,
    relative to the study file, or a hub id; by default it is the benchmark's own hub id.
    ``config`` is the configuration of the dataset on the hub. ``columns`` maps columns of the
    schema to columns of the data. ``harness`` selects the rules that grade answers,
    ``instruction`` is appended to each question, ``system`` is the system prompt, and
    ``new_tokens`` is the maximum length of an answer. ``measure`` selects how the search scores
    open questions: by the ``likelihood`` of a right answer, or by grading a ``generation``.
    """

    name: Annotated[str, Field(pattern=rf"^({'|'.join(TASKS)}|{_FUNCTION})$")]
    seed: Seed | None = None
    proxy: Annotated[int, Field(ge=FEWEST_PROXY, le=4096)] | None = None
    validation: Count | None = None
    test: Count | None = None
    data: Text | None = None
    config: Text | None = None
    splits: SplitsSettings = SplitsSettings()
    columns: dict[str, str] = {}
    harness: Text | None = None
    instruction: str | None = None
    system: str = ""
    new_tokens: Count | None = None
    measure: Literal["likelihood", "generation"] = "likelihood"

    @model_validator(mode="before")
    @classmethod
    def _set_sizes(cls, values: Any) -> Any:
        """Set the sizes of tasks that do not read rows: they have as many samples as wanted."""
        if not isinstance(values, dict) or values.get("name") in ROWS:
            return values
        return {str(split): size for split, size in DEFAULT_SIZES.items()} | values

    @property
    def sizes(self) -> dict[Split, int]:
        """Return the maximum number of samples of each split, if rows are not few."""
        given = {
            Split.PROXY: self.proxy,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }
        return complete_sizes(given, None)

    @model_validator(mode="after")
    def _check_rows(self) -> TaskSettings:
        if self.name in ROWS:
            return self
        for key in _KEYS_OF_ROWS:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"task.{key} is set, but task {self.name!r} does not read rows; use one of "
                    f"{', '.join(ROWS)}"
                )
        return self


class PruningSettings(_Settings):
    """``[pruning]``: components, importance, compensation and allowed widths.

    The attention heads and MLP channels of ``towers`` are pruned; with ``depth``, whole blocks of
    the decoder can be removed, too. ``mode`` is ``per-layer``, or ``vllm-safe``: one width for
    each tower and kind (and depth), the nearest to a width ratio that a stock configuration can
    express, so that the portable export needs no padding. ``importance`` is the criterion that
    ranks units, ``compensation`` the way in which output matrices are fitted again. ``tokens``
    selects how tokens are weighted in the activation statistics of wanda, flap, obs and the
    compensation tables. ``width_ratios`` are the widths that are timed and fitted, relative to the
    dense width. ``visual_tokens`` are the shares of the image tokens that a policy may read, all
    of them among these, and ``token_selection`` is how the others are left out. With
    ``in_context``, after each epoch but the last the least-squares tables are fitted again, on the
    activations of the epoch's best policy as well as those of the dense model; the next epoch has
    them if the cross-fitted loss of the elites is lower with them. The compensation tables and
    their computation use at most ``table_gb`` gigabytes.
    """

    towers: Annotated[tuple[str, ...], Field(min_length=1)] = ("language",)
    depth: bool = False
    mode: Literal["per-layer", "vllm-safe"] = "per-layer"
    importance: Literal["magnitude", "wanda", "flap", "taylor", "taylor-loss", "obs", "random"] = (
        "obs"
    )
    compensation: Literal["none", "bias", "least-squares"] = "least-squares"
    tokens: Literal["gradient", "all", "text"] = "gradient"
    in_context: bool = False
    folds: Annotated[int, Field(ge=2, le=8)] = 2
    width_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)] = WIDTH_RATIOS
    visual_tokens: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (1.0,)
    token_selection: Literal["diversity", "pooling", "random"] = "diversity"
    multiple_of: Count = 1
    table_gb: Annotated[float, Field(gt=0)] = 8.0

    @property
    def token_widths(self) -> tuple[int, ...]:
        """Return the percents of the image tokens that a policy may read, ascending, up to 100."""
        return tuple(sorted({max(1, round(100 * share)) for share in (*self.visual_tokens, 1.0)}))

    @property
    def tied(self) -> bool:
        """Return whether all blocks of a tower have the same widths."""
        return self.mode == "vllm-safe"

    @property
    def uses_samples(self) -> bool:
        """Return whether ranking or compensation reads the proxy set."""
        return self.compensation != "none" or self.importance not in ("magnitude", "random")


class QualitySettings(_Settings):
    """``[quality]``: the first objective, ``accuracy - eta * risk``.

    ``measure`` is the ``accuracy`` on labelled samples, or the ``agreement`` with the answers of
    the dense model, which needs no labels. ``accuracy`` is the ``expected`` accuracy (the mean
    probability of the right answer; of an agreement, the mean of ``exp(-d)``, where ``d`` is the
    KL divergence from the dense model, averaged over the tokens of its answer) or the ``hard``
    accuracy (the share of right answers, or of answers of the dense model). ``risk`` uses the
    original weights of the kept units (``paper``) or the compensated weights (``compensated``).
    ``term``, a ``module:function``, is called with a policy and the model, and returns a value
    that is subtracted, too, in units of accuracy. It must return the same value for the same
    policy.
    """

    measure: Literal["accuracy", "agreement"] = "accuracy"
    accuracy: Literal["expected", "hard"] = "expected"
    eta: Annotated[float, Field(ge=0)] = 0.02
    risk: Literal["paper", "compensated"] = "paper"
    term: Function | None = None


class LatencySettings(_Settings):
    """``[latency]``: the workload that is timed, and the precision.

    ``batch`` prompts are processed at once, and ``new_tokens`` tokens generated. Each timing is
    repeated ``repeats`` times, then until it is known to ``precision`` (half of a 95 %
    confidence interval, relative), as far as ``seconds`` allow; everything is timed once in any
    case. ``checks`` random policies are timed as a whole, which shows the error of sums of table
    entries. After each epoch but the last, ``rechecks`` policies of its front are timed as a whole
    (0: none) in a third of the ``seconds``, and the latencies of the next epoch are corrected
    accordingly. The finalists are timed in the same way, in all of them. With ``table``,
    latency tables are stored in that file and reused for the same model, machine, package versions
    and ``[latency]``.
    """

    batch: Annotated[int, Field(ge=1, le=4096)] = 64
    new_tokens: Count = 1
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    repeats: Count = 5
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.01
    seconds: Annotated[float, Field(ge=0)] = 30.0
    checks: Annotated[int, Field(ge=1, le=1000)] = 20
    rechecks: Annotated[int, Field(ge=0, le=100)] = 4
    table: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00\n]+$")] | None = (
        None
    )

    @property
    def recheck_seconds(self) -> float:
        """Return the time in which the front of an epoch is timed."""
        return self.seconds / 3


class SearchSettings(_Settings):
    """``[search]``: the sampler, the number of policies and the budget.

    ``nsga2`` and ``cma`` search for a Pareto front; ``sep-cma`` searches for the best quality at
    a latency; ``allocation`` does not search, but proposes policies of dynamic programming alone
    (see ``curves``); ``spdy`` searches for weights of the curves of this programme, by a Gaussian
    process; ``stock-nsga2``, ``tpe`` and ``random`` are Optuna's samplers, for comparison;
    ``module:function`` is called with ``seed`` and returns an Optuna sampler. The budget is
    ``keep_ratio`` (of the prunable weights), ``speedup`` (relative to the dense model, predicted
    from the latency table) or ``latency_ms`` (the same, in milliseconds of the workload of
    ``[latency]``, as calibration times the dense model). A study stops if more than the share
    ``failures`` of its trials fail; a trial fails after ``timeout`` seconds.

    With ``curves``, dynamic programming over sensitivity curves begins the search: over those that
    calibration estimates (``residual``), or over ``measured`` ones: then the first policies of the
    first epoch narrow one component each, at ``curve_widths`` widths or as many as fit into half
    of it. With ``trust_region``, each later epoch measures curves around its best policy, up
    to as many levels down and up, fewer from epoch to epoch. With ``screening`` a model of
    all measured policies chooses which of many candidates of ``nsga2`` and ``cma`` are measured.
    """

    sampler: Annotated[str, Field(pattern=rf"^({'|'.join(SAMPLERS)}|{_FUNCTION})$")] = "nsga2"
    epochs: Count = 3
    generations: Count = 4
    population: Annotated[int, Field(ge=4, le=100_000)] = 20
    keep_ratio: Ratio | None = None
    speedup: Annotated[float, Field(ge=1)] | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    kernels: Annotated[int, Field(ge=2, le=16)] = 3
    failures: Ratio = 0.25
    timeout: Annotated[float, Field(gt=0)] | None = None
    margin: Annotated[int, Field(ge=0, le=1_000_000)] = 2
    curves: Literal["residual", "measured", "none"] = "residual"
    curve_widths: Annotated[int, Field(ge=1, le=100)] = 3
    trust_region: Annotated[int, Field(ge=0, le=100)] = 0
    screening: bool = True

    @property
    def trials(self) -> int:
        """Return the number of trials of the whole study."""
        return self.epochs * self.generations * self.population


class ProjectorSettings(_Settings):
    """``[projector]``: the training of the vision projector between epochs.

    The projector is trained for the best ``elites`` of an epoch, on the answer loss plus ``kl``
    times the divergence from the dense model. Cross-validation over ``parts`` parts of the proxy
    set chooses the number of steps, from 0 to ``steps``, checked every ``every`` steps. ``train``,
    a ``module:function``, replaces `effllava_optuna.training.train_projector`; it takes the same
    arguments and returns the same type.
    """

    elites: Count = 4
    parts: Annotated[int, Field(ge=2, le=16)] = 4
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 16
    every: Count = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    kl: Annotated[float, Field(ge=0)] = 1.0
    train: Function | None = None


class ReportSettings(_Settings):
    """``[report]``: the number of finalists, which are measured on validation and test."""

    finalists: Annotated[int, Field(ge=1, le=64)] = 8


class ExportSettings(_Settings):
    """``[export]``: the directory that ``run`` exports the chosen policy to.

    Without ``directory`` nothing is exported. ``form`` is ``native``, or ``portable`` (one width
    for each tower, for engines that load only the base model); the default follows from
    ``pruning.mode``. With ``sequential``, the output matrices are fitted again, one layer after
    the other, each to the activations of the pruned layers before it.
    """

    directory: str | None = None
    form: Literal["native", "portable"] | None = None
    sequential: bool = False


class StudyConfig(_Settings):
    """A validated study file.

    Example:
        >>> config = StudyConfig.of(
        ...     {
        ...         "study": {"name": "tiny"},
        ...         "model": {"path": "digits-vlm"},
        ...         "task": {"name": "digits"},
        ...     }
        ... )
        >>> config.search.trials
        240
    """

    study: StudySettings
    model: ModelSettings
    task: TaskSettings
    pruning: PruningSettings = PruningSettings()
    quality: QualitySettings = QualitySettings()
    latency: LatencySettings = LatencySettings()
    search: SearchSettings = SearchSettings()
    projector: ProjectorSettings = ProjectorSettings()
    report: ReportSettings = ReportSettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="after")
    def _check_combinations(self) -> StudyConfig:
        check_combinations(self)
        return self

    @property
    def form(self) -> Literal["native", "portable"]:
        """Return the form in which the chosen policy is exported."""
        default: Literal["native", "portable"] = "portable" if self.pruning.tied else "native"
        return self.export.form or default

    @property
    def table_sets(self) -> int:
        """Count the sets of compensation tables that are in memory at once.

        With ``pruning.in_context``: those of the calibration, of the present and the next epoch.
        """
        return min(self.search.epochs, 3) if self.pruning.in_context else 1

    @staticmethod
    def of(document: dict[str, Any], *, source: str = "study") -> StudyConfig:
        """Validate the content of a study file, which messages call ``source``.

        Raises:
            ConfigError: The content is not valid; the message names the source, the key, the value
                and the cure of the first fault.
        """
        try:
            return StudyConfig.model_validate_json(json.dumps(document, default=str))
        except ValidationError as error:
            raise config_error(error, source, StudyConfig) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{source}: {error}.", hint="Use TOML strings and numbers."
            ) from error

    def document(self) -> dict[str, Any]:
        """Return the config as JSON values."""
        return self.model_dump(mode="json")

    @property
    def task_seed(self) -> int:
        """Return the seed that draws the samples: ``task.seed``, or else ``study.seed``."""
        return self.study.seed if self.task.seed is None else self.task.seed
