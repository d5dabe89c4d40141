"""Cut so that the slowest stage is as fast as a contiguous cut allows, exactly.

Linear partition: the bottleneck over ``n`` layers and ``s`` stages obeys ``B(s, j) = min_i max(B(s - 1, i), cost(i,
j))`` (the classic chain-partitioning recurrence, see Pinar & Aykanat, "Fast optimal load balancing algorithms for 1D
partitioning", J. Parallel Distrib. Comput. 2004, section 2). ``B(s - 1, i)`` never falls and ``cost(i, j)`` never
rises with ``i``, so the best ``i`` is found by bisection: ``O(s · n · log n)``.
"""

from itertools import accumulate

from recparallel.errors import PartitionError
from recparallel.plan import Partition, Profile


def minimize_bottleneck(profile: Profile, stages: int) -> Partition:
    """Cut ``profile.layers`` into ``stages`` non-empty stages with the smallest possible slowest stage.

    Steps:
        1. ``W[j]`` = seconds of the first ``j`` layers, forward plus backward.
        2. ``B[1][j] = W[j]``; ``B[s][j] = min over i in [s - 1, j)`` of ``max(B[s - 1][i], W[j] - W[i])``.
        3. Walk the choices back from ``B[stages][n]``.

    Which of several equal cuts is taken depends on the profile alone, so every rank with the same profile finds the
    same cut.

    Raises:
        PartitionError: fewer layers than stages, or no stage at all.

    Example:
        >>> from recparallel.plan import LayerCost
        >>> layers = [LayerCost(name=str(i), forward_seconds=1, backward_seconds=t, num_parameters=0, parameter_bytes=0)
        ...           for i, t in enumerate([0, 0, 0, 2])]
        >>> minimize_bottleneck(Profile(layers=layers, micro_batch=1, sequence_length=1), 2).bounds
        (0, 3, 4)
    """
    n = len(profile.layers)
    if stages < 1:
        raise PartitionError(f"stages must be at least 1, got {stages}")
    if stages > n:
        names = ", ".join(layer.name for layer in profile.layers)
        raise PartitionError(
            f"{stages} stages, but only {n} layers to put into them ({names}); at most {n} stages are possible"
        )
    W = [0.0, *accumulate(layer.seconds for layer in profile.layers)]
    best = W[:]  # best[j]: bottleneck of the first j layers with the stages counted so far
    choices: list[list[int]] = []
    for s in range(2, stages + 1):
        nxt = [float("inf")] * (n + 1)
        choice = [0] * (n + 1)
        for j in range(s, n + 1):
            i = _crossing(best, W, low=s - 1, high=j - 1, j=j)
            nxt[j], choice[j] = max(best[i], W[j] - W[i]), i
            if i > s - 1 and (before := max(best[i - 1], W[j] - W[i - 1])) < nxt[j]:
                nxt[j], choice[j] = before, i - 1
        best = nxt
        choices.append(choice)
    bounds = [n]
    for choice in reversed(choices):
        bounds.append(choice[bounds[-1]])
    bounds = [0, *reversed(bounds)] if stages > 1 else [0, n]
    return Partition(
        bounds=tuple(bounds),
        method="profile",
        stage_seconds=tuple(W[b] - W[a] for a, b in zip(bounds, bounds[1:])),
    )


def _crossing(best: list[float], W: list[float], *, low: int, high: int, j: int) -> int:
    """The first ``i`` in ``[low, high]`` from which the left part is at least as slow as the stage ``i … j``, else
    ``high``."""
    while low < high:
        middle = (low + high) // 2
        if best[middle] >= W[j] - W[middle]:
            high = middle
        else:
            low = middle + 1
    return low
