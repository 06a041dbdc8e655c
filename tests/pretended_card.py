"""A graphics card pretended on the CPU: what runs on CUDA is run where there is none.

Tensors "on the card" are wrapped CPU tensors that say ``cuda:0``. As on a real card, an operation on tensors of both
the card and the host is an error, and neither NumPy nor a CPU kernel of the project gets at them. CUDA graphs are
pretended, too: what is done while one is recorded is repeated operation by operation on the same memory when it is
replayed, and no Python runs then. What is not tested by this: CUDA's kernels, the order of streams, memory and speed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("cuda:0")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# A card's tensor can be indexed by one of the host.
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# What waits for the card.
ASKING = {aten._local_scalar_dense.default, aten.nonzero.default}

Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]
_recording: list[Call] | None = None


class CardTensor(Tensor):
    """A tensor on the card; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CardTensor:
        made: CardTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
        )
        made.inner = inner
        return made

    device = property(lambda self: CARD)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: CardTensor) -> None:
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __deepcopy__(self, memo: dict[int, Any]) -> CardTensor:
        if id(self) not in memo:
            made = CardTensor(self.inner.clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                made._is_param = True
            memo[id(self)] = made
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Numbers as tensors may come from either side.
        on_host = [tuple(leaf.shape) for leaf in leaves if not isinstance(leaf, CardTensor) and leaf.dim() > 0]
        if on_host and func not in COPIES | INDEXED:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but {on_host} are on the CPU")
        if _recording is not None and (func in ASKING or any(not isinstance(leaf, CardTensor) for leaf in leaves)):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        bare_args, bare_kwargs = tree_map(lambda x: x.inner if isinstance(x, CardTensor) else x, (args, kwargs))
        result = func(*bare_args, **bare_kwargs)
        if _recording is not None:
            _recording.append((func, bare_args, bare_kwargs, result))
        if func in COPIES and not isinstance(args[0], CardTensor):
            return args[0]
        wrapped = tree_map(lambda x: CardTensor(x) if isinstance(x, Tensor) else x, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


class _Card(TorchFunctionMode):
    """Puts on the card what is asked to be there, and takes back what is asked for on the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.cpu, Tensor.to):
            first, *rest = args
            wanted = [x for x in [*rest, *kwargs.values()] if isinstance(x, str | torch.device | Tensor)]
            place = "cpu" if func is Tensor.cpu else _type_of(wanted[0]) if wanted else _type_of(first)
            dtype = next((x for x in [*rest, *kwargs.values()] if isinstance(x, torch.dtype)), first.dtype)
            if place == _type_of(first):
                return first if dtype == first.dtype else func(first, dtype)
            # Only leaves travel between host and card in this project.
            return (
                CardTensor(first.detach().to(dtype, copy=True)) if place == "cuda" else first.inner.to(dtype, copy=True)
            )
        if getattr(func, "__name__", "") == "dropout":
            # The CPU's own makes its mask on the host.
            value = args[0]
            p = args[1] if len(args) > 1 else kwargs["p"]
            training = args[2] if len(args) > 2 else kwargs["training"]
            return value * torch.empty_like(value).bernoulli_(1 - p).div_(1 - p) if training and p else value
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made if isinstance(made, CardTensor) else CardTensor(made)
        return func(*args, **kwargs)


def _type_of(place: str | torch.device | Tensor) -> str:
    return (place.device if isinstance(place, Tensor) else torch.device(place)).type


class _Stream:
    def __init__(self, device: torch.device | None = None) -> None: ...

    def wait_stream(self, other: _Stream) -> None: ...


class _Graph:
    """What a step did while it was recorded, to be done again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._is_done = True  # Recording, which on a card does nothing yet, has been the first replay here.

    def replay(self) -> None:
        if self._is_done:
            self._is_done = False
            return
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def _record(graph: _Graph, **options: Any) -> Iterator[None]:
    global _recording
    _recording = graph.calls
    try:
        yield
    finally:
        _recording = None


@contextmanager
def pretended_card() -> Iterator[None]:
    """A machine with one card, for this thread and those started meanwhile."""
    generator, autocast, run = torch.Generator, torch.autocast, threading.Thread.run

    class Generator(generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return generator.__new__(cls)

    def run_with_card(self: threading.Thread) -> None:
        with _Card():
            run(self)

    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=0: "a pretended card",
        "Stream": _Stream,
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": _Graph,
        "graph": _record,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 2**20,
    }
    # Otherwise a module's parameters would keep their class when they are moved.
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch, _Card():
            for name, substitute in replaced.items():
                patch.setattr(torch.cuda, name, substitute)
            patch.setattr(torch, "Generator", Generator)
            patch.setattr(torch, "autocast", lambda device_type, *args, **kwargs: autocast("cpu", *args, **kwargs))
            patch.setattr(threading.Thread, "run", run_with_card)
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
