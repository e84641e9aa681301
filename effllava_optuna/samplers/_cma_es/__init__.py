"""CMA-ES over epochs: the Optuna sampler, and the optimisers that it replays."""
