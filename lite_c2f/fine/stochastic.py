"""Random bits of a weight's elements, and stochastic rounding with them.

The bits depend only on the seed, the weight's name and the element's position, not on the order of shards, the size of
chunks or the number of threads.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def random_bits(seed: int, name: str, purpose: str, start: int, count: int) -> Tensor:
    """16 random bits for `count` elements of a weight from its `start`-th on: (count,) int32, 0 to 65535.

    Counter-based (Philox, Salmon et al. 2011): element i has the same bits in every call.
    """
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    block, skip = divmod(start, 16)  # a counter gives 256 bits
    blocks = -(-(skip + count) // 16)
    raw = np.random.Philox(key=key, counter=block).random_raw(4 * blocks)
    bits = raw.astype("<u8", copy=False).view("<u2")[skip : skip + count]
    return torch.from_numpy(bits.astype(np.int32))


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16, up with the probability of the part that is cut off: unbiased.

    Adding 16 random bits below bfloat16's last bit carries into it with that probability. Exact values stay.
    """
    raised = values.float().contiguous().view(torch.int32) + bits.view(values.shape)
    return (raised >> 16).to(torch.int16).view(torch.bfloat16)
