"""Follow a subprocess that needs torch: it tells its progress on stdout, a JSON object a line."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec

from gpuworkbench.errors import ExitCode
from gpuworkbench.launch.spawn import trainer_environment


class Stopped(Exception):
    """SIGINT or SIGTERM."""


def follow(command: Sequence[str], hear: Callable[[dict[str, Any]], None]) -> int:
    """Run `command`, give `hear` each of its lines; returns its exit code, STOPPED after Ctrl-C or SIGTERM."""
    with stopping_signals():
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, env=trainer_environment()
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                hear(msgspec.json.decode(line))
            code = process.wait()
        except Stopped:
            return ExitCode.STOPPED
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    return 128 - code if code < 0 else code


@contextmanager
def stopping_signals() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise Stopped, once."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped

    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def repeat_command() -> str:
    """The command line as it was given."""
    return shlex.join(["gpuworkbench", *sys.argv[1:]])
