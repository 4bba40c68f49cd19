"""Whether sound and picture belong together: the stage and its evidence."""
