"""What Home shows: presets with their verdict for this machine, runs with their curve, and the machine itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from gpuworkbench.config.presets import Preset, configure, iter_preset_paths, load_preset, user_preset_dir
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError, RunError
from gpuworkbench.events.index import best_index
from gpuworkbench.events.reader import EventReader
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.fit import DeviceChoice, select_device
from gpuworkbench.gpu.host import Host, probe_host
from gpuworkbench.plan.analytic import Estimate, Verdict, estimate, verdict
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import RunInfo, list_runs
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.text import safe_text
from gpuworkbench.tui.services import Services
from gpuworkbench.units import GIB

INTERVAL_S = 2.0
FIRST_INTERVAL_S = 0.5  # the CPU load needs two readings
ANY_MACHINE = "Any machine"
OWN = "Own presets"
GROUPS = {OWN: 0, ANY_MACHINE: 1}  # the others follow, by card
MAX_REPLAY_BYTES = 1024 * 1024  # of a log without an index, for its sparkline
SPARK_POINTS = 64


@dataclass(frozen=True, slots=True)
class PresetRow:
    """One preset as Home shows it. `runs_as`: cuda, cpu, twin, or none where nothing here can run it."""

    name: str
    group: str
    description: str
    runs_as: str
    verdict: Verdict | None
    predicted: Estimate | None
    limit_bytes: int | None
    config: RunConfig | None  # what would be run: the twin's where the twin would
    problem: str = ""
    path: str = ""
    has_cards: bool = False  # whether there is a card here that it might have fitted


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run with its loss curve, at most SPARK_POINTS values in order, and what its log sums up to."""

    info: RunInfo
    losses: tuple[float, ...]
    best_val_loss: float | None = None
    tokens: int | None = None
    elapsed_s: float | None = None


@dataclass(frozen=True, slots=True)
class HomeView:
    """One reading of everything."""

    presets: tuple[PresetRow, ...]
    runs: tuple[RunRow, ...]
    cards: tuple[Card, ...]
    host: Host
    cpu_percent: float | None


class HomeSource:
    """The source of Home's views for a `Watcher`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rows = RowReader()

    def __call__(self, stop: threading.Event) -> Iterator[HomeView]:
        """A view about every two seconds; more seldom where reading takes long (thousands of runs, a slow disk)."""
        psutil.cpu_percent()  # the first call has nothing to compare with
        is_first = True
        with self._services.make_sampler() as sampler:
            while not stop.is_set():
                started_s = time.monotonic()
                cards, host = sampler.sample(), probe_host()
                self._services.trainers.reap()
                yield HomeView(
                    presets=preset_rows(cards, host),
                    runs=self._rows.read(self._services.runs_dir),
                    cards=tuple(cards),
                    host=host,
                    cpu_percent=None if is_first else psutil.cpu_percent(),
                )
                took_s = time.monotonic() - started_s
                stop.wait(FIRST_INTERVAL_S if is_first else max(INTERVAL_S, 10 * took_s))
                is_first = False


class RowReader:
    """Reads the runs of a directory; a log is read again only where it grew."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, RunRow]] = {}

    def read(self, runs_dir: Path) -> tuple[RunRow, ...]:
        """Every run, newest first."""
        rows = tuple(self._row(info) for info in list_runs(runs_dir))
        self._known = {row.info.path: self._known[row.info.path] for row in rows}
        return rows

    def _row(self, info: RunInfo) -> RunRow:
        events = RunPaths(Path(info.path)).events
        size = _size(events)
        known = self._known.get(info.path)
        row = replace(known[1], info=info) if known is not None and known[0] == size else run_row(info, events, size)
        self._known[info.path] = (size, row)
        return row


def run_row(info: RunInfo, events: Path, size: int) -> RunRow:
    """A run's losses thinned to SPARK_POINTS and its sums: from its index, and from the log where that is short."""
    try:
        fold, offset = best_index(events)
        reducer = Reducer(fold)
        if size - offset <= MAX_REPLAY_BYTES:
            reader = EventReader(events, offset)
            while batch := reader.poll():
                reducer.apply(batch)
            reader.close()
        state = reducer.snapshot()
    except (RunError, OSError):
        return RunRow(info, ())
    losses = state.series["loss"].y
    stride = max(-(-len(losses) // SPARK_POINTS), 1)
    best = state.best_eval
    return RunRow(
        info,
        tuple(losses[::stride].tolist()),
        best_val_loss=best.loss if best else None,
        tokens=state.tokens_seen,
        elapsed_s=state.elapsed_s if state.is_started else None,
    )


def preset_rows(cards: list[Card], host: Host) -> tuple[PresetRow, ...]:
    """Every preset: a person's own, those for any machine, then by card."""
    rows = []
    for path in iter_preset_paths():
        try:
            rows.append(preset_row(load_preset(str(path)), cards, host))
        except ConfigError as error:
            problem = error.line()
            rows.append(PresetRow(path.stem, "Not readable", "", "none", None, None, None, None, problem, str(path)))
    return tuple(sorted(rows, key=lambda row: (GROUPS.get(row.group, 2), row.config is None, row.group, row.name)))


def preset_row(preset: Preset, cards: list[Card], host: Host) -> PresetRow:
    """One preset with what would be run here and whether it fits, as predicted."""
    config, problem = preset.config, ""
    group = safe_text(config.card.name, max_chars=60) if config.card else ANY_MACHINE
    if preset.path.parent == user_preset_dir():
        group = OWN
    choice: DeviceChoice | None = None
    try:
        choice = select_device(config, cards)
        runs_as: str = choice.kind
    except (DoesNotFitError, ConfigError) as error:
        runs_as, problem = ("twin" if preset.has_cpu_twin else "none"), error.message
    if runs_as == "twin":
        config = configure(preset, cpu_twin=True)
    predicted = estimate(config, kind="cuda" if runs_as == "cuda" else "cpu")
    limit = limit_bytes(config, choice, host)
    verdict_here = None
    if predicted is not None and limit is not None and runs_as != "none":
        needed = predicted.total_bytes if runs_as == "cuda" else predicted.host_bytes
        verdict_here = verdict(needed, limit)
    description = safe_text(config.description, max_chars=400)
    where = str(preset.path)
    return PresetRow(
        preset.name, group, description, runs_as, verdict_here, predicted, limit, config, problem, where, bool(cards)
    )


def limit_bytes(config: RunConfig, choice: DeviceChoice | None, host: Host) -> int | None:
    """What the run may take: the card's memory without the desktop's share, or the host's free memory."""
    if choice is None or choice.card is None:
        return host.memory_available_bytes
    total = choice.card.memory_total_bytes
    if total is None:
        return None
    usable = total - (choice.card.desktop_memory_bytes or 0)
    cap = config.device.memory_limit_gib
    return usable if cap is None else min(usable, int(cap * GIB))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
