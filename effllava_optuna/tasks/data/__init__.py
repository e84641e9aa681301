"""Sources of samples: datasets, files and the embedded digits."""
