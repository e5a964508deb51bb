"""`gpuworkbench attach RUN`: watch a run from any terminal. Ctrl-C leaves it training."""

from __future__ import annotations

import argparse

from gpuworkbench.commands.follow import POLL_S, QueueNotes, caught_up_log, make_renderer, saved_so_far, show_log_end
from gpuworkbench.commands.output import say
from gpuworkbench.errors import ExitCode
from gpuworkbench.headless.follow import follow
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import name_to_type, runs_dir
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.runs.store import resolve_run

_CODES = {RunStatus.COMPLETED: ExitCode.OK, RunStatus.STOPPED: ExitCode.STOPPED}


def run(arguments: argparse.Namespace) -> int:
    """Follow the run until its trainer ends; exit as the run ended (0 completed, 75 stopped, 1 failed or crashed)."""
    paths = resolve_run(runs_dir(arguments.runs_dir), arguments.run)
    renderer = make_renderer(arguments.json)
    is_live = probe_lock(paths.lock) is not None
    queue = QueueNotes(paths, renderer.note)

    def is_done() -> bool:
        queue.look()
        return probe_lock(paths.lock) is None

    try:
        log = caught_up_log(paths, show_from_start=arguments.json or not is_live)
        state = follow(paths.events, renderer, poll_s=POLL_S, is_done=is_done, log=log)
    except KeyboardInterrupt:
        if is_live:
            renderer.note(f"detached; {paths.run_id} goes on {'waiting' if queue.is_waiting else 'training'}")
        return ExitCode.OK
    renderer.finish(state, name_to_type(paths))
    report = derive_status(paths)
    if report.status == RunStatus.CRASHED:
        say(f"gpuworkbench: {paths.run_id} crashed: {report.reason}; {saved_so_far(paths)}")
        show_log_end(report.log_end, paths)
    return report.exit_code if report.exit_code is not None else _CODES.get(report.status, ExitCode.FAILED)
