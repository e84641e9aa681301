"""The command line ``effllava-optuna``."""

PROGRAM = "effllava-optuna"
"""Name of the program, as ``pyproject.toml`` installs it."""
