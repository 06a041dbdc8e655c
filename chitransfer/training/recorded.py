"""Steps recorded as CUDA graphs: on a GPU a small step is over sooner than its kernels can be launched one by one.

Used by `training.packed` and `training.stage2`. On a CPU a step is simply called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Calls before a step is recorded: what it sets up on first use (workspaces, the optimiser's state) must be there.
N_FREE_CALLS = 3


class RecordedStep:
    """A step of training, recorded for every set of input shapes and from then on replayed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._n_calls: dict[tuple[torch.Size, ...], int] = {}
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def take(self, step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Take a step; the returned tensor holds until the next one.

        Parameters
        ----------
        step
            The same in every call; not kept, because whoever has a method of it recorded could then not be freed at
            once. It takes tensors on the device, changes weights in place and returns a tensor, asks for no value on
            the device, and does the same for all inputs of the same shapes. What it draws at random comes from the
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
        """Queue work beside that of other steps; who goes on elsewhere must first wait, as by asking for a value."""
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
        # To free another recording while one is made breaks it, and the garbage collector may do so at any time.
        collects = gc.isenabled()
        gc.disable()
        try:
            # Other threads (the driver's, say) may use the device meanwhile.
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
