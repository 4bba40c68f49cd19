"""Measurements behind the figures in docs/: a module with a `main` is a command, `python -m benchmarks.NAME`."""
