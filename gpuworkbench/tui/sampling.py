"""Text as it is written by a sampler process: what was asked for, frozen views of what came, and its end at once."""

from __future__ import annotations

import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import IO, NamedTuple

import msgspec

from gpuworkbench.errors import UsageError, WorkbenchError
from gpuworkbench.launch.sampler import SampleMessage, is_utf8, start_sampler
from gpuworkbench.text import safe_text

MIN_INTERVAL_S = 0.1  # at most ten views a second
MAX_TOKENS, MAX_TEMPERATURE, MAX_NATURAL = 1_000_000, 100.0, 10**18
MAX_ERROR_BYTES = 16_384
OUR_PREFIX = "gpuworkbench: "


class Stage(StrEnum):
    """How far a text is."""

    LOADING = "loading the model"
    WRITING = "writing"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SampleView:
    """A text at one moment. `text` and `prompt` are foreign; `problem` and `note` are lines that may be shown."""

    stage: Stage = Stage.LOADING
    step: int | None = None
    prompt: str = ""
    text: str = ""
    tokens: int = 0
    tokens_per_s: float | None = None
    problem: str = ""
    note: str = ""

    @property
    def is_going_on(self) -> bool:
        """Whether there is a process at it."""
        return self.stage in (Stage.LOADING, Stage.WRITING)


class Values(NamedTuple):
    """How to write; the names are those of `gpuworkbench sample`."""

    tokens: int
    temperature: float
    top_k: int
    seed: int


def parse_values(texts: Mapping[str, str]) -> Values:
    """The typed fields. Raises UsageError that begins with the field's name."""
    return Values(
        tokens=_whole(texts, "tokens", 1, MAX_TOKENS),
        temperature=_temperature(texts["temperature"]),
        top_k=_whole(texts, "top-k", 0, MAX_NATURAL),
        seed=_whole(texts, "seed", 0, MAX_NATURAL),
    )


def require_prompt(prompt: str) -> str:
    """The prompt, where a sampler can be asked with it. Raises UsageError."""
    if not is_utf8(prompt):
        raise UsageError("prompt: it holds characters that UTF-8 has not", "type it anew")
    return prompt


def _whole(texts: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = texts[name].strip()
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not least <= int(text) <= most:
        limit = f"from {least} on" if most == MAX_NATURAL else f"from {least} to {most}"
        raise UsageError(f"{name}: {text[:40]!r} is not a whole number {limit}", "mend it")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_TEMPERATURE:
        raise UsageError(
            f"temperature: {text[:40]!r} is not a number from 0 to {MAX_TEMPERATURE:.0f}",
            "0 always takes the likeliest",
        )
    return value


class SampleSource:
    """The source of a text's views for a `Watcher`; the process lives no longer than the source is wanted."""

    def __init__(self, request: dict[str, object]) -> None:
        self._request = request
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Kill the process, now; from any thread, at any time, also before there is one."""
        with self._lock:
            self._is_cancelled = True
            if self._process is not None:
                self._process.kill()

    def __call__(self, stop: threading.Event) -> Iterator[SampleView]:
        """Views until the text's end."""
        with tempfile.TemporaryFile() as errors:  # not a pipe: nobody reads it meanwhile
            try:
                process = self._start(errors)
            except WorkbenchError as error:
                yield SampleView(Stage.FAILED, problem=error.line())
                return
            if process is None:
                return
            view = SampleView()
            try:
                for view in self._read(process, errors):
                    yield view
                    if stop.is_set():
                        return
                if view.stage is not Stage.DONE:
                    yield replace(view, stage=Stage.FAILED, problem=_cause(process.wait(), errors))
            finally:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    def _start(self, errors: IO[bytes]) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if not self._is_cancelled:
                self._process = start_sampler(self._request, errors)
            return self._process

    @staticmethod
    def _read(process: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[SampleView]:
        assert process.stdout is not None
        view = SampleView()
        yield view
        began_s = shown_s = time.monotonic()
        for line in process.stdout:
            message, now_s = msgspec.json.decode(line, type=SampleMessage), time.monotonic()
            if message.prompt is not None:
                began_s, notes = now_s, _own_lines(errors)
                note = notes[-1] if notes else ""
                view = replace(view, stage=Stage.WRITING, step=message.step, prompt=message.prompt, note=note)
            elif message.text is not None:
                tokens = message.tokens or view.tokens
                rate = tokens / (now_s - began_s) if now_s > began_s else None
                view = replace(view, text=view.text + message.text, tokens=tokens, tokens_per_s=rate)
            elif message.done is not None:
                tokens, took_s = message.done.tokens, message.done.duration_s
                view = replace(view, stage=Stage.DONE, tokens=tokens, tokens_per_s=tokens / took_s if took_s else None)
            if now_s - shown_s >= MIN_INTERVAL_S or view.stage is Stage.DONE:
                shown_s = now_s
                yield view


def _error_lines(errors: IO[bytes]) -> list[str]:
    end = errors.seek(0, 2)
    errors.seek(max(end - MAX_ERROR_BYTES, 0))
    return [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]


def _own_lines(errors: IO[bytes]) -> list[str]:
    """The lines that were written for people, without the program's name."""
    lines = [line.removeprefix(OUR_PREFIX) for line in _error_lines(errors) if line.startswith(OUR_PREFIX)]
    return [safe_text(line, max_chars=400) for line in lines]


def _cause(code: int, errors: IO[bytes]) -> str:
    """Why a sampler ended early, in one line."""
    if own := _own_lines(errors):
        return own[-1]
    if code < 0:
        return f"the sampler was killed by signal {-code}; was there not enough memory?"
    lines = _error_lines(errors)
    said = safe_text(lines[-1].strip(), max_chars=400) if lines else "it said nothing"
    return f"the sampler ended with exit code {code}: {said}"
