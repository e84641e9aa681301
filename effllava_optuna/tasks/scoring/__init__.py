"""Scores of answers that need no judge."""
