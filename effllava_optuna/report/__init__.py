"""What a study has found; read from records, without a model."""

from effllava_optuna.report.document import StudyFacts, document, entry, trial_entry
from effllava_optuna.report.marks import by_subset, evaluation, mark, marks
from effllava_optuna.report.picking import Rule, pick, picked
from effllava_optuna.report.tables import anatomy_table, compared, policies, summary

__all__ = [
    "Rule",
    "StudyFacts",
    "anatomy_table",
    "by_subset",
    "compared",
    "document",
    "entry",
    "evaluation",
    "mark",
    "marks",
    "pick",
    "picked",
    "policies",
    "summary",
    "trial_entry",
]
