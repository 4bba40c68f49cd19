"""From shards to planned batches."""
