"""Seeds of layers in micro-batches: all different, whatever the user's seed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from recparallel.engines.seeding import base_seed, mix, seed_layer


@given(st.integers(0, 2**32), st.integers(0, 50))
def test_layers_and_micro_batches_never_share_a_seed(seed, offset):
    """The numbers that DeepSpeed makes: ``base * (micro_offset + 1) + layer``, and ``base + layer`` for initial weights."""
    numbers = [base_seed(seed) * (micro + 1) + layer for micro in range(offset, offset + 20) for layer in range(100)]
    assert len({mix(number) for number in numbers}) == len(numbers)


def test_zero_and_neighbouring_seeds_are_as_good_as_any():
    drawn = []
    for seed in (0, 1, 2, 3):
        for micro in range(3):
            for layer in range(4):
                seed_layer(base_seed(seed) * (micro + 1) + layer)
                drawn.append(torch.rand(4).tolist())
    assert len({tuple(values) for values in drawn}) == len(drawn)


def test_the_mix_is_a_bijection_of_64_bits():
    known = 0xE220A8397B1DCDAF  # first output of SplitMix64 from state 0, as published with the algorithm
    assert mix(0) == known
    assert 0 <= mix(2**64 - 1) < 2**64
