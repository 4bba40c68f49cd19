"""The loop, its state and what it runs on."""
