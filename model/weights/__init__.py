"""Weights on disk, ours and the release's."""
