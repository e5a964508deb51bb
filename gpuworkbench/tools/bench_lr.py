"""`python -m gpuworkbench.tools.bench_lr DIR`: do what is left of a learning-rate search, one trial after another.

Results go into DIR as they are finished; stdout carries progress, one JSON object a line. Whoever started this may
end it at any time, and it ends by itself when nobody reads its progress any more. torch is loaded once the search's
lock is held: a second process is refused before those seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import PreparedData, load_same_tokens
from gpuworkbench.errors import ExitCode, WorkbenchError
from gpuworkbench.plan.lr_search import (
    MAX_EXTENSIONS,
    RangeTest,
    SearchPlan,
    Trial,
    has_diverged,
    next_trials,
    range_test_lrs,
)
from gpuworkbench.plan.lr_search_files import SearchFiles
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.tools.bench_process import PROGRESS_INTERVAL_S, emit, refusing_what_does_not_fit, run_as_process


class Progress:
    """Tells what is being done, and about how many steps of the whole search are left."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self.what = ""
        self.n_steps = 0  # of the trial under way
        self.steps_after = 0  # of the trials after it
        self._said_s = 0.0

    def begin(self, what: str, n_steps: int, steps_after: int) -> None:
        """A trial begins."""
        self.what, self.n_steps, self.steps_after = what, n_steps, steps_after
        self._said_s = 0.0

    def __call__(self, losses: Sequence[float | None]) -> None:
        now = time.monotonic()
        if now - self._said_s < PROGRESS_INTERVAL_S:
            return
        self._said_s = now
        loss = losses[-1] if losses else None
        emit(what=self.what, step=len(losses), steps=self.n_steps, steps_after=self.steps_after, loss=loss)


def main(directory: str) -> int:
    """Search until nothing is left to try; returns the exit code."""
    files = SearchFiles(Path(directory))
    try:
        plan, config = files.read_plan(), files.read_config()
        RunLock(files.lock, what=f"the search in {files.root}").acquire()
        progress = Progress(plan)
        progress.begin("starting", 0, 0)
        progress([])
        search(files, plan, config, load_same_tokens(config), progress)
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


def search(files: SearchFiles, plan: SearchPlan, config: RunConfig, data: PreparedData, progress: Progress) -> None:
    """Range test where one is wanted and missing, then trials until the plan has no more. Raises DoesNotFitError."""
    with refusing_what_does_not_fit(config):
        _search(files, plan, config, data, progress)


def _search(files: SearchFiles, plan: SearchPlan, config: RunConfig, data: PreparedData, progress: Progress) -> None:
    from gpuworkbench.training.trial import train_trial, with_rate

    test = files.read_range_test()
    if plan.grid is None and test is None:
        test = run_range_test(plan, config, data, progress)
        files.write(files.range_test, test)
    while todo := next_trials(plan, test, trials := files.read_trials()):
        lr, seed = todo[0]
        may_follow = len(todo) - 1 + (2 * len(plan.seeds) if plan.adapts and len(trials) < 2 * MAX_EXTENSIONS else 0)
        progress.begin(f"lr {lr:g}, seed {seed}", plan.steps, may_follow * plan.steps)
        progress([])
        result = train_trial(with_rate(config, lr, seed), data, progress)
        trial = Trial(
            lr=lr,
            seed=seed,
            losses=tuple(result.losses),
            val_loss=result.val_loss,
            diverged=result.diverged,
            seconds=result.seconds,
        )
        files.write(files.trial(lr, seed), trial)
        emit(lr=lr, seed=seed, val_loss=trial.val_loss, diverged=trial.diverged, seconds=trial.seconds)


def run_range_test(plan: SearchPlan, config: RunConfig, data: PreparedData, progress: Progress) -> RangeTest:
    """Stage one."""
    from gpuworkbench.training.trial import range_trial

    lrs = range_test_lrs(plan)
    progress.begin("range test", len(lrs), 7 * plan.steps * len(plan.seeds))
    result = range_trial(config, data, lrs, has_diverged, progress)
    losses = tuple(result.losses)
    return RangeTest(lrs=tuple(lrs[: len(losses)]), losses=losses, seconds=result.seconds)


if __name__ == "__main__":
    run_as_process(main)
