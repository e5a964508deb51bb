"""Progress of a comparison on stderr: a line for each finished trial, where the next one is, and the time left."""

from __future__ import annotations

import time
from typing import Any

from gpuworkbench.commands.output import say
from gpuworkbench.units import format_duration, format_number

SAY_INTERVAL_S = 10.0


class Talk:
    """Hears what the training process says. Times are those of trials that were seen to their end."""

    def __init__(self) -> None:
        self._said_s = -SAY_INTERVAL_S
        self._steps = 0  # of finished trials
        self._seconds = 0.0
        self._begun_s = 0.0

    def hear(self, message: dict[str, Any]) -> None:
        """One line."""
        now = time.monotonic()
        if "done" in message:
            self._finished(message["done"], now)
        elif "what" in message:
            say(message["what"])
        else:
            if message["step"] == 0:
                self._begun_s = now
            if now - self._said_s >= SAY_INTERVAL_S:
                self._said_s = now
                say(self._line(message, now))

    def _finished(self, trial: dict[str, Any], now: float) -> None:
        self._steps += trial["steps"]
        self._seconds += now - self._begun_s
        self._said_s = now
        result = trial["diverged"] or f"validation loss {format_number(trial['val_loss'])}"
        took = format_duration(trial["seconds"])
        schedule = f", lr {trial['lr']:g}" if trial["arm"].startswith("tuning.") else ""
        say(f"{trial['arm']}{schedule}, seed {trial['seed']}, {trial['steps']} steps: {result} ({took})")

    def _line(self, message: dict[str, Any], now: float) -> str:
        line = f"{message['arm']}, seed {message['seed']}: step {message['step']}/{message['steps']}"
        steps, seconds = self._steps + message["step"], self._seconds + now - self._begun_s
        if steps:
            left = message["steps"] - message["step"] + message["after"]
            line += f"  about {format_duration(left * seconds / steps)} for all"
        return line
