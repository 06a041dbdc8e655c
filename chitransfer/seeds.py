"""Seeds derived from the study seed and their purpose, so that nothing depends on what ran before.

Used wherever something is drawn at random.
"""

from __future__ import annotations

import zlib

import numpy as np


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed in 0 … 2³¹ − 1 for one purpose, determined by (seed, purpose, numbers) alone.

    >>> derive_seed(42, "stage1", 3, 0) == derive_seed(42, "stage1", 3, 0)
    True
    """
    entropy = [seed, zlib.crc32(purpose.encode()), *numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
