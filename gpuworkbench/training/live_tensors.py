"""The tensors that are in memory when it is full, by name and size, the largest first.

Parameters, gradients and optimizer state are known by name. What the failed call held is found in the frames of its
exception, and what backward would have needed in the autograd graph behind those tensors; equal ones are counted
together. Nothing here allocates memory on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpuworkbench.events.schema import LiveTensor

MAX_GRAPH_NODES = 50_000
MOST = 8  # of each report


class _Found(NamedTuple):
    kind: str
    name: str
    tensor: Tensor


def largest(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    error: BaseException,
    *,
    reads_graph: bool = True,
    most: int = MOST,
) -> tuple[LiveTensor, ...]:
    """The largest tensors, equal ones in one entry, by the bytes of the entry.

    `reads_graph` False where saved tensors are recomputed or fetched when looked at (checkpointing, offload).
    """
    entries: dict[tuple[Any, ...], list[int]] = {}
    for found, num_bytes in _each_once(model, optimizer, error, reads_graph=reads_graph):
        is_named = found.kind in ("parameter", "gradient", "optimizer state")
        key = (found.kind, found.name, tuple(found.tensor.shape), str(found.tensor.dtype).removeprefix("torch."))
        entries.setdefault((*key, len(entries)) if is_named else key, []).append(num_bytes)
    ranked = sorted(entries.items(), key=lambda item: -sum(item[1]))
    return tuple(
        LiveTensor(kind=kind, name=name, shape=shape, dtype=dtype, num_bytes=sum(sizes), count=len(sizes))
        for (kind, name, shape, dtype, *_), sizes in ranked[:most]
    )


def _each_once(
    model: nn.Module, optimizer: torch.optim.Optimizer, error: BaseException, *, reads_graph: bool
) -> Iterator[tuple[_Found, int]]:
    """Every storage once, under the first name it has."""
    seen: set[int] = set()
    held = list(_in_frames(error.__traceback__))
    roots = [found.tensor for found in held]
    for found in (*_named(model, optimizer), *(_in_graph(roots) if reads_graph else ()), *held):
        storage = found.tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        if num_bytes and address not in seen:
            seen.add(address)
            yield found, num_bytes


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[_Found]:
    for name, parameter in model.named_parameters():
        yield _Found("parameter", name, parameter.detach())
        if parameter.grad is not None:
            yield _Found("gradient", name, parameter.grad)
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield _Found("optimizer state", f"{key} of {name}", value)
    for name, buffer in model.named_buffers():
        yield _Found("buffer", name, buffer)


def _in_frames(trace: TracebackType | None) -> Iterator[_Found]:
    """Local variables of the failed call, the innermost first: what was being computed."""
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        for name, value in frame.f_locals.items():
            if _is_plain(value):
                yield _Found("in use", f"{name} in {frame.f_code.co_name}", value)


def _in_graph(roots: Iterable[Tensor]) -> Iterator[_Found]:
    """What each operation behind `roots` keeps for its backward pass."""
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(waiting)
    while waiting and len(seen) < MAX_GRAPH_NODES:
        node = waiting.pop()
        for name, tensor in _saved(node):
            yield _Found("activation", f"{name} of {node.name().removesuffix('Backward0')}", tensor)
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        waiting.extend(following)


def _saved(node: Any) -> Iterator[tuple[str, Tensor]]:
    for attribute in dir(node):
        if attribute.startswith("_saved_") or attribute == "saved_tensors":
            try:
                value = getattr(node, attribute)
            except RuntimeError:  # backward has freed it already
                continue
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if _is_plain(tensor):
                    yield attribute.removeprefix("_saved_"), tensor


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with memory of its own to speak of."""
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type != "meta"
