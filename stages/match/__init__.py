"""Whether sound belongs to picture: the stage, its own evidence, and the published networks it may ask."""
