"""The study of ``allocate``: dynamic programming over sensitivity curves, and no search.

It is a study like all others, with one epoch of the sampler ``allocation``: the points of the
curves fill its first generations, and policies of the programme the last one. With residual
curves, which need no evaluation, the last generation is the only one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.allocation import curve_policies
from effllava_optuna.calibration.calibration import allowed_widths
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.policy import Space

if TYPE_CHECKING:
    from effllava_optuna.surgery import LoadedModel

_SMALLEST_POPULATION = 4  # of ``search.population``


def without_search(config: StudyConfig) -> StudyConfig:
    """Return a study file with one epoch of the sampler ``allocation``.

    Without ``search.curves`` it takes the curves that need no evaluation, if there are any.
    """
    curves = config.search.curves
    if curves == "none":
        curves = "residual" if config.pruning.uses_samples else "measured"
    return _with_search(config, sampler="allocation", epochs=1, curves=curves)


def sized_for(config: StudyConfig, loaded: LoadedModel) -> StudyConfig:
    """Return a study file whose epoch the curves and a generation of the programme fill.

    Args:
        config: What `without_search` returned; its generations are not larger.
        loaded: The model.
    """
    search, sizes = config.search, {"generations": 1}
    if search.curves == "measured":
        widths = allowed_widths(loaded, config)
        space = Space.of(loaded.structure, widths, tied=config.pruning.tied)
        points = len(curve_policies(space, search.curve_widths))
        generations = -(-points // search.population)
        sizes["generations"] = generations + 1
        sizes["population"] = max(_SMALLEST_POPULATION, -(-points // generations))
    return _with_search(config, **sizes)


def _with_search(config: StudyConfig, **search: object) -> StudyConfig:
    document = config.document()
    document["search"] |= search
    return StudyConfig.of(document)
