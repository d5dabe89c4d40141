"""Prompts that ask whether a user will like an item, with the answers: from files to windows of tokens."""

DATASETS = ("tallrec-movie",)
"""What cards may name, beside the readers of logs."""
