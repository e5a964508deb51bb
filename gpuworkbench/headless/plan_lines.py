"""A plan as lines of text: a waterfall with bars, the verdict, what it takes beside the card, other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpuworkbench.plan.analytic import Verdict
from gpuworkbench.plan.report import Plan
from gpuworkbench.plan.training_cost import TrainingCost
from gpuworkbench.plan.waterfall import TOTAL, ascii_bar, bar, rows
from gpuworkbench.text import safe_text
from gpuworkbench.units import format_bytes, format_count, format_duration

LABEL_WIDTH = 17
VALUE_WIDTH = 11
MAX_BAR = 44
MOMENTS = {
    "loss": "while the loss of a micro-batch is computed",
    "backward": "at the beginning of a micro-batch's backward pass",
    "end of backward": "at the end of a backward pass",
    "update": "while the optimizer updates the weights",
    "validation": "in a validation",
    "jump": "while a jump is made and judged",
    "step": "in an optimizer step",
}
TIERS = {
    "analytic": "from formulas (--tier trace runs the step on tensors without memory, --tier probe measures it)",
    "trace": "from a step traced on tensors without memory",
    "probe": "measured in two real steps",
}


def plan_lines(plan: Plan, width: int, *, is_unicode: bool = True) -> list[str]:
    """Everything about a plan but the table of other ways."""
    draw = bar if is_unicode else ascii_bar
    return [*_head(plan), "", *_waterfall(plan, width, draw), "", *_verdict(plan), *_beside(plan), *_end(plan)]


def _head(plan: Plan) -> Iterator[str]:
    config = plan.config
    shape = f"{config.train.micro_batch_size} x {config.train_seq_len} x {config.train.grad_accum_steps}"
    n_params = format_count(plan.estimate.n_params)
    yield f"{safe_text(config.label)}: {n_params} parameters, {config.tokens_per_step:,} tokens a step ({shape})"
    capped = config.simulated_card if plan.target.kind == "cuda" else None
    yield f"planned for {plan.target.label}{f', capped: {capped}' if capped else ''}"


def _waterfall(plan: Plan, width: int, draw: Callable[[float | None, int], str]) -> Iterator[str]:
    is_cuda = plan.target.kind == "cuda"
    room = max(min(width - LABEL_WIDTH - VALUE_WIDTH - 8, MAX_BAR), 8)
    limit = plan.target.limit_bytes
    for row in rows(plan.estimate, is_cuda=is_cuda, limit_bytes=limit):
        share = f"{row.share:6.1%}" if row.label != TOTAL or limit else ""
        yield f"{row.label:<{LABEL_WIDTH}}{draw(row.share, room)} {format_bytes(row.num_bytes):>{VALUE_WIDTH}} {share}"


def _verdict(plan: Plan) -> Iterator[str]:
    where = "on the card" if plan.target.kind == "cuda" else "free on this host"
    limit = plan.target.limit_bytes
    against = f" of {format_bytes(limit)} {where}" if limit is not None else ""
    yield f"{plan.verdict.label.upper()}: {format_bytes(plan.needed_bytes)}{against}"
    for short in plan.shortages:
        if short.what != "card memory":
            needed, there = format_bytes(short.needed_bytes), format_bytes(short.limit_bytes)
            yield f"  {short.what}: {needed} are needed, {there} are here"


def _beside(plan: Plan) -> Iterator[str]:
    predicted = plan.estimate
    yield f"at its highest {MOMENTS.get(predicted.moment, predicted.moment)}"
    if predicted.predict_bytes is not None:
        process = 0 if plan.target.kind == "cuda" else predicted.host_bytes - predicted.total_bytes
        there = predicted.predict_bytes + process  # what the total above counts
        less = 1 - there / max(plan.needed_bytes, 1)
        change = f"{abs(less):.0%} {'less' if less >= 0 else 'more'}"
        yield f"while a jump is predicted: {format_bytes(there)} ({change})"
    pinned = f", {format_bytes(predicted.pinned_bytes)} of it pinned" if predicted.pinned_bytes else ""
    saved = predicted.disk_bytes - predicted.undo_disk_bytes
    undo = f", undo {format_bytes(predicted.undo_disk_bytes)} on disk" if predicted.undo_disk_bytes else ""
    yield f"host memory {format_bytes(predicted.host_bytes)}{pinned}; checkpoints {format_bytes(saved)}{undo}"


def _end(plan: Plan) -> Iterator[str]:
    if plan.cost is not None:
        yield ""
        yield from _cost(plan.cost)
    yield ""
    calibration = plan.calibration
    if calibration is not None and plan.tier != "probe":
        runs = "1 finished run" if calibration.n_runs == 1 else f"{calibration.n_runs} finished runs"
        of = "" if calibration.is_same_storage else ", none of which stores its state this way"
        yield f"corrected by x{calibration.factor:.3f}: measured over predicted of {runs} on this device{of}"
    yield f"tier {plan.tier}: {TIERS[plan.tier]}"
    yield from plan.notes
    if plan.verdict is Verdict.TIGHT:
        yield "tight: beyond 92 % of the memory it depends on how the allocator fragments"


def _cost(cost: TrainingCost) -> Iterator[str]:
    hours = "n/a" if cost.hours is None else " to ".join(format_duration(each * 3600) for each in cost.hours)
    kwh = "n/a" if cost.kwh is None else f"{_number(cost.kwh[0])} to {_number(cost.kwh[1])} kWh"
    disk = format_bytes(cost.disk_bytes)
    yield f"{format_count(cost.tokens)} tokens, {cost.steps:,} steps: {hours}; {kwh}; disk {disk}"
    yield from (f"  {source}" for source in cost.sources)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
