"""What the data is: typed Arrow rows, exact times, verdicts, ids and the shard contract. No I/O, no torch, no ray."""
