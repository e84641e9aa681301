"""Evaluate a checkpoint, or the policy of a trial, on a split of a task."""
