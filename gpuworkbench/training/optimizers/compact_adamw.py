"""AdamW on bf16 weights: computed in fp32 a piece at a time, kept in a small format, rounded at random.

The formats (memory/adam_formats.py): `Packed` after FlashOptim (arXiv 2602.23349), and plain bf16 with stochastic
rounding. Random rounding makes updates that are smaller than a step of the format add up, in expectation exactly; what
is drawn depends on (seed, step, parameter) alone, so a resumed run and an update in backward draw the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.optimizers import setting
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.memory.adam_formats import AdamFormat, Bf16, Packed, State
from gpuworkbench.memory.bits import join, split
from gpuworkbench.memory.noise import generator, random_bits
from gpuworkbench.memory.pieces import Piece, pieces
from gpuworkbench.memory.weights import Weights
from gpuworkbench.training.optimizers.adamw_step import adamw_
from gpuworkbench.training.optimizers.groups import Group, RoleParameter, groups_by_decay


class CompactAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) whose state is in `format`, with torch.optim.AdamW's arithmetic.

    State: `step` (fp32, on the host) and the format's tensors. `weights` reads and writes the values behind the bf16
    parameters.
    """

    def __init__(
        self,
        params: list[Group],
        lr: float,
        *,
        format: AdamFormat,
        seed: int,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.format = format
        self.seed = seed
        self.weights = PackedWeights(self) if isinstance(format, Packed) else Weights()
        self._index = {id(parameter): index for index, parameter in enumerate(self._parameters())}

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def state_of(self, parameter: Tensor) -> State:
        """The parameter's state, made where there is none yet."""
        state: State = self.state[parameter]
        if not state:
            state.update(self.format.fresh(parameter), step=torch.tensor(0.0))
        return state

    def make_state(self) -> None:
        """State for every parameter: it is there for all of them or for none."""
        for parameter in self._parameters():
            self.state_of(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is torch's interface and is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: Group) -> None:
        state = self.state_of(parameter)
        state["step"] += 1
        step = int(state["step"])
        source = generator(parameter.device, self.seed, step, self._index[id(parameter)])
        for piece in pieces(parameter.numel()):
            values = self.format.read(parameter, state, piece)
            noise = random_bits(values.weight, source)
            adamw_(values, piece.of(grad.contiguous()).to(torch.float32), step, group)
            self.format.write(parameter, state, piece, values, noise)


class PackedWeights(Weights):
    """The 24-bit values behind bf16 weights and their residuals."""

    def __init__(self, optimizer: CompactAdamW) -> None:
        self.optimizer = optimizer

    def read(self, parameter: Tensor) -> Tensor:
        """Weight and residual together, fp32, a copy."""
        state: State = self.optimizer.state.get(parameter, {})
        if not state:
            return super().read(parameter)
        return join(parameter.detach(), state["residual"])

    @torch.no_grad()
    def write(self, parameter: Tensor, value: Tensor) -> None:
        """Round to 24 bits, to nearest."""
        residual = self._residual(parameter)
        for piece in _pieces_of(parameter):
            weight, rest = split(piece.of(value.contiguous()))
            piece.of(parameter.detach()).copy_(weight)
            piece.of(residual).copy_(rest)

    def raw(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """The weight and its residual."""
        return parameter.detach(), self._residual(parameter)

    def _residual(self, parameter: Tensor) -> Tensor:
        self.optimizer.make_state()
        return self.optimizer.state_of(parameter)["residual"]


def _pieces_of(parameter: Tensor) -> Iterator[Piece]:
    return pieces(parameter.numel())


def build_packed(
    parameters: list[RoleParameter], config: OptimizerConfig, memory: MemoryConfig, seed: int
) -> CompactAdamW:
    """Packed AdamW over all parameters, decay on matrices only."""
    return _build(parameters, config, Packed(), seed)


def build_stochastic(
    parameters: list[RoleParameter], config: OptimizerConfig, memory: MemoryConfig, seed: int
) -> CompactAdamW:
    """AdamW in bf16 with stochastic rounding over all parameters, decay on matrices only."""
    return _build(parameters, config, Bf16(), seed)


def _build(parameters: list[RoleParameter], config: OptimizerConfig, format: AdamFormat, seed: int) -> CompactAdamW:
    return CompactAdamW(
        groups_by_decay(parameters, config, format.state),
        config.lr,
        format=format,
        seed=seed,
        betas=(float(setting(config, "beta1")), float(setting(config, "beta2"))),
        eps=float(setting(config, "eps")),
    )
