"""optuna-dashboard for studies of this package: the server, figures, notes and attached files."""
