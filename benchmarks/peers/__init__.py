"""What recparallel is measured against, each run as its users run it: one file a peer.

A peer is a :class:`~benchmarks.peers.trainer.Trainer` built by ``build(job, recommender)`` in its module. The names of
all sides are in :mod:`benchmarks.peers.sides`.
"""
