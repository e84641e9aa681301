"""The study file: its schema, how it is read, and how one is proposed for a model."""
