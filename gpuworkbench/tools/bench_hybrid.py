"""`python -m gpuworkbench.tools.bench_hybrid DIR`: do what is left of a comparison, one trial after another.

Results go into DIR as they are finished; stdout carries progress, one JSON object a line. Whoever started this may
end it at any time, and it ends by itself when nobody reads its progress any more.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import PreparedData, load_same_tokens
from gpuworkbench.errors import ExitCode, WorkbenchError
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.plan.hybrid_bench import (
    Arm,
    BenchPlan,
    Trial,
    Tuned,
    Work,
    next_trials,
    steps_left,
    tuning_name,
)
from gpuworkbench.plan.hybrid_bench_files import BenchFiles
from gpuworkbench.plan.hybrid_configs import arm_config
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.tools.bench_process import PROGRESS_INTERVAL_S, emit, refusing_what_does_not_fit, run_as_process

TUNING = Arm(name="tuning", what="tunes the baseline")


class Progress:
    """Tells which trial is trained, its step, and how many steps come after it."""

    def __init__(self) -> None:
        self.work: Work | None = None
        self.steps_after = 0
        self._said_s = 0.0

    def begin(self, work: Work, steps_after: int) -> None:
        """A trial begins."""
        self.work, self.steps_after, self._said_s = work, steps_after, 0.0

    def __call__(self, step: int) -> None:
        now = time.monotonic()
        if self.work is not None and now - self._said_s >= PROGRESS_INTERVAL_S:
            self._said_s = now
            emit(arm=self.work.arm, seed=self.work.seed, step=step, steps=self.work.steps, after=self.steps_after)


def main(directory: str) -> int:
    """Train until nothing is left to do; returns the exit code."""
    files = BenchFiles(Path(directory))
    try:
        plan, config = files.read_preregistration().plan, files.read_config()
        RunLock(files.lock, what=f"the comparison in {files.root}").acquire()
        emit(what="starting")
        compare(files, plan, config, load_same_tokens(config), Progress())
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


def compare(files: BenchFiles, plan: BenchPlan, config: RunConfig, data: PreparedData, progress: Progress) -> None:
    """Trials until the plan has no more. Raises DoesNotFitError, ConfigError."""
    files.write(files.machine, machine(config))
    with refusing_what_does_not_fit(config):
        _compare(files, plan, config, data, progress)


def _compare(files: BenchFiles, plan: BenchPlan, config: RunConfig, data: PreparedData, progress: Progress) -> None:
    preset = Tuned(config.schedule.name, config.optimizer.lr, None)
    arms = {arm.name: arm for arm in plan.arms} | {tuning_name(name): TUNING for name in plan.schedules}
    reserved_tokens = reserved(plan, config)
    trials = files.read_trials()
    while todo := next_trials(plan, preset, trials):
        work = todo[0]
        progress.begin(work, steps_left(plan, preset, trials) - work.steps)
        progress(0)
        done = train(config, arms[work.arm], work, data, on_step=progress, reserved_tokens=reserved_tokens)
        files.write(files.trial(work.stem), done)
        trials.append(done)
        emit(done=done)


def reserved(plan: BenchPlan, config: RunConfig) -> int:
    """Tokens that no trial trains on: the most that an arm's probe takes."""
    works = [(arm, Work(arm.name, 0, plan.reference, config.optimizer.lr, config.schedule.name)) for arm in plan.arms]
    return max(arm_config(config, arm, work).reserved_tokens for arm, work in works)


def train(
    config: RunConfig,
    arm: Arm,
    work: Work,
    data: PreparedData,
    *,
    on_step: Callable[[int], object] = lambda step: None,
    reserved_tokens: int = 0,
) -> Trial:
    """One trial. Raises ConfigError where the arm's keys do not go together."""
    from gpuworkbench.training.trial import measured_trial

    found = measured_trial(arm_config(config, arm, work), data, on_step, reserved_tokens)
    loss = found.average_val_loss if arm.judged_by_average else found.val_loss
    return Trial(
        arm=work.arm,
        seed=work.seed,
        steps=work.steps,
        lr=work.lr,
        schedule=work.schedule,
        val_loss=None if found.diverged else loss,
        diverged=found.diverged or ("" if loss is not None else "there is no validation loss"),
        cost_steps=found.cost_steps,
        seconds=found.seconds,
        cpu_seconds=found.cpu_seconds,
        counts=dict(found.counts),
    )


def machine(config: RunConfig) -> Mapping[str, Any]:
    """On what this runs. Unknown is None."""
    import torch

    cuda = torch.cuda.is_available() and config.device.kind != "cpu"
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads() if config.train.threads is None else config.train.threads,
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "load_average_1min_at_start": os.getloadavg()[0],
        "n_params": config.model.n_params(),
        "tokens_per_step": config.tokens_per_step,
    }


if __name__ == "__main__":
    run_as_process(main)
