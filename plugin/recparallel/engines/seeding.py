"""One seed for each layer in each micro-batch of the job.

DeepSpeed's ``seed_layers`` calls ``seed_fn(base_seed * (micro_offset + 1) + layer)``. With a small base these numbers
run into each other (layer 1 of one micro-batch and layer 0 of another), and with 0 they do not depend on the
micro-batch at all. So the base is made large, and every number is mixed before it seeds torch.
"""

import torch
from deepspeed.accelerator import get_accelerator

_MASK = (1 << 64) - 1


def base_seed(seed: int) -> int:
    """A large odd base for DeepSpeed's arithmetic; neighbouring seeds give unrelated bases."""
    return mix(seed) >> 24 | 1 << 39 | 1


def seed_layer(number: int) -> None:
    """DeepSpeed's ``seed_fn``: seed the CPU's and the accelerator's generators from the number of a layer in a micro-batch.

    ``torch.manual_seed`` would do, but without a GPU it takes a millisecond and queues a call for every device type it
    knows, which is never made: memory would grow with every layer of every micro-batch.
    """
    seed = mix(number)
    torch.default_generator.manual_seed(seed)
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.manual_seed_all(seed)


def mix(number: int) -> int:
    """SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a bijection of
    64 bits."""
    z = (number + 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
