"""How good a ranking is.

Every number that leaves this room has a protocol (:mod:`recparallel.data.protocols`); by default the target is ranked among
all items but the padding and the user's earlier items. It loses every tie.
"""
