"""Steps recorded as CUDA graphs: on a GPU, launching the kernels of a small step one by one takes longer than they run.

Used by `training.packed` and `training.stage2`. On a CPU a step is simply called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Calls before a step is recorded, so that what it sets up on first use (workspaces, optimiser state) exists.
N_FREE_CALLS = 3


class RecordedStep:
    """A training step that is recorded once for every set of input shapes and replayed from then on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._n_calls: dict[tuple[torch.Size, ...], int] = {}
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def take(self, step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Take a step; the returned tensor is valid until the next one.

        Parameters
        ----------
        step
            The same function in every call. No reference to it is kept, so that the owner of a recorded method can be
            freed at once. It takes tensors on the device, changes weights in place and returns a tensor, reads no value
            back from the device, and does the same for all inputs of the same shapes. Its random numbers come from the
            device's global generator.
        """
        if self._stream is None:
            return step(*inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes in self._recordings:
            return self._recordings[shapes].replay(inputs)
        self._n_calls[shapes] = self._n_calls.get(shapes, 0) + 1
        if self._n_calls[shapes] > N_FREE_CALLS:
            self._recordings[shapes] = _Recording.of(step, inputs, self._stream)
            return self._recordings[shapes].replay(inputs)
        with self.in_its_stream():
            result = step(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return result

    @contextmanager
    def in_its_stream(self) -> Iterator[None]:
        """Queue work on the steps' own stream; before using results elsewhere, synchronise, as by reading a value."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Tensor

    @classmethod
    def of(cls, step: Callable[..., Tensor], inputs: Sequence[Tensor], stream: torch.cuda.Stream) -> _Recording:
        graph, own = torch.cuda.CUDAGraph(), [value.clone() for value in inputs]
        # Freeing another recording during a capture breaks it, and the garbage collector may do that at any time.
        collects = gc.isenabled()
        gc.disable()
        try:
            # Other threads (such as the driver's) may use the device meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = step(*own)
        finally:
            if collects:
                gc.enable()
        return cls(graph, own, result)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.graph.replay()
        return self.result
