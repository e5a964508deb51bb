"""How long a step takes against another way to do the same step: from FLOPs and bytes, without a clock.

Only ratios of these seconds are shown. They assume a card's published peak and how much of it, of its memory and of
its PCI Express link training gets; each assumption is a constant here.
"""

from __future__ import annotations

from typing import NamedTuple

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_bytes
from gpuworkbench.gpu.peak import peak_flops
from gpuworkbench.plan.activation_bytes import activations
from gpuworkbench.plan.analytic import rows
from gpuworkbench.plan.phase_widths import product_bytes

REFERENCE_FLOPS = 112.6e12  # an RTX 5080, dense bf16
UTILIZATION = 0.45  # share of the peak that products and attention get, at large micro-batches
HALF_SPEED_ROWS = 256  # tokens of a micro-batch at which a card multiplies at half of that
LINK_BYTES_PER_S = 22e9  # PCI Express 4.0 x16, pinned memory, one direction
MEMORY_BYTES_PER_S = 700e9  # the card's own
RECOMPUTE_POINTWISE = 0.04  # norms and GELU again, as a share of a step


class StepCost(NamedTuple):
    """Seconds of one optimizer step by what takes them; transfers only as far as computing does not hide them."""

    compute_s: float
    update_s: float
    transfer_s: float

    @property
    def total_s(self) -> float:
        """The step."""
        return self.compute_s + self.update_s + self.transfer_s


def step_cost(
    config: RunConfig, card_name: str | None, kind: str = "cuda", *, utilization: float = UTILIZATION
) -> StepCost:
    """What a step of `config` costs on a card of that name (an RTX 5080 where it is not known)."""
    width = product_bytes(config, kind)
    peak = peak_flops(card_name, "fp32" if width == 4 else "bf16") or REFERENCE_FLOPS / (2 if width == 4 else 1)
    n_rows = rows(config)
    efficiency = utilization * n_rows / (n_rows + HALF_SPEED_ROWS)
    flops = config.model.flops_per_token(config.train_seq_len) * config.tokens_per_step * recompute_factor(config)
    compute_s = flops / (peak * efficiency)
    storage = storage_bytes(config)
    streamed = config.memory.optimizer_offload == "streamed"
    touched = 2 * storage.weights + storage.gradients + 2 * (storage.optimizer_state + storage.residual)
    update_s = touched / MEMORY_BYTES_PER_S
    per_micro_batch_s = compute_s / config.train.grad_accum_steps
    kept = activations(config, n_rows, width).host / LINK_BYTES_PER_S
    # Activations leave during forward (a third of the time) and come back during backward.
    hidden = per_micro_batch_s / 3
    transfer_s = max(kept - hidden, 0.0) * 2 * config.train.grad_accum_steps
    if streamed:  # both directions at once; nothing to hide behind but the update itself
        transfer_s += max(storage.host_state / LINK_BYTES_PER_S - update_s, 0.0)
    return StepCost(compute_s, update_s, transfer_s)


def recompute_factor(config: RunConfig) -> float:
    """FLOPs of a step over those without recompute: a whole extra forward pass is a third more."""
    memory = config.memory
    if memory.activation_checkpointing == "all":
        return 4 / 3
    if memory.activation_checkpointing == "every_n":
        return 1 + 1 / (3 * memory.activation_checkpointing_every)
    return 1 + RECOMPUTE_POINTWISE if memory.activation_checkpointing == "selective" else 1.0
