"""Run a policy on a loaded model: masked, narrowed or sliced."""
