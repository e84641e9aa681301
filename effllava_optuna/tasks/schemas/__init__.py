"""What the rows of a benchmark say, and how its authors ask and grade."""

from effllava_optuna.tasks.schemas._schema import Entry, Options, Schema
from effllava_optuna.tasks.schemas.freeform import LlavaBench, MMVet
from effllava_optuna.tasks.schemas.own import Own
from effllava_optuna.tasks.schemas.scienceqa import ScienceQA
from effllava_optuna.tasks.schemas.vizwiz import VizWiz

SCHEMAS: dict[str, type[Schema]] = {
    "scienceqa": ScienceQA,
    "vizwiz": VizWiz,
    "mmvet": MMVet,
    "llava-bench": LlavaBench,
    "qa": Own,
}

__all__ = [
    "SCHEMAS",
    "Entry",
    "LlavaBench",
    "MMVet",
    "Options",
    "Own",
    "Schema",
    "ScienceQA",
    "VizWiz",
]
