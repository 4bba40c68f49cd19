"""NAVA and its training: network, objective, sampler, checkpoints. Imports schemas and torch; shards are the interface.

Reading order, in network/: config.py, nava.py (the network, top to bottom), then layers.py, rope.py, conditioning.py,
attention.py, flow.py (the objective); then sampling/sampler.py. Nothing is imported here, so that one part can be used
without the others.
"""
