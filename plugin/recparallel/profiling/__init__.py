"""Measure what layers cost, into a :class:`~recparallel.plan.Profile`."""
