"""Families whose config does not say where their parts are, or that have others than usual: one file each."""
