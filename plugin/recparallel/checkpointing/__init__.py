"""Checkpoints that do not depend on the plan they were written under: names, tensors, manifest, commit, export."""
