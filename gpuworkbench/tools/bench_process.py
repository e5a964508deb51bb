"""What the subprocesses behind `gpuworkbench bench` share: progress on stdout, their end, a trial that does not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import msgspec

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import DoesNotFitError, ExitCode

PROGRESS_INTERVAL_S = 0.5


def emit(**fields: object) -> None:
    """One line of JSON, flushed. Raises BrokenPipeError where nobody reads it any more."""
    sys.stdout.buffer.write(msgspec.json.encode(fields) + b"\n")
    sys.stdout.buffer.flush()


def run_as_process(main: Callable[[str], int]) -> NoReturn:
    """Call `main` with the command line's argument and exit with its code; with STOPPED when nobody listens."""
    try:
        sys.exit(main(sys.argv[1]))
    except BrokenPipeError:
        sys.stdout = None  # or the interpreter's own flush complains
        sys.exit(ExitCode.STOPPED)


@contextmanager
def refusing_what_does_not_fit(config: RunConfig) -> Iterator[None]:
    """Running out of memory inside becomes a DoesNotFitError (exit 4)."""
    from gpuworkbench.training.memory_errors import first_line, is_out_of_memory
    from gpuworkbench.training.out_of_memory import run_device

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(
            f"a trial does not fit the {run_device(config)}: {first_line(error)}",
            "halve train.micro_batch_size and double train.grad_accum_steps",
        ) from None
