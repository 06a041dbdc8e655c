"""Random forests that are grown in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def few_trees() -> Iterator[None]:
    """A random forest of twenty trees instead of two hundred."""
    # Here, since it imports PyTorch.
    from chitransfer.training import forest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest, "N_TREES", 20)
        yield
