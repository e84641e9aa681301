"""Checks that the stored parts of a study are complete, and repairs that lose nothing."""

from effllava_optuna.storage.integrity.check_result import CheckResult, State
from effllava_optuna.storage.integrity.export_check import export_is_valid
from effllava_optuna.storage.integrity.storage_check import check_storage
from effllava_optuna.storage.integrity.study_check import check_study
from effllava_optuna.storage.integrity.study_repair import repair

__all__ = ["CheckResult", "State", "check_storage", "check_study", "export_is_valid", "repair"]
