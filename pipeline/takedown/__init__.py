"""Taking sources down: out of the ledger, of cuts, shards, latents and pools, with a tombstone that says when and why.

chosen    which sources are meant: by key, by a list of addresses, by a voice or a face
remove    takes them out of a run and of what was made of it; begun again, it goes on
latents   the same of a folder of latent shards
"""

from pipeline.takedown.chosen import Meant, Somebody, TakedownRequest, chosen
from pipeline.takedown.remove import Removed, takedown

__all__ = ["Meant", "Removed", "Somebody", "TakedownRequest", "chosen", "takedown"]
