"""Captions: the stage and its engines."""
