"""Words: the stage, its recognisers and aligners."""
