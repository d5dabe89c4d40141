"""The two numbers that stand for nothing: as an input, and as a label."""

PADDING = 0
"""The item of a position without one; row 0 of the table."""

IGNORE = -100
"""The label of a position without a target, as torch's cross entropy has it."""
