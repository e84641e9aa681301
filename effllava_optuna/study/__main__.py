"""Run the command line."""

try:
    from effllava_optuna.study.cli import main
except KeyboardInterrupt:  # so early that nothing was begun
    raise SystemExit(130) from None

main(prog_name="python -m effllava_optuna.study")
