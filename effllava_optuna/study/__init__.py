"""Search policies from Python, in a plain Optuna script.

``python -m effllava_optuna.study`` runs the command line. Names are imported when they are first
used (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.lazy_names import lazy_names

if TYPE_CHECKING:
    from effllava_optuna.config.loading import load_config as load_config
    from effllava_optuna.config.schema import StudyConfig as StudyConfig
    from effllava_optuna.search.objective import PruningObjective as PruningObjective
    from effllava_optuna.search.preparation import prepare as prepare
    from effllava_optuna.search.runner import EpochCallback as EpochCallback
    from effllava_optuna.search.session import SearchSession as SearchSession

_MODULES = {
    "EpochCallback": "..search.runner",
    "PruningObjective": "..search.objective",
    "SearchSession": "..search.session",
    "StudyConfig": "..config.schema",
    "load_config": "..config.loading",
    "prepare": "..search.preparation",
}

__all__ = [*_MODULES]
__getattr__ = lazy_names(__name__, _MODULES)
