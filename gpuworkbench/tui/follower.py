"""Following a run for the screen: log and evidence in, one frozen `RunView` at a time out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import RunError, WorkbenchError
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.nvml import Sampler
from gpuworkbench.launch.resume import run_config
from gpuworkbench.plan.analytic import Estimate, estimate
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus, StatusReport, derive_status
from gpuworkbench.runs.tail import log_end
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.run_state import RunState

MIN_INTERVAL_S = 0.1  # at most ten views a second
STATUS_INTERVAL_S = 0.5
MAX_OUTPUT_LINES, MAX_OUTPUT_BYTES = 200, 64 * 1024
CATCH_UP_INTERVAL_S = 0.5  # between views while a long log is being taken in: drawing would only slow that down


@dataclass(frozen=True, slots=True)
class RunView:
    """All that a screen shows of a run. `report` is the evidence, `state` what the log says."""

    run_id: str
    state: RunState
    report: StatusReport
    config: RunConfig | None = None
    predicted: Estimate | None = None
    problem: str = ""  # why the log cannot be read, in one line
    generation: int = field(default=0)  # counts replaced logs: what was shown before is void
    output: tuple[str, ...] = ()  # the end of trainer.log, from this attempt on
    card: Card | None = None  # the run's card as NVML reads it, where that is in this machine; old once nothing trains

    @property
    def status(self) -> RunStatus:
        """By evidence, not by the log."""
        return self.report.status

    @property
    def power_w(self) -> float | None:
        """What the run's card draws now."""
        return self.card.power_w if self.card is not None and self.status.is_live else None

    @property
    def is_on_card(self) -> bool:
        """Whether the run computes on a card."""
        if self.state.device is not None:
            return self.state.device.startswith("cuda")
        return self.config is not None and self.config.device.kind == "cuda"


class RunSource:
    """The source of a run's views for a `Watcher`."""

    def __init__(
        self,
        paths: RunPaths,
        clock: Callable[[], float] = time.time,
        make_sampler: Callable[[], Sampler] | None = None,
    ) -> None:
        """`make_sampler` gives the cards' readings; without it nothing is known of the card."""
        self.paths = paths
        self._clock = clock
        self._make_sampler = make_sampler
        self._sampler: Sampler | None = None
        self._card: Card | None = None
        self._output: tuple[str, ...] = ()
        self._output_size = -1
        self._generation = 0
        self._problem = ""
        self._config: RunConfig | None = None
        self._config_attempt: int | None = None
        self._predicted: Estimate | None = None

    def __call__(self, stop: threading.Event) -> Iterator[RunView]:
        """Views until `stop`: whenever the log grew, and whenever the evidence changed."""
        log: LiveLog | None = None
        report, reported_s = derive_status(self.paths, self._clock()), time.monotonic()
        self._read_output()
        last: RunView | None = None
        shown_s = 0.0
        while not stop.is_set():
            started_s = time.monotonic()
            has_more = False
            try:
                log = log or LiveLog(self.paths.events)
                has_more = self._read(log, stop)
                self._problem = ""
            except RunError as error:
                self._problem = error.line()
            if not has_more and log is not None:
                log.keep_index()
            if time.monotonic() - reported_s >= STATUS_INTERVAL_S:
                report, reported_s = derive_status(self.paths, self._clock()), time.monotonic()
                self._read_output()
                if last is not None:
                    self._card = self._read_card(last)
            view = self._view(log.state() if log else RunState(), report)
            is_due = not has_more or time.monotonic() - shown_s >= CATCH_UP_INTERVAL_S
            if last is None or (is_due and _differs(view, last)):
                last, shown_s = view, time.monotonic()
                yield view
            if not has_more:
                stop.wait(max(MIN_INTERVAL_S - (time.monotonic() - started_s), 0.01))
        if log is not None:
            log.close()
        if self._sampler is not None:
            self._sampler.close()

    def _read_output(self) -> None:
        """Look at trainer.log again where it grew."""
        try:
            size = self.paths.trainer_log.stat().st_size
        except OSError:
            return
        if size != self._output_size:
            self._output_size = size
            self._output = log_end(self.paths.trainer_log, MAX_OUTPUT_LINES, MAX_OUTPUT_BYTES)

    def _read_card(self, view: RunView) -> Card | None:
        """The run's card, read anew while a trainer is at it. NVML is opened when there is such a run."""
        if self._make_sampler is None or not view.is_on_card or (self._card and not view.status.is_live):
            return self._card
        if self._sampler is None:
            self._sampler = self._make_sampler()
        return card_of(view, self._sampler.sample())

    def _read(self, log: LiveLog, stop: threading.Event) -> bool:
        """Take in the log for at most one interval; whether more is waiting."""
        deadline = time.monotonic() + MIN_INTERVAL_S
        while not stop.is_set():
            batch = log.poll()
            self._generation += batch.is_restart
            if not batch.lines:
                return False
            if time.monotonic() >= deadline:
                return True
        return False

    def _view(self, state: RunState, report: StatusReport) -> RunView:
        self._load_config(state.attempt)
        return RunView(
            self.paths.run_id,
            state,
            report,
            self._config,
            self._predicted,
            self._problem,
            self._generation,
            self._output,
            self._card,
        )

    def _load_config(self, attempt: int) -> None:
        """Once an attempt: a resume may have written another run file."""
        if attempt == self._config_attempt:
            return
        self._config_attempt = attempt
        try:
            self._config = run_config(self.paths)
        except WorkbenchError:
            self._config = None  # foreign or damaged: the log still shows
        if self._config is not None:
            kind = "cuda" if self._config.device.kind == "cuda" else "cpu"
            self._predicted = estimate(self._config, kind=kind)


def card_of(view: RunView, cards: Sequence[Card]) -> Card | None:
    """The card that a run was given, by its UUID; the only card of its name where the run does not say."""
    uuid = view.config.device.uuid if view.config is not None else None
    name = view.state.card
    mine = [card for card in cards if (card.uuid == uuid if uuid else name in (None, card.name))]
    return mine[0] if len(mine) == 1 else None


def _differs(view: RunView, last: RunView) -> bool:
    """Whether there is something to draw: events, another log, another status."""
    return (
        view.state.n_events != last.state.n_events
        or view.generation != last.generation
        or view.report != last.report
        or view.problem != last.problem
        or view.output != last.output
        or view.card != last.card
    )
