"""What training so many tokens takes: hours, energy, disk, each as a range, with where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.gpu.peak import peak_flops
from gpuworkbench.plan.analytic import Estimate
from gpuworkbench.plan.calibration import Calibration
from gpuworkbench.plan.phase_widths import product_bytes
from gpuworkbench.plan.step_cost import step_cost
from gpuworkbench.plan.targets import Target

UTILIZATIONS = (0.30, 0.55)  # of a card's published dense peak; what training reaches is in between
RATE_SPREAD = 0.1  # either side of the rates that finished runs reached
POWER_SHARES = (0.7, 1.0)  # of the card's power limit while it trains
REST_OF_MACHINE_W = (50.0, 120.0)  # processor, memory, power supply: assumed
TOKEN_FILE_BYTES = 2  # a token in a shard; 4 where the vocabulary is larger than 65,536

# Watts of the reference cards, from their maker's specifications.
_POWER_W: Mapping[str, float] = {
    "rtx 2060": 160, "rtx 2070": 175, "rtx 2080": 215, "rtx 2080 ti": 250,
    "rtx 3060": 170, "rtx 3060 ti": 200, "rtx 3070": 220, "rtx 3070 ti": 290, "rtx 3080": 320, "rtx 3080 ti": 350,
    "rtx 3090": 350, "rtx 3090 ti": 450,
    "rtx 4060": 115, "rtx 4060 ti": 160, "rtx 4070": 200, "rtx 4070 super": 220, "rtx 4070 ti": 285,
    "rtx 4070 ti super": 285, "rtx 4080": 320, "rtx 4080 super": 320, "rtx 4090": 450,
    "rtx 5060": 145, "rtx 5060 ti": 180, "rtx 5070": 250, "rtx 5070 ti": 300, "rtx 5080": 360, "rtx 5090": 575,
}  # fmt: skip


class TrainingCost(Struct, frozen=True, kw_only=True):
    """Ranges from the most favourable to the least. None: not known. `sources` says where each comes from."""

    tokens: int
    steps: int
    hours: tuple[float, float] | None
    kwh: tuple[float, float] | None
    disk_bytes: int
    sources: tuple[str, ...]


def training_cost(
    config: RunConfig, predicted: Estimate, target: Target, tokens: int, calibration: Calibration | None
) -> TrainingCost:
    """`tokens` training tokens of `config` on `target`."""
    steps = -(-tokens // config.tokens_per_step)
    hours, source = _hours(config, target, steps, calibration)
    kwh, power_source = _energy(target, hours)
    per_token = TOKEN_FILE_BYTES * (2 if config.model.vocab_size > 2**16 else 1)
    disk = predicted.disk_bytes + per_token * tokens
    disk_source = "disk: the checkpoints that are kept, and the tokens prepared once"
    return TrainingCost(
        tokens=tokens, steps=steps, hours=hours, kwh=kwh, disk_bytes=disk, sources=(source, power_source, disk_source)
    )


def _hours(
    config: RunConfig, target: Target, steps: int, calibration: Calibration | None
) -> tuple[tuple[float, float] | None, str]:
    if calibration is not None and calibration.flops_per_s is not None:
        flops = steps * config.tokens_per_step * config.model.flops_per_token(config.train_seq_len)
        low, high = calibration.flops_per_s
        source = f"time: the rates of {calibration.n_runs} finished runs on this device, 10 % either side"
        return (flops / (high * (1 + RATE_SPREAD)) / 3600, flops / (low * (1 - RATE_SPREAD)) / 3600), source
    width = product_bytes(config, target.kind)
    peak = peak_flops(target.card_name, "fp32" if width == 4 else "bf16") if target.kind == "cuda" else None
    if peak is None:
        what = "this host has finished no run yet" if target.kind == "cpu" else "this card's peak is not in the table"
        return None, f"time: not known, {what}"
    high, low = (step_cost(config, target.card_name, utilization=share).total_s for share in UTILIZATIONS)
    lowest, highest = (f"{share:.0%}" for share in UTILIZATIONS)
    source = f"time: {lowest} to {highest} of {peak / 1e12:.0f} TFLOP/s dense ({target.card_name}), not measured here"
    return (steps * low / 3600, steps * high / 3600), source


def _energy(target: Target, hours: tuple[float, float] | None) -> tuple[tuple[float, float] | None, str]:
    if hours is None:
        return None, "energy: not known without the time"
    limit_w = target.card.power_limit_w if target.card is not None else None
    where = "the card's power limit"
    if limit_w is None and target.card_name is not None:
        limit_w = _POWER_W.get(target.card_name.lower().removeprefix("nvidia ").removeprefix("geforce ").strip())
        where = "its maker's specification"
    if limit_w is None:
        return None, "energy: not known, no power limit is"
    low, high = (hours[side] * (limit_w * POWER_SHARES[side] + REST_OF_MACHINE_W[side]) / 1000 for side in range(2))
    shares = f"{POWER_SHARES[0]:.0%} to {POWER_SHARES[1]:.0%} of {limit_w:.0f} W ({where})"
    return (low, high), f"energy: {shares}, and {REST_OF_MACHINE_W[0]:.0f} to {REST_OF_MACHINE_W[1]:.0f} W for the rest"
