"""Load a checkpoint, and verify by running it that its structure was recognised correctly."""
