"""Studies: spec, loop, storage, command line. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effllava_optuna.study.evolution import Epochs as Epochs
    from effllava_optuna.study.evolution import ProjectorEvolution as ProjectorEvolution
    from effllava_optuna.study.objective import PruningObjective as PruningObjective
    from effllava_optuna.study.plain import prepare as prepare
    from effllava_optuna.study.spec import StudySpec as StudySpec
    from effllava_optuna.study.spec import read_spec as read_spec

_HOMES = {
    "Epochs": "evolution",
    "ProjectorEvolution": "evolution",
    "PruningObjective": "objective",
    "StudySpec": "spec",
    "prepare": "plain",
    "read_spec": "spec",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
