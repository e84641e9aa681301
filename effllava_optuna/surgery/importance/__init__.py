"""Score and rank the units of every component."""
