"""What can be sampled from: runs that have a checkpoint, and the checkpoints of a run with their validation loss."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuworkbench.errors import RunError, WorkbenchError
from gpuworkbench.launch.resume import run_config
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import RunInfo, list_runs, run_info
from gpuworkbench.state.lines import format_loss
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.text import safe_text

INTERVAL_S = 2.0
MAX_NAME_CHARS = 60


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint and the run's last validation at or before it."""

    step: int
    val_loss: float | None = None
    val_step: int | None = None
    is_best: bool = False

    @property
    def words(self) -> str:
        """One line of a list."""
        if self.val_step is None:
            return f"step {self.step}"
        at = "" if self.val_step == self.step else f" (at {self.val_step})"
        return f"step {self.step}, val {format_loss(self.val_loss)}{at}{' best' if self.is_best else ''}"


@dataclass(frozen=True, slots=True)
class Choices:
    """`runs`: path and name of each run with a checkpoint, and of those that are shown; the rest by path."""

    runs: tuple[tuple[str, str], ...]
    checkpoints: Mapping[str, tuple[CheckpointRow, ...]]  # newest first
    prompts: Mapping[str, str]


class ChoicesSource:
    """The source of `Choices` for a `Watcher`, about every two seconds. Logs are read on from where they were."""

    def __init__(self, runs_dir: Path, shown: tuple[RunPaths, ...]) -> None:
        self._runs_dir = runs_dir
        self._shown = shown
        self._logs: dict[RunPaths, LiveLog] = {}

    def __call__(self, stop: threading.Event) -> Iterator[Choices]:
        """Choices until `stop`; the first at once, without losses."""
        prompts = {str(paths.root): _prompt(paths) for paths in self._shown}
        try:
            yield self._read(prompts, {})
            while not stop.is_set():
                started_s = time.monotonic()
                yield self._read(prompts, {paths: self._losses(paths, stop) for paths in self._shown})
                stop.wait(max(INTERVAL_S, 10 * (time.monotonic() - started_s)))
        finally:
            for log in self._logs.values():
                log.close()

    def _read(self, prompts: Mapping[str, str], losses: Mapping[RunPaths, dict[int, float | None]]) -> Choices:
        runs = {info.path: _name(info) for info in list_runs(self._runs_dir) if info.last_checkpoint_step is not None}
        for paths in self._shown:
            if str(paths.root) not in runs:
                runs[str(paths.root)] = _name(run_info(paths))
        rows = {str(paths.root): checkpoint_rows(paths, losses.get(paths, {})) for paths in self._shown}
        return Choices(tuple(runs.items()), rows, prompts)

    def _losses(self, paths: RunPaths, stop: threading.Event) -> dict[int, float | None]:
        try:
            log = self._logs.get(paths) or LiveLog(paths.events)
            self._logs[paths] = log
            while not stop.is_set() and log.poll().lines:
                pass
        except RunError:
            return {}
        return {event.step: event.loss for event in log.state().evals}


def checkpoint_rows(paths: RunPaths, losses: Mapping[int, float | None]) -> tuple[CheckpointRow, ...]:
    """The run's checkpoints, newest first; `losses`: validation loss by step."""
    rows = []
    for reference in list_checkpoints(paths):
        step = max((at for at in losses if at <= reference.step), default=None)
        rows.append(CheckpointRow(reference.step, None if step is None else losses[step], step))
    known = [row.val_loss for row in rows if row.val_loss is not None]
    if len(rows) < 2 or not known:
        return tuple(rows)
    best = next(row for row in reversed(rows) if row.val_loss == min(known))
    return tuple(
        CheckpointRow(row.step, row.val_loss, row.val_step, is_best=True) if row is best else row for row in rows
    )


def _name(info: RunInfo) -> str:
    return safe_text(info.name or info.run_id, max_chars=MAX_NAME_CHARS)


def _prompt(paths: RunPaths) -> str:
    """The run's own prompt; empty where its configuration cannot be read, which the sampler will say."""
    try:
        return run_config(paths).sample.prompt
    except WorkbenchError:
        return ""
