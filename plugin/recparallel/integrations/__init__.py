"""Trackers and host frameworks' callbacks."""
