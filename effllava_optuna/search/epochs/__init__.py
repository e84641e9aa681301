"""Epochs: what they search, when one opens, and what is published with it."""
