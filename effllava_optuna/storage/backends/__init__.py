"""What Optuna's storages keep their records in."""
