"""Memory that runs out for real."""

from __future__ import annotations

import pytest
import torch


def cpu_shortage() -> RuntimeError:
    """What PyTorch raises where the CPU's memory is short: more is asked for than any process can address."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value
