"""Fit output matrices to the kept units."""
