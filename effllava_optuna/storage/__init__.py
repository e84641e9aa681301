"""Optuna storages, artifacts, the control study and trial records."""
