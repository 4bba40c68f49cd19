"""From noise to clips."""
