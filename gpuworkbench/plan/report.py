"""A whole plan: the prediction, what it is held against, the verdict, other ways; and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.analytic import Estimate, Verdict
from gpuworkbench.plan.calibration import Calibration
from gpuworkbench.plan.fit_me import Alternative, alternatives
from gpuworkbench.plan.judge import Shortage, judge, shortages
from gpuworkbench.plan.targets import WSL_PINNED_BYTES, Target
from gpuworkbench.plan.training_cost import TrainingCost, training_cost
from gpuworkbench.units import format_bytes


class Plan(Struct, frozen=True, kw_only=True):
    """Everything that `gpuworkbench plan` says. Predicted; with the tiers trace and probe traced or measured."""

    config: RunConfig
    target: Target
    tier: str
    estimate: Estimate
    verdict: Verdict
    shortages: tuple[Shortage, ...]
    alternatives: tuple[Alternative, ...]
    calibration: Calibration | None
    cost: TrainingCost | None
    notes: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Where the run computes: the card's, or the whole process's."""
        return self.estimate.total_bytes if self.target.kind == "cuda" else self.estimate.host_bytes


def make_plan(
    config: RunConfig,
    target: Target,
    predicted: Estimate,
    *,
    tier: str = "analytic",
    calibration: Calibration | None = None,
    wants_alternatives: bool = False,
    tokens: int | None = None,
    is_wsl: bool = False,
    notes: Sequence[str] = (),
) -> Plan:
    """Put the plan together; other ways are looked for where it does not fit, or where they are wanted.

    `config` has a known vocabulary. `calibration` corrects what formulas and traces say, not what was probed.
    """
    if calibration is not None and tier != "probe":
        predicted = calibrated(predicted, calibration, target.kind)
    found = judge(predicted, target)
    ways = alternatives(config, target) if wants_alternatives or found is Verdict.DOES_NOT_FIT else []
    said = list(notes)
    if is_wsl and predicted.pinned_bytes > WSL_PINNED_BYTES:
        said.append(
            f"WSL2 may refuse {format_bytes(predicted.pinned_bytes)} of pinned memory: transfers then go through "
            "pageable memory, and take longer"
        )
    return Plan(
        config=config,
        target=target,
        tier=tier,
        estimate=predicted,
        verdict=found,
        shortages=tuple(shortages(predicted, target)),
        alternatives=tuple(ways),
        calibration=calibration,
        cost=None if tokens is None else training_cost(config, predicted, target, tokens, calibration),
        notes=tuple(said),
    )


def calibrated(predicted: Estimate, calibration: Calibration, kind: str) -> Estimate:
    """The estimate times what runs here took over what was predicted for them; the difference is the workspace's."""
    before = predicted.allocator_bytes if kind == "cuda" else predicted.host_bytes
    more = calibration.apply(before) - before
    parts = dict(predicted.parts)
    moved = max(more, -sum(parts.values()))
    parts["workspace"] = parts.get("workspace", 0) + moved
    if parts["workspace"] < 0:  # spread over everything that the formulas count
        scale = calibration.factor
        parts = {
            name: size if name == "CUDA context" else round(size * scale) for name, size in predicted.parts.items()
        }
    total = sum(parts.values())
    host = predicted.host_bytes + (0 if kind == "cuda" else total - predicted.total_bytes)
    jump = predicted.predict_bytes
    if jump is not None:
        counted = jump + before - predicted.total_bytes
        jump = max(jump + calibration.apply(counted) - counted, 0)
    return msgspec.structs.replace(predicted, parts=parts, total_bytes=total, host_bytes=host, predict_bytes=jump)


def as_json(plan: Plan) -> dict[str, Any]:
    """What `plan --json` prints. `total_bytes` and `parts` are where the run computes."""
    predicted = plan.estimate
    return {
        "preset": plan.config.label,
        "verdict": plan.verdict.value,
        "total_bytes": predicted.total_bytes,
        "limit_bytes": plan.target.limit_bytes,
        "parts": dict(predicted.parts),
        "alternatives": [msgspec.to_builtins(each) | {"flags": each.flags} for each in plan.alternatives],
        "host_bytes": predicted.host_bytes,
        "pinned_bytes": predicted.pinned_bytes,
        "disk_bytes": predicted.disk_bytes,
        "undo_disk_bytes": predicted.undo_disk_bytes,
        "kind": plan.target.kind,
        "target": plan.target.label,
        "simulated_card": plan.config.simulated_card,
        "tier": plan.tier,
        "n_params": predicted.n_params,
        "moment": predicted.moment,
        "moments": dict(predicted.moments),
        "predict_bytes": predicted.predict_bytes,
        "shortages": msgspec.to_builtins(plan.shortages),
        "calibration": msgspec.to_builtins(plan.calibration),
        "cost": msgspec.to_builtins(plan.cost),
        "notes": list(plan.notes),
    }
