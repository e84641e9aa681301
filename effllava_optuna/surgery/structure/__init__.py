"""Represent a model: its components, how they are recognised, and the loaded model."""
