"""Decide cuts: pure functions from a :class:`~recparallel.plan.Profile` and a number of stages to a
:class:`~recparallel.plan.Partition`, one algorithm a file. Imports ``plan.py`` and ``errors.py`` alone."""
