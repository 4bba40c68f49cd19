"""NAVA: configuration, blocks, conditioning and objective."""
