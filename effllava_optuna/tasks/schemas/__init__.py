"""Row schemas: the columns, prompts and grading rules of each benchmark."""

from effllava_optuna.tasks.schemas.open_ended import LlavaBench, MMVet
from effllava_optuna.tasks.schemas.row_schema import ParsedRow, RowSchema, TaskOptions
from effllava_optuna.tasks.schemas.scienceqa import ScienceQA
from effllava_optuna.tasks.schemas.user_rows import UserRows
from effllava_optuna.tasks.schemas.vizwiz import VizWiz

SCHEMAS: dict[str, type[RowSchema]] = {
    schema.name: schema for schema in (ScienceQA, VizWiz, MMVet, LlavaBench, UserRows)
}
"""The schemas by the name of the task in a study file."""

__all__ = [
    "SCHEMAS",
    "LlavaBench",
    "MMVet",
    "ParsedRow",
    "RowSchema",
    "ScienceQA",
    "TaskOptions",
    "UserRows",
    "VizWiz",
]
