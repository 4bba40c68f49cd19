"""What the data is: typed Arrow rows, exact times, verdicts, ids, the shard contract. No I/O, no ray; torch in networks alone."""
