"""How curation runs: recipe, plan, Ray graph, ledger, packing and the `nava-curate` command."""
