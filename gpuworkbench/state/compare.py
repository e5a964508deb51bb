"""Runs side by side: one summary each, the loss at equal steps, tokens or time, the keys that differ, the forks.

The app's compare screen and `gpuworkbench compare` show what these functions return. A loss means validation loss where
every run has one, else the training loss averaged over about ten steps (one batch's loss is mostly noise).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from gpuworkbench.config.diff import differing
from gpuworkbench.config.live_keys import LR_SCALE
from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.errors import WorkbenchError
from gpuworkbench.events.series import Floats, Points
from gpuworkbench.runs.create import newest_run_file
from gpuworkbench.runs.label import read_label
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.runs.store import forked_from, forks
from gpuworkbench.state.curves import By, curve, ema, first_at_or_below, on_axis
from gpuworkbench.state.lineage import Branch, family_tree
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.run_state import RunState
from gpuworkbench.text import safe_text

_STAMP = re.compile(r"^\d{8}-\d{6}-(?=.)")
MAX_RUNS = 8  # curves that can still be told apart
TRAIN_SMOOTHING = 0.9
LOSS_ROWS = 10
Metric = Literal["val", "train"]


class Compared(Struct, frozen=True, kw_only=True):
    """One run as it is compared. `problem` says why its log or configuration cannot be read, in one line."""

    paths: RunPaths
    state: RunState
    status: RunStatus
    config: RunConfig | None = None
    name: str = ""
    problem: str = ""

    @property
    def run_id(self) -> str:
        """The run's directory name."""
        return self.paths.run_id

    @property
    def title(self) -> str:
        """What a person calls it, else its id without the time; safe to print."""
        return safe_text(self.name or _STAMP.sub("", self.run_id), max_chars=120)


class Summary(Struct, frozen=True, kw_only=True):
    """One run's line. Losses are nats per token; unknown is None. `target_*`: where its loss first was the target's."""

    run_id: str
    name: str
    status: RunStatus
    step: int
    max_steps: int | None
    best_val_loss: float | None
    best_val_step: int | None
    last_val_loss: float | None
    last_loss: float | None
    mean_loss: float | None  # of the last steps, averaged as TRAIN_SMOOTHING says
    tokens: int | None
    elapsed_s: float | None
    tokens_per_s: float | None  # median over the run
    peak_memory_bytes: int | None
    peak_memory_of: str  # "card" or "host"
    target_step: int | None
    target_tokens: float | None
    target_elapsed_s: float | None
    simulated_card: str | None = None


class LossRow(Struct, frozen=True, kw_only=True):
    """The runs' losses at the same `x`, interpolated; None where a run has not come so far or not begun."""

    x: float
    losses: tuple[float | None, ...]


class Difference(Struct, frozen=True, kw_only=True):
    """A key whose values are not the same, in the order of the runs."""

    key: str
    values: tuple[Any, ...]


class Comparison(Struct, frozen=True, kw_only=True):
    """Everything about some runs, in the order they were named."""

    by: By
    metric: Metric
    target_loss: float | None
    runs: tuple[Summary, ...]
    losses: tuple[LossRow, ...]
    differences: tuple[Difference, ...]
    lineage: tuple[Branch, ...]


def load(paths: RunPaths) -> Compared:
    """A run as it is now. Raises RunError where its log is no log."""
    log = LiveLog(paths.events)
    try:
        return compared(paths, log.catch_up())
    finally:
        log.close()


def compared(paths: RunPaths, state: RunState, problem: str = "") -> Compared:
    """A run whose log has been taken in, with its status and configuration as they are now."""
    config = None
    try:
        path = newest_run_file(paths)
        config = build(parse_toml(read_config_file(path), str(path)), str(path))
    except WorkbenchError as error:
        problem = problem or error.line()
    status = derive_status(paths).status
    return Compared(
        paths=paths, state=state, status=status, config=config, name=read_label(paths).name, problem=problem
    )


def compare(
    runs: Sequence[Compared],
    by: By = "step",
    target_loss: float | None = None,
    branches: Sequence[Branch] | None = None,
) -> Comparison:
    """All tables. `target_loss`: what "time to a loss" asks for; by default the lowest loss that every run reached.

    `branches`: the `lineage`, where it is known already; else the run directories are read.
    """
    metric = common_metric(runs)
    target = default_target(runs, metric) if target_loss is None else target_loss
    return Comparison(
        by=by,
        metric=metric,
        target_loss=target,
        runs=tuple(summarise(run, metric, target) for run in runs),
        losses=tuple(loss_rows(runs, metric, by)),
        differences=tuple(config_differences(runs)),
        lineage=tuple(lineage(runs) if branches is None else branches),
    )


def common_metric(runs: Sequence[Compared]) -> Metric:
    """Validation loss where every run that has begun has one."""
    begun = [run for run in runs if len(run.state.series["loss"])]
    return "val" if begun and all(len(run.state.series["val_loss"]) for run in begun) else "train"


def losses_of(run: Compared, metric: Metric, by: By = "step") -> Points:
    """The curve that a metric means."""
    if metric == "val":
        return curve(run.state.series, "val_loss", by)
    return curve(run.state.series, "loss", by, TRAIN_SMOOTHING)


def default_target(runs: Sequence[Compared], metric: Metric) -> float | None:
    """The lowest loss that every run with a loss reached."""
    lowest = [float(points.y.min()) for run in runs if len(points := losses_of(run, metric))]
    return max(lowest, default=None)


def summarise(run: Compared, metric: Metric, target_loss: float | None) -> Summary:
    """One run's line of the table."""
    state = run.state
    series = state.series
    best, val, train = state.best_eval, series["val_loss"], series["loss"]
    step = None if target_loss is None else first_at_or_below(losses_of(run, metric), target_loss)
    is_on_card = state.device is not None and state.device.startswith("cuda")
    rates = series["tokens_per_s"].y
    return Summary(
        run_id=run.run_id,
        name=run.name,
        status=run.status,
        step=state.step,
        max_steps=state.max_steps,
        best_val_loss=best.loss if best else None,
        best_val_step=best.step if best else None,
        last_val_loss=float(val.y[-1]) if len(val) else None,
        last_loss=state.loss,
        mean_loss=float(ema(train, TRAIN_SMOOTHING)[-1]) if len(train) else None,
        tokens=state.tokens_seen,
        elapsed_s=state.elapsed_s if state.is_started else None,
        tokens_per_s=float(np.median(rates)) if len(rates) else None,
        peak_memory_bytes=state.peak_allocated_bytes if is_on_card else state.peak_host_rss_bytes,
        peak_memory_of="card" if is_on_card else "host",
        target_step=None if step is None else int(step),
        target_tokens=_placed(run, step, "tokens"),
        target_elapsed_s=_placed(run, step, "time"),
        simulated_card=state.simulated_card or (run.config.simulated_card if run.config else None),
    )


def loss_rows(runs: Sequence[Compared], metric: Metric, by: By, count: int = LOSS_ROWS) -> list[LossRow]:
    """Losses at `count` equal distances up to the furthest place that every run has come to, and at the very last."""
    curves = [losses_of(run, metric, by) for run in runs]
    begun = [points for points in curves if len(points)]
    if not begun:
        return []
    shared = min(float(points.x[-1]) for points in begun)
    furthest = max(float(points.x[-1]) for points in begun)
    places = {shared * number / count for number in range(1, count + 1)} | {furthest}
    if by == "step":
        places = {float(round(place)) for place in places}
    return [LossRow(x=x, losses=tuple(_interpolated(points, x) for points in curves)) for x in sorted(places)]


def config_differences(runs: Sequence[Compared]) -> list[Difference]:
    """Configured keys that are not the same, and the learning rate's factor where it was changed live."""
    found = [
        Difference(key=key, values=tuple(values)) for key, values in differing([run.config for run in runs]).items()
    ]
    scales = tuple(live_value(run.state, LR_SCALE, 1.0) for run in runs)
    if len(set(scales)) > 1:
        found.append(Difference(key=LR_SCALE, values=scales))
    return found


def live_value(state: RunState, key: str, configured: float) -> float:
    """A key's value now: the newest change in the log, else what is configured."""
    changes = (change.new for change in reversed(state.config_changes) if change.key == key)
    value = next(changes, configured)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else configured


def lineage(runs: Sequence[Compared]) -> list[Branch]:
    """The families of these runs, with what their directories hold beside them; empty where nothing is a fork."""
    known: dict[str, str] = {}
    for directory in dict.fromkeys(run.paths.root.parent for run in runs):
        known |= forks(directory)
    known |= {run.run_id: forked_from(run.paths) for run in runs}
    branches = family_tree([run.run_id for run in runs], known)
    return branches if any(branch.depth for branch in branches) else []


def _placed(run: Compared, step: float | None, by: By) -> float | None:
    if step is None:
        return None
    x = float(on_axis(run.state.series, np.array([step]), by)[0])
    return x if np.isfinite(x) else None


def _interpolated(points: Points, x: float) -> float | None:
    if not len(points) or x < points.x[0] or x > points.x[-1]:
        return None
    return float(np.interp(x, points.x, points.y))


def curve_pairs(points: Points) -> list[tuple[float, float]]:
    """Points as JSON has them."""
    columns: Floats = np.column_stack((points.x, points.y))
    return [(float(x), float(y)) for x, y in columns.tolist()]


def as_json(comparison: Comparison, runs: Sequence[Compared]) -> dict[str, Any]:
    """The tables and the kept points of the curves, as plain data."""
    table: dict[str, Any] = msgspec.to_builtins(comparison)
    by = comparison.by
    table["curves"] = [
        {name: curve_pairs(curve(run.state.series, name, by)) for name in ("loss", "val_loss", "predicted_loss")}
        for run in runs
    ]
    return table
