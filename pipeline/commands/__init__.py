"""The commands of `nava-curate` that ask and tell, beside those in `pipeline.cli`."""
