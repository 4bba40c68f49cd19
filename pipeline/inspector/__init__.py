"""The inspector: a local web page over a run, and the same as one file. `nava-curate inspect` and `nava-curate report`."""
