"""Pictures that are not for everybody's eyes: the stage, and the published network it asks."""
