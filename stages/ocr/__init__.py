"""Burned-in text: the stage, the networks that find and read it, and what kinds of it there are."""
