"""This network against the official one."""
