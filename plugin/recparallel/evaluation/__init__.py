"""How good a ranking is: full ranking over the catalogue, items that the user has seen filtered out.

Every number that leaves this room has one protocol: the target is ranked among all items but the padding and the
user's earlier items, and loses every tie.
"""
