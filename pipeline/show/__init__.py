"""Answers as text and pictures for a terminal."""
