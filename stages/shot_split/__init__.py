"""Shots: the stage and its engines."""
