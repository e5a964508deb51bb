"""Every error a person can meet, and the exit code each one ends the process with.

The tree:

    WorkbenchError                 exit 1   something failed; `message` says what, `hint` says what to do
    ├── UserError                  exit 2   the request was wrong, nothing was changed
    │   ├── UsageError                      the command line
    │   ├── ConfigError                     a preset, a --set, an environment override
    │   ├── DataError                       a corpus, a shard, a tokenizer
    │   └── RunError                        a run that is not there, is ambiguous or is malformed
    ├── RunLockedError             exit 3   another process is training this run
    │   └── DeviceBusyError                 another run uses the card
    ├── DoesNotFitError            exit 4   the card, the host memory or the disk is too small
    └── CheckpointError            exit 1   no intact checkpoint could be read or written
        └── ForeignCheckpointError          an intact one that this program or run cannot use: nothing is put aside
"""

from __future__ import annotations

from enum import IntEnum

from gpuworkbench.text import safe_text

MAX_PART_CHARS = 800  # of a message and of its hint: foreign text in them can be of any length


class ExitCode(IntEnum):
    """What a gpuworkbench process returns to its caller."""

    OK = 0
    FAILED = 1
    USAGE = 2
    LOCKED = 3
    DOES_NOT_FIT = 4
    STOPPED = 75  # EX_TEMPFAIL: stopped with a checkpoint, resumable
    SIGINT = 130
    SIGTERM = 143


class WorkbenchError(Exception):
    """An error with one line for a person: what is wrong and where, then what to do.

    `kind` is the `kind` field of an `error` event (config, cuda_oom, nonfinite, data, io, internal).
    """

    exit_code: ExitCode = ExitCode.FAILED
    kind: str = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """The error as exactly one printable line, of bounded length."""
        parts = [_bounded(safe_text(" ".join(part.split()))) for part in (self.message, self.hint) if part]
        return "; ".join(parts)


def _bounded(text: str) -> str:
    """`text`, cut in the middle where it is too long: what is wrong stands at an end."""
    half = MAX_PART_CHARS // 2
    return text if len(text) <= MAX_PART_CHARS else f"{text[: half - 1]}…{text[-half:]}"


class UserError(WorkbenchError):
    """The request was wrong; nothing was changed."""

    exit_code = ExitCode.USAGE
    kind = "config"


class UsageError(UserError):
    """The command line does not say something that can be done."""


class ConfigError(UserError):
    """A preset, a `--set` value or an environment override is wrong."""


class DataError(UserError):
    """A corpus, a token shard or a tokenizer is missing, malformed or does not match."""

    kind = "data"


class RunError(UserError):
    """A run does not exist, is ambiguous, or its directory is malformed."""


class RunLockedError(WorkbenchError):
    """Another process holds the run's lock."""

    exit_code = ExitCode.LOCKED
    kind = "config"


class DeviceBusyError(RunLockedError):
    """Another run uses the card, or waits for it."""


class DoesNotFitError(WorkbenchError):
    """The run needs more than this machine has."""

    exit_code = ExitCode.DOES_NOT_FIT
    kind = "config"


class CheckpointError(WorkbenchError):
    """No intact checkpoint could be read, or one could not be written."""

    kind = "io"


class ForeignCheckpointError(CheckpointError):
    """A checkpoint is intact but of another program version, model or optimizer: an older one would be no better."""
