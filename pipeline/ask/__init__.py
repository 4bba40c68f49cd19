"""Questions to a run, answered from its ledger as plain data."""
