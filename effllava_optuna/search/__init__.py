"""The search: evaluator, epochs, runner and final selection."""
