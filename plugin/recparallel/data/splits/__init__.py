"""Splits, by their names in the field: one a file, each a function of histories.

To add one: write a function ``(histories, *, share) -> Split`` in a file of its own, and register it under ``splits`` in
``recparallel/registry.py`` (or as an entry point in the group ``recparallel.splits``).
"""
