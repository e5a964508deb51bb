"""AdamW in fp32 whose state lives on the host and passes through the device a bucket at a time.

On the host: m and v, and the fp32 masters where the weights are bf16. All of them lie in one arena, each parameter's
at a multiple of 64 elements, cut into buckets of memory.offload_bucket_mib. While one bucket is computed on, the next
comes in and the last goes back (memory/conveyor.py). The arithmetic is that of torch.optim.AdamW(foreach=False), bit
for bit, whatever the bucket's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.optimizers import setting
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.config.storage import FP32_BYTES, STAGING_SLOTS, UPDATE_ELEMENTS, aligned, bucket_elements
from gpuworkbench.memory.adam_formats import Values
from gpuworkbench.memory.conveyor import Conveyor, Range
from gpuworkbench.memory.host_arena import HostArena
from gpuworkbench.memory.weights import Weights
from gpuworkbench.training.optimizers.adamw_step import adamw_
from gpuworkbench.training.optimizers.groups import Group, RoleParameter, groups_by_decay

ROWS = ("exp_avg", "exp_avg_sq", "master")  # of the arena; the last where the weights are bf16


class Slice(NamedTuple):
    """Elements `start` to `stop` of a parameter, at `at` within their bucket."""

    parameter: nn.Parameter
    group: Group
    start: int
    stop: int
    at: int


class StreamedAdamW(torch.optim.Optimizer):
    """State by parameter: `step` (fp32), and views of the arena. Call `settle` before they are read or written.

    `prefetch` begins the transfers of the next `step`. `refusal` says why the arena is not pinned, where it is not.
    """

    def __init__(
        self,
        params: list[Group],
        lr: float,
        *,
        bucket: int,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """`bucket`: parameters whose state travels together."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        placed = list(self._placed())
        device = placed[0][1].device
        has_masters = placed[0][1].dtype != torch.float32
        size = placed[-1][2] + aligned(placed[-1][1].numel())
        rows = len(ROWS) if has_masters else len(ROWS) - 1
        self.arena = HostArena(rows * size * FP32_BYTES, device)
        self.host = self.arena.memory.view(torch.float32).view(rows, size)
        ranges = [Range(start, min(start + bucket, size)) for start in range(0, size, bucket)]
        self.conveyor = Conveyor(self.host, ranges, min(STAGING_SLOTS, len(ranges)), device)
        self.buckets = [list(self._slices(each)) for each in ranges]
        self.weights = MasterWeights(self) if has_masters else BesideState(self)

    def _placed(self) -> Iterator[tuple[Group, nn.Parameter, int]]:
        """Every parameter with its place in the arena."""
        at = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter, at
                at += aligned(parameter.numel())

    def _slices(self, bucket: Range) -> Iterator[Slice]:
        for group, parameter, at in self._placed():
            start, stop = max(bucket.start - at, 0), min(bucket.stop - at, parameter.numel())
            if start < stop:
                yield Slice(parameter, group, start, stop, at + start - bucket.start)

    @property
    def refusal(self) -> str:
        """Why the host memory is not pinned for the card; empty where it is, and on a CPU."""
        is_on_card = self.conveyor.staging.device.type == "cuda"
        return "the driver refuses" if is_on_card and not self.arena.is_pinned else ""

    @torch.no_grad()
    def make_state(self) -> None:
        """State for every parameter where there is none: moments of zero, masters as the weights are."""
        if self.state:
            return
        self.settle()
        self.host.zero_()
        for _, parameter, at in self._placed():
            views = {
                key: row[at : at + parameter.numel()].view(parameter.shape)
                for key, row in zip(ROWS, self.host, strict=False)
            }
            if "master" in views:
                views["master"].copy_(parameter)
            self.state[parameter] = {"step": torch.tensor(0.0), **views}

    def settle(self) -> None:
        """Return when the arena holds the state as it is, and nothing is on its way."""
        self.conveyor.settle()

    def damp_moments(self, factor: float) -> None:
        """Multiply both moments by `factor`; masters stay."""
        self.settle()
        if self.state:
            self.host[:2].mul_(factor)

    def prefetch(self) -> None:
        """Begin to bring in the first buckets of the next step."""
        self.make_state()
        for number in range(self.conveyor.staging.shape[0]):
            self.conveyor.fetch(number)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is torch's interface and is not used."""
        self.prefetch()
        for _, parameter, _ in self._placed():
            if parameter.grad is not None:
                self.state[parameter]["step"] += 1
        ahead = self.conveyor.staging.shape[0]
        for number, bucket in enumerate(self.buckets):
            rows = self.conveyor.take(number)
            for part in bucket:
                if part.parameter.grad is not None:
                    self._update(part, part.parameter.grad, rows)
            self.conveyor.give_back(number)
            if number + ahead < len(self.buckets):
                self.conveyor.fetch(number + ahead)

    def _update(self, part: Slice, grad: Tensor, rows: Tensor) -> None:
        """A slice, in pieces that bound the temporaries."""
        step = int(self.state[part.parameter]["step"])
        weight, flat = part.parameter.view(-1), grad.reshape(-1)
        for start in range(part.start, part.stop, UPDATE_ELEMENTS):
            stop = min(start + UPDATE_ELEMENTS, part.stop)
            at = part.at + start - part.start
            staged = rows[:, at : at + stop - start]
            target = weight[start:stop]
            value = staged[2] if len(staged) > 2 else target
            adamw_(Values(value, staged[0], staged[1]), flat[start:stop].to(torch.float32), step, part.group)
            if value is not target:
                target.copy_(value)


class BesideState(Weights):
    """fp32 weights that are held as they are. Who copies them to undo something copies the optimizer's state too."""

    def __init__(self, optimizer: StreamedAdamW) -> None:
        self.optimizer = optimizer

    def raw(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """The parameter, once the state is where it belongs."""
        self.optimizer.settle()
        return super().raw(parameter)


class MasterWeights(BesideState):
    """The fp32 masters of bf16 weights."""

    def _master(self, parameter: Tensor) -> Tensor:
        self.optimizer.settle()
        self.optimizer.make_state()
        master: Tensor = self.optimizer.state[parameter]["master"]
        return master

    def read(self, parameter: Tensor) -> Tensor:
        """The master, where the parameter is: on a CPU a view of it, so do not write to it."""
        return self._master(parameter).to(parameter.device)

    @torch.no_grad()
    def write(self, parameter: Tensor, value: Tensor) -> None:
        """Exact in the master, rounded to nearest in the weight."""
        self._master(parameter).copy_(value)
        parameter.copy_(value)

    def raw(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """The weight, and the master on the host."""
        return parameter.detach(), self._master(parameter)


def build(parameters: list[RoleParameter], config: OptimizerConfig, memory: MemoryConfig, seed: int) -> StreamedAdamW:
    """Streamed AdamW over all parameters, decay on matrices only."""
    state = "master_adam" if memory.weights == "bf16" else "adam"
    return StreamedAdamW(
        groups_by_decay(parameters, config, state),
        config.lr,
        bucket=bucket_elements(memory),
        betas=(float(setting(config, "beta1")), float(setting(config, "beta2"))),
        eps=float(setting(config, "eps")),
    )
