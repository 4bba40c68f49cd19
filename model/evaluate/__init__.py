"""Evaluation: sets, metrics with their protocols, intervals, comparisons and user studies."""
