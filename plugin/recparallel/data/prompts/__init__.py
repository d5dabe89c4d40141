"""Prompts that ask whether a user will like an item, with the answers: from files to windows of tokens."""
