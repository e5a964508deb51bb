"""What the hybrid trainer costs while its bandit keeps prediction off: the quickstart's own steps, with and without it.

    python -m benchmarks.hybrid_overhead [--rounds 9] [--steps 20] [--threads 1] [--predictors outer_nesterov linear]

In one process the forms take turns, a round of steps each, in alternating order; a round is as long as a full phase,
so that each holds a decision. Compared are the medians over the rounds, of CPU time and of wall time. The plain
form is there twice: how far its two runs differ is how little a ratio means on this machine. Beside the
ratio stands what was spent inside of the hybrid trainer itself, which no other load disturbs as much. Stored as
benchmarks/results/hybrid_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from benchmarks._record import summary, torch_environment, write_result
from benchmarks.hybrid_record import prepared
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.hybrid.advice.bandit import BanditAdvice
from gpuworkbench.hybrid.bandit import MAX_RETRY_AFTER
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.trial import scratch_run

PLAIN = "hybrid.enabled = false"
AGAIN = f"{PLAIN}, again"
CALLS = ("before_step", "skips", "clip_norm", "before_update", "after_step", "observe", "lr_factor", "moments")
LIMIT = 0.02


def form_of(config: RunConfig, predictor: str | None) -> RunConfig:
    """The preset with prediction by this predictor and the bandit, or without any."""
    hybrid = config.hybrid
    if predictor is None:
        return msgspec.structs.replace(config, hybrid=msgspec.structs.replace(hybrid, enabled=False))
    own = msgspec.structs.replace(hybrid, predictor=predictor, bandit=True)
    return msgspec.structs.replace(config, hybrid=own)


class Inside:
    """CPU seconds within the hybrid trainer's own calls."""

    def __init__(self, trainer: HybridTrainer) -> None:
        self.seconds = 0.0
        self.depth = 0
        for name in CALLS:
            setattr(trainer, name, self._timed(getattr(trainer, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started_s, self.depth = time.process_time(), self.depth + 1
            try:
                return call(*arguments)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.process_time() - started_s

        return timed


def switch_off(trainer: HybridTrainer) -> None:
    """As after many jumps that did not pay: it stays off for as long as this lasts."""
    assert isinstance(trainer.bandit, BanditAdvice)
    trainer.bandit.bandit.is_off = True
    trainer.bandit.bandit.retry_after = MAX_RETRY_AFTER


def timed_round(run: TrainingRun, steps: int) -> tuple[float, float]:
    """CPU and wall seconds of so many steps."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for _ in range(steps):
        assert train_one_step(run) is None
    return time.process_time() - cpu_s, time.perf_counter() - wall_s


def measured(config: RunConfig, data: Any, predictors: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Rounds of every form in turn, after a round of each that does not count."""
    forms: dict[str, str | None] = {PLAIN: None, **{name: name for name in predictors}, AGAIN: None}
    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    inside: dict[str, Inside] = {}
    with ExitStack() as stack:
        runs: dict[str, TrainingRun] = {}
        for name, predictor in forms.items():
            run, _ = stack.enter_context(scratch_run(form_of(config, predictor), data))
            runs[name] = run
            if isinstance(run.hybrid, HybridTrainer):
                switch_off(run.hybrid)
                inside[name] = Inside(run.hybrid)
        for number in range(-1, rounds):
            names = list(runs) if number % 2 else list(reversed(runs))
            for name in names:
                spent = timed_round(runs[name], steps)
                if number >= 0:
                    cpu.setdefault(name, []).append(spent[0] / steps)
                    wall.setdefault(name, []).append(spent[1] / steps)
                elif name in inside:
                    inside[name].seconds = 0.0
        for name in inside:
            jumps = runs[name].hybrid.candidates.chosen.predictions  # type: ignore[union-attr]
            assert jumps == 0, f"{name} has predicted"
    base_cpu, base_wall = statistics.median(cpu[PLAIN]), statistics.median(wall[PLAIN])
    result: dict[str, Any] = {
        "baseline": {"cpu": summary(cpu[PLAIN]), "wall": summary(wall[PLAIN])},
        "baseline_again": {
            "cpu": summary(cpu[AGAIN]),
            "wall": summary(wall[AGAIN]),
            "cpu_ratio": statistics.median(cpu[AGAIN]) / base_cpu,
            "wall_ratio": statistics.median(wall[AGAIN]) / base_wall,
        },
        "forms": {},
    }
    for name, own in inside.items():
        each = own.seconds / (rounds * steps)
        result["forms"][name] = {
            "cpu": summary(cpu[name]),
            "wall": summary(wall[name]),
            "cpu_ratio": statistics.median(cpu[name]) / base_cpu,
            "wall_ratio": statistics.median(wall[name]) / base_wall,
            "inside_ms_a_step": each * 1e3,
            "inside_share": each / base_cpu,
            "is_within_limit": each / base_cpu <= LIMIT,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="a round; the preset's full phase is as long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--predictors", nargs="+", default=["outer_nesterov", "linear"])
    arguments = parser.parse_args()
    total = (arguments.rounds + 1) * arguments.steps
    sets = {"data.source": "stdlib", "train.threads": arguments.threads}
    config, data = prepared(sets, max(total, 1000))
    result = {
        "environment": torch_environment(arguments.threads),
        "setting": {
            "preset": "quickstart",
            "n_params": config.model.n_params(),
            "rounds": arguments.rounds,
            "steps_a_round": arguments.steps,
            "limit": LIMIT,
        },
        **measured(config, data, arguments.predictors, arguments.rounds, arguments.steps),
    }
    write_result("hybrid_overhead", result)
    again = result["baseline_again"]
    print(f"{AGAIN}: CPU {again['cpu_ratio']:.4f}, wall {again['wall_ratio']:.4f}")
    for name, row in result["forms"].items():
        print(
            f"{name}: CPU {row['cpu_ratio']:.4f}, wall {row['wall_ratio']:.4f}, "
            f"inside {row['inside_ms_a_step']:.2f} ms a step = {row['inside_share']:.2%}"
        )


if __name__ == "__main__":
    main()
