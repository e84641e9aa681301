"""Scores of free answers by a language model as judge, and submission files of benchmarks."""
