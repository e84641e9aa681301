"""Documents, tables and figures of a study, built from stored records without a model."""

from effllava_optuna.report.document import (
    StudyFacts,
    result_row,
    study_document,
    trial_result_row,
)
from effllava_optuna.report.finalist_choices import choice_table
from effllava_optuna.report.paired_differences import comparison_sentence
from effllava_optuna.report.policy_pick import PickRule, pick_policy, pick_table
from effllava_optuna.report.policy_table import policy_table, status_lines
from effllava_optuna.report.proxy_noise import noise_notes
from effllava_optuna.report.smoothed_quality import smoothed_qualities
from effllava_optuna.report.speedup_parts import speedup_table
from effllava_optuna.report.structure_table import structure_tables
from effllava_optuna.report.subset_scores import (
    accuracy_by_subset,
    accuracy_with_interval,
    evaluation_table,
    subset_table,
)
from effllava_optuna.report.text_table import TableRow, TextTable

__all__ = [
    "PickRule",
    "StudyFacts",
    "TableRow",
    "TextTable",
    "accuracy_by_subset",
    "accuracy_with_interval",
    "choice_table",
    "comparison_sentence",
    "evaluation_table",
    "noise_notes",
    "pick_policy",
    "pick_table",
    "policy_table",
    "result_row",
    "smoothed_qualities",
    "speedup_table",
    "status_lines",
    "structure_tables",
    "study_document",
    "subset_table",
    "trial_result_row",
]
