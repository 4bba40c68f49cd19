"""Turns: the stage and its engines."""
