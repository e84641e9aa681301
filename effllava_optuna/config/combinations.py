"""Rules about keys of a study file that do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effllava_optuna.config.schema import StudyConfig

BUDGETS = ("keep_ratio", "speedup", "latency_ms")
"""Keys of ``[search]`` of which one limits the policies."""


def check_combinations(config: StudyConfig) -> None:
    """Check the keys of a study file together.

    Raises:
        ValueError: Some do not go together; the message names them and the cure.
    """
    pruning, search = config.pruning, config.search
    if config.projector.parts % pruning.folds:
        raise ValueError(
            f"projector.parts is {config.projector.parts}; use a multiple of pruning.folds "
            f"({pruning.folds})"
        )
    if "projector" in pruning.towers and config.projector.steps:
        raise ValueError(
            "pruning.towers contains the projector, which is trained between epochs; set "
            "projector.steps = 0"
        )
    if pruning.in_context and pruning.compensation != "least-squares":
        raise ValueError(
            f"pruning.in_context needs pruning.compensation = 'least-squares', which is "
            f"{pruning.compensation!r}; set pruning.in_context = false"
        )
    if pruning.in_context and config.quality.risk == "compensated":
        raise ValueError(
            "quality.risk is 'compensated', which is computed once, but pruning.in_context fits "
            "the output matrices again; use 'paper'"
        )
    if pruning.compensation == "bias" and config.form == "portable":
        raise ValueError(
            "pruning.compensation is 'bias', but stock models have no such biases; use "
            "'least-squares' with a portable export or pruning.mode = 'vllm-safe'"
        )
    if config.quality.measure == "agreement" and config.task.measure == "generation":
        raise ValueError(
            "task.measure is 'generation', which grades answers by labels, but "
            "quality.measure is 'agreement'; use task.measure = 'likelihood'"
        )
    budgets = [name for name in BUDGETS if getattr(search, name) is not None]
    if len(budgets) > 1:
        names = " and ".join(f"search.{name}" for name in budgets[:2])
        raise ValueError(f"{names} are both set; use one budget")
    if search.sampler == "sep-cma" and budgets not in (["speedup"], ["latency_ms"]):
        raise ValueError(
            "search.sampler is 'sep-cma', which needs search.speedup or search.latency_ms"
        )
    if search.sampler in ("cma", "sep-cma") and search.population < 5:
        raise ValueError(f"search.population is {search.population}, but CMA-ES needs at least 5")
    if search.sampler in ("allocation", "spdy") and search.curves == "none":
        raise ValueError(
            f"search.sampler is {search.sampler!r}, which needs search.curves = 'measured' or "
            "'residual'"
        )
    if search.curves == "residual" and not pruning.uses_samples:
        raise ValueError(
            "search.curves is 'residual', but pruning.compensation = 'none' with "
            f"pruning.importance = {pruning.importance!r} has no residuals; use 'measured' or "
            "'none'"
        )
    if len(pruning.token_widths) > 1 and (pruning.tied or config.form == "portable"):
        raise ValueError(
            "pruning.visual_tokens has shares below 1, which no stock configuration describes; "
            "use a native export and pruning.mode = 'per-layer'"
        )
    if max(pruning.width_ratios) != 1.0:
        raise ValueError("pruning.width_ratios must contain 1.0, the dense width")
