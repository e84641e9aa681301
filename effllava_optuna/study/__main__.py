"""Run the command line ``effllava-optuna``."""

try:
    from effllava_optuna.cli import PROGRAM
    from effllava_optuna.cli.program import main
except KeyboardInterrupt:  # during the imports; nothing has begun
    raise SystemExit(130) from None

main(prog_name=PROGRAM)
