"""Create the sampler that a study file names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.samplers import (
    CmaOptions,
    EpochCMASampler,
    EpochNSGAIISampler,
    EpochSpdySampler,
    EpochStockSampler,
    Screening,
)
from effllava_optuna.search.budget import required_speedup

if TYPE_CHECKING:
    from effllava_optuna.calibration.calibration import Calibration
    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.samplers import EpochSampler, SpaceProvider, Stock

_STOCK: dict[str, Stock] = {"stock-nsga2": "nsga2", "tpe": "tpe", "random": "random"}


def make_sampler(
    inputs: StudyInputs, calibration: Calibration, space: SpaceProvider
) -> EpochSampler:
    """Create the sampler of a study.

    Args:
        inputs: The study file and the user's functions.
        calibration: Has the latency of the dense model.
        space: Returns the search space of the current epoch.
    """
    search = inputs.config.search
    sizes: dict[str, Any] = {
        "population_size": search.population,
        "seed": inputs.config.study.seed,
    }
    if search.sampler == "spdy":
        return EpochSpdySampler(space, **sizes)
    screening = Screening() if search.screening and search.sampler != "allocation" else None
    if search.sampler in ("nsga2", "allocation"):  # which fills slots that are left with children
        return EpochNSGAIISampler(space, screening=screening, **sizes)
    stock = inputs.functions.sampler or _STOCK.get(search.sampler)
    if stock is not None:
        return EpochStockSampler(space, stock, **sizes)
    speedup = required_speedup(inputs.config, calibration) if search.sampler == "sep-cma" else None
    limit = None if speedup is None else calibration.dense.latency_ms / speedup
    options = CmaOptions(kernels=search.kernels, limit=limit)
    return EpochCMASampler(space, options=options, screening=screening, **sizes)
