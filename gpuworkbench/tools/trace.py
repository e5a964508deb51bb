"""The trace tier of the planner: `python -m gpuworkbench.tools.trace KIND < run.toml`, one JSON object on stdout.

The run's own model, strategies and optimizer do one real step on fake CPU tensors (shapes without memory), and torch's
MemTracker adds up every storage that is alive. Nothing is computed, so a model of any size is traced in the same few
hundred MB. KIND is cuda or cpu: what a card's autocast does otherwise than a CPU's (norms in fp32) is done here too.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml
from gpuworkbench.errors import UsageError, WorkbenchError
from gpuworkbench.plan.analytic import heaviest_phase
from gpuworkbench.plan.phase_widths import product_bytes
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.tools.step_rig import StepRig
from gpuworkbench.training.optimizers.compact_adamw import CompactAdamW
from gpuworkbench.training.optimizers.groups import Group

CPU = torch.device("cpu")
# MemTracker's words for what a storage is -> ours
_NAMES = {
    "Parameter": "weights",
    "Buffer": "weights",
    "Gradient": "gradients",
    "Optstate": "optimizer state",
    "Activation": "activations",
    "Temp": "temporaries",
    "Other": "other",
}


class Traced(msgspec.Struct, frozen=True):
    """Bytes of tensors at the peak of an optimizer step, by part, and how long finding out took."""

    total_bytes: int
    parts: dict[str, int]
    seconds: float


def trace(config: RunConfig, kind: str) -> Traced:
    """One optimizer step of `config` on fake tensors, in the phase whose steps take most. Its vocabulary must be known.
    Raises UsageError."""
    if config.memory.activation_offload:
        raise UsageError(
            "a trace does not follow memory.activation_offload, which copies values",
            "use --tier analytic, or --tier probe where the card is",
        )
    started = time.perf_counter()
    config = traceable(config)
    with FakeTensorMode(), card_norms() if kind == "cuda" else nullcontext():
        name = "bf16" if product_bytes(config, kind, heaviest_phase(config, kind)) == 2 else "fp32"
        tracker = WholeTracker()
        # One micro-batch is enough, and this takes seconds: what earlier ones leave behind is put there.
        rig = StepRig(config, CPU, name, n_micro_batches=1, on_micro_batch=tracker.reset_mod_stats)
        make_state(rig)
        update_one_of_each_size(rig)
        tracker.track_external(rig.model, rig.optimizer, *rig.gradients())
        table = rig.model.head_weight.shape
        in_place = GradientsAddInPlace(() if config.memory.chunked_cross_entropy else tuple(table))
        with warnings.catch_warnings(), tracker, in_place:
            # the tracker's, of gradients that an update in backward has freed
            warnings.filterwarnings("ignore", "Expected a tensor or a traceable wrapper", UserWarning)
            rig.step()
        peak = tracker.get_tracker_snapshot("peak")[CPU]
    parts: dict[str, int] = {}
    for name, num_bytes in peak.items():
        if name != "Total" and num_bytes:
            ours = _NAMES.get(str(getattr(name, "value", name)), "other")
            parts[ours] = parts.get(ours, 0) + num_bytes
    if config.memory.optimizer_offload == "streamed":  # its masters and moments are host memory on a card
        del parts["optimizer state"]
    return Traced(sum(parts.values()), parts, time.perf_counter() - started)


def traceable(config: RunConfig) -> RunConfig:
    """`config` without what needs values (clipping decides by the norm, and works in place) or a compiler."""
    replace = msgspec.structs.replace
    train = replace(config.train, grad_clip_norm=0.0, init_from="", threads=1, max_steps=1)
    return replace(config, train=train, device=replace(config.device, compile="off"))


def make_state(rig: StepRig) -> None:
    """The optimizer's state, by one update with gradients that nobody computed, unless it can be made without one.

    Then, where there are several micro-batches a step, the gradients of those before.
    """
    for parameter in rig.model.parameters():
        parameter.grad = torch.empty_like(parameter, dtype=getattr(parameter, "grad_dtype", None) or parameter.dtype)
    if isinstance(rig.optimizer, CompactAdamW):
        rig.optimizer.make_state()
    else:
        rig.optimizer.step()
    if rig.config.train.grad_accum_steps == 1:
        rig.optimizer.zero_grad(set_to_none=True)


def update_one_of_each_size(rig: StepRig) -> None:
    """Let a small AdamW update only the first parameter of each size: what an update takes besides depends on nothing
    else and is gone after it, and all of them, piece by piece on fake tensors, take minutes for a model of 1B.

    Not for updates in backward, where what else is there differs from one to the next.
    """
    optimizer = rig.optimizer
    if not isinstance(optimizer, CompactAdamW) or rig.config.memory.optimizer_in_backward:
        return
    update, sizes = optimizer._update, set[int]()

    def first_of_its_size(parameter: Tensor, grad: Tensor, group: Group) -> None:
        if parameter.numel() not in sizes:
            sizes.add(parameter.numel())
            update(parameter, grad, group)

    optimizer._update = first_of_its_size  # type: ignore[method-assign]


class WholeTracker(MemTracker):
    """MemTracker without its peaks of each module, which nobody asks for and which take two thirds of its time."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        modules, self.memory_tracking = self.memory_tracking, self.no_modules
        super()._update_peak_stats(peak_state)
        self.memory_tracking = modules

    no_modules: Any = WeakIdKeyDictionary()


class GradientsAddInPlace(TorchDispatchMode):
    """Autograd adds the gradients of a tensor's several uses in place, but not those of tensors like the fake ones.

    `apart`: the shape whose sum is a tensor of its own in real steps too: the table's where the loss is the plain one,
    as torch's profiler counts it (tests/training/test_plan_measured.py).
    """

    def __init__(self, apart: tuple[int, ...]) -> None:
        super().__init__()
        self.apart = apart

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_sum = func is torch.ops.aten.add.Tensor and not kwargs
        if is_sum and _in_backward() and all(isinstance(each, Tensor) for each in args):
            total, more = args
            if total.shape == more.shape and total.dtype == more.dtype and tuple(total.shape) != self.apart:
                return total.add_(more)
        return func(*args, **(kwargs or {}))


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


@contextmanager
def card_norms() -> Iterator[None]:
    """Layer norms as autocast on a card computes them: in fp32, whatever comes in (a CPU's keeps bf16)."""
    original = nn.LayerNorm.forward

    def forward(self: nn.LayerNorm, input: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return original(self, input)
        weight, bias = (None if each is None else each.float() for each in (self.weight, self.bias))
        return nn.functional.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)

    nn.LayerNorm.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.LayerNorm.forward = original  # type: ignore[method-assign]


def main(arguments: list[str]) -> int:
    """Trace the configuration on stdin; returns the exit code."""
    kind = arguments[0] if arguments else "cuda"
    try:
        config = with_known_vocabulary(build(parse_toml(sys.stdin.buffer.read(), "stdin"), "stdin"))
        if config is None:
            raise UsageError("the vocabulary is unknown", "set model.vocab_size")
        answer = trace(config, kind)
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
