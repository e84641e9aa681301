"""What a study has found; read from records, without a model."""

from effllava_optuna.report.document import StudyFacts, document, entry, trial_entry
from effllava_optuna.report.tables import policies, summary

__all__ = ["StudyFacts", "document", "entry", "policies", "summary", "trial_entry"]
