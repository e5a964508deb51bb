"""The hybrid panel's tables, for when it is large: reliability, choices, and the newest of what happened."""

from __future__ import annotations

from collections.abc import Sequence

from gpuworkbench.events.prediction_tally import N_BINS, Arm, PredictionTally
from gpuworkbench.events.schema import Correction, Divergence, MicroCorrection, Prediction
from gpuworkbench.state.lines import format_loss, one_line
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.rows import Part
from gpuworkbench.units import NOT_AVAILABLE, format_number

Rows = list[list[Part]]
MUTED = "$foreground-muted"
BAR_WIDTH = 10
NAME_CHARS = 16


def reliability(tally: PredictionTally) -> Rows:
    """How often jumps of a claimed probability were accepted; honest confidence has both columns alike."""
    score = format_number(tally.brier, 3)
    rows: Rows = [[("Reliability of the confidence", "bold"), f"  Brier score {score}", (" (0 is perfect)", MUTED)]]
    rows.append([(f"{'claimed':<11} {'accepted':<{BAR_WIDTH + 5}} {'of':>5}", MUTED)])
    for index, found in enumerate(tally.bins):
        low, high = index / N_BINS, (index + 1) / N_BINS
        claimed = f"{low:.1f} to {high:.1f}"
        observed = found.observed
        share = f"{observed:4.0%}" if observed is not None else f"{NOT_AVAILABLE:>4}"
        rows.append([(f"{claimed:<11} ", MUTED), (bar(observed, BAR_WIDTH), "$primary"), f" {share} {found.count:>5}"])
    return rows


def choices(arms: Sequence[Arm]) -> Rows:
    """What the bandit can choose from and what each choice brought; the most tried first."""
    rows: Rows = [[("Choices", "bold"), ("  gain: nats of probe loss per jump tried", MUTED)]]
    rows.append([(f"{'predictor':<{NAME_CHARS}} {'steps':>5} {'tried':>6} {'accepted':>9} {'gain':>9}", MUTED)])
    for arm in sorted(arms, key=lambda one: -one.tried):
        if arm.tried > 0:
            name = one_line(arm.predictor)[:NAME_CHARS]
            share = f"{arm.accepted / arm.tried:.0%}"
            gain = format_number(arm.mean_gain)
            rows.append([f"{name:<{NAME_CHARS}} {arm.horizon_steps:>5} {arm.tried:>6} {share:>9} {gain:>9}"])
    return rows


def predictions(events: Sequence[Prediction], count: int) -> Rows:
    """The newest first. `moved` is the norm of the jump, `cosine` its direction against the last steps'."""
    rows: Rows = [[("Predictions", "bold"), ("  losses of the probe batch before and after the jump", MUTED)]]
    head = (
        f"{'step':>7}  {'verdict':<9} {'predictor':<{NAME_CHARS}} {'steps':>5} {'conf':>5} {'before':>8} {'after':>8}"
    )
    rows.append([(f"{head} {'predicted':>9} {'moved':>8} {'cosine':>7}", MUTED)])
    for event in list(reversed(events))[: max(count, 1)]:
        verdict, style = ("accepted", "$text-success") if event.accepted else ("rejected", "$text-warning")
        gate = "*" if event.exploration else " "
        name = one_line(event.predictor)[:NAME_CHARS]
        numbers = (
            f" {event.horizon_steps:>5} {format_number(event.confidence, 2):>5}{gate}"
            f"{format_loss(event.probe_before):>7} {format_loss(event.probe_after):>8}"
            f" {format_loss(event.predicted_loss):>9}"
            f" {format_number(event.delta_norm, 3):>8} {format_number(event.cosine, 2):>7}"
        )
        rows.append([(f"{event.step:>7}  ", MUTED), (f"{verdict:<9}", style), f" {name:<{NAME_CHARS}}", numbers])
    if any(event.exploration for event in events):
        rows.append([("* exploring: the confidence gate was open", MUTED)])
    return rows


def corrections(events: Sequence[Correction | MicroCorrection], count: int) -> Rows:
    """True losses beside what had been predicted, the newest first."""
    rows: Rows = [[("Corrections", "bold"), ("  true steps after and within jumps", MUTED)]]
    head = f"{'step':>7}  {'kind':<9} {'measured':>9} {'predicted':>9} {'error':>8} {'residual':>9}"
    rows.append([(head, MUTED)])
    for event in list(reversed(events))[: max(count, 1)]:
        kind = "full" if isinstance(event, Correction) else "micro"
        error = None
        if event.actual_loss is not None and event.predicted_loss is not None:
            error = event.actual_loss - event.predicted_loss
        numbers = (
            f"  {kind:<9} {format_loss(event.actual_loss):>9} {format_loss(event.predicted_loss):>9}"
            f" {format_number(error, 4):>8} {format_number(event.residual_norm, 3):>9}"
        )
        undone: Part = ("  rolled back", "$text-warning") if event.rolled_back else ""
        rows.append([(f"{event.step:>7}", MUTED), numbers, undone])
    return rows


def divergences(events: Sequence[Divergence], count: int) -> Rows:
    """What the monitor saw and did, the newest first."""
    rows: Rows = [[("Divergence", "bold")]]
    for event in list(reversed(events))[: max(count, 1)]:
        seen = f"{one_line(event.signal)} {format_number(event.value, 3)} over {format_number(event.threshold, 3)}"
        words = f"  {one_line(event.level)}: {seen}; {one_line(event.action)}"
        rows.append([(f"{event.step:>7}", MUTED), (words, "$text-warning")])
    return rows
