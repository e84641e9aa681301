"""Run the command line."""

from effllava_optuna.study.cli import main

main(prog_name="python -m effllava_optuna.study")
