"""The look at the data in the launch form: prepared in a thread that can be called off, told by messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from textual.message import Message

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import PreparedData, Preview, check_eval_tokens, prepare, preview
from gpuworkbench.errors import WorkbenchError
from gpuworkbench.text import safe_text
from gpuworkbench.tui.launching import PREVIEW_THREAD

PROGRESS_INTERVAL_S = 0.1
N_PREVIEWS = 3


@dataclass(frozen=True)
class DataView:
    """What the panel shows: progress, then data or the line that says why there is none."""

    stage: str = ""
    fraction: float | None = None
    data: PreparedData | None = None
    previews: tuple[Preview, ...] = ()
    warning: str = ""
    problem: str = ""


class DataLooked(Message):
    """News of a preview; `number` tells which one."""

    def __init__(self, number: int, view: DataView) -> None:
        super().__init__()
        self.number = number
        self.view = view


class _CalledOff(Exception):
    """Nobody waits for this preview any more."""


class PreviewJob:
    """One preparation in a daemon thread. The data cache is written whole or not at all, however this ends."""

    def __init__(self, number: int, config: RunConfig, post: Callable[[Message], object]) -> None:
        self.number = number
        self._config = config
        self._post = post
        self._is_off = threading.Event()
        self._said: tuple[str, float] = ("", 0.0)
        self._thread = threading.Thread(target=self._run, name=f"{PREVIEW_THREAD}{number}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call_off(self) -> None:
        """Ask it to end at its next sign of progress; nothing more is posted."""
        self._is_off.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end (tests do)."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            view = look_at_data(self._config, self._progress)
        except _CalledOff:
            return
        except WorkbenchError as error:
            view = DataView(problem=error.line())
        except Exception as error:  # noqa: BLE001  a bug must become a line in the panel, not a dead thread
            view = DataView(problem=safe_text(f"{type(error).__name__}: {error}", max_chars=400))
        self._tell(view)

    def _progress(self, stage: str, fraction: float | None) -> None:
        if self._is_off.is_set():
            raise _CalledOff
        now = time.monotonic()
        if stage != self._said[0] or now - self._said[1] >= PROGRESS_INTERVAL_S:
            self._said = (stage, now)
            self._tell(DataView(stage=safe_text(stage, max_chars=80), fraction=fraction))

    def _tell(self, view: DataView) -> None:
        if self._is_off.is_set():
            return
        try:
            self._post(DataLooked(self.number, view))
        except RuntimeError:
            return  # the app has ended


def look_at_data(config: RunConfig, on_progress: Callable[[str, float | None], None]) -> DataView:
    """Prepare what `config.data` names and read its first documents. Raises WorkbenchErrors."""
    on_progress("looking for the data", None)
    data = prepare(config, on_progress=on_progress)
    warning = check_eval_tokens(config, data.n_val_tokens)[1] if config.eval.interval_steps else None
    on_progress("reading its first documents", None)
    return DataView(data=data, previews=tuple(preview(data, N_PREVIEWS)), warning=warning or "")


def data_key(config: RunConfig) -> tuple[object, ...]:
    """What the panel depends on: another look is needed where this differs."""
    evaluated = (config.eval.interval_steps > 0, config.eval.tokens, config.eval_micro_batch_size)
    return (config.data, config.model.vocab_size, config.train_seq_len, *evaluated)
