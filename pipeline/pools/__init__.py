"""Pools: parts of a run for the stages of training, as rules over its ledger. No shard is copied for them.

pool_rules which clips, how many hours, and what is to be in balance; shipped ones in `rules/`
choose     the clips that rules find in a run
folder     a pool as files, and what it holds
"""

from pipeline.pools.choose import Selection, choose
from pipeline.pools.folder import select
from pipeline.pools.pool_rules import PoolRules, load_rules

__all__ = ["PoolRules", "Selection", "choose", "load_rules", "select"]
