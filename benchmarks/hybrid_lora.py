"""Does `line_jump` pay for low-rank adapters? Fast Forward (Rahamim et al., EMNLP 2024), for which it is made, says so.

    python -m benchmarks.hybrid_lora --base-text peps.txt --text tinyshakespeare.txt [--into FOLDER]

A small GPT-2 is trained once on one text. Then adapters are trained on another one, its weights frozen: plainly with
AdamW, and with the hybrid trainer, at the tuned rate and below it, from the same seeds. Model, batches, optimizer,
hybrid trainer and statistics are the product's own (training.trial, plan.hybrid_analysis). The rate is constant, so a
training that stops early is a whole training of that length: one training gives the losses at all budgets.

What is compared is written down before the first trial; a finished trial is a file, and the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors.torch import load_file, save_file

from benchmarks._record import torch_environment, write_result
from benchmarks.hybrid_record import prepared
from benchmarks.lora import add_adapters
from gpuworkbench import __version__
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.data import PreparedData
from gpuworkbench.errors import RunError, UsageError, WorkbenchError
from gpuworkbench.io import atomic_write_bytes, atomic_write_json, make_directories
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.plan.hybrid_analysis import analyse
from gpuworkbench.plan.hybrid_bench import BASELINE, Arm, BenchPlan, Trial, Tuned, Work, next_trials, tuned_of
from gpuworkbench.plan.hybrid_bench_files import BenchFiles, Preregistration
from gpuworkbench.plan.hybrid_configs import arm_config
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.tools.bench_hybrid import TUNING, machine, reserved
from gpuworkbench.training.loop import train_one_step, validate
from gpuworkbench.training.pretrained import make_model
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.trial import LossTap, counted_forwards, scratch_run, train_batches

NAME = "hybrid-lora"
CONSTANT = "constant"
RATES: Mapping[str, float] = {"tuned": 1.0, "tuned/3": 3.0, "tuned/10": 10.0}
RANK, ALPHA = 8, 16.0
FAST_FORWARD = {  # section 3 of the paper: a line search after every 6 steps, as far as the loss falls, and no gate
    "hybrid.full_steps": 5,
    "hybrid.correct_steps": 1,
    "hybrid.correction_interval": 0,
    "hybrid.max_predict_steps": 64,
    "hybrid.exploration": 100_000,
}
ARMS = (
    Arm(name=BASELINE, what="AdamW on the adapters, without the hybrid trainer"),
    Arm(
        name="null",
        what="the phases and probes of line_jump, no change",
        is_hybrid=True,
        sets={"hybrid.predictor": "null"} | FAST_FORWARD,
    ),
    Arm(
        name="line_jump",
        what="a jump after every 6 steps, as long as the probe's loss falls, up to 64 steps; no gate",
        is_hybrid=True,
        sets={"hybrid.predictor": "line_jump"} | FAST_FORWARD,
    ),
)
MODEL = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 144,
    "model.seq_len": 32,
    "data.tokenizer": "byte",
    "train.micro_batch_size": 8,
    "train.threads": 1,
    "eval.tokens": 4096,
    "eval.micro_batch_size": 64,
}
TUNE = {
    "optimizer.weight_decay": 0.0,
    "schedule.name": CONSTANT,
    "schedule.warmup_steps": 4,
    "hybrid.warmup_steps": 4,
}
ANALYSIS = (
    "The base is trained once and frozen; a seed decides the adapters' initial values and the order of the data, and "
    "all arms share both, the split, and the batches: what probes read is left out of everyone's training.",
    "Tuning: AdamW at each rate of the grid, at the reference budget, on a seed that no measured trial uses; tuned is "
    "the rate with the lowest validation loss. The measured rates are that one, a third and a tenth of it.",
    "The rate is constant after 4 steps of warm-up, so the state at a budget is that of a training of this length, "
    "and one training gives all budgets; only what the hybrid trainer leaves out near a run's end is not left out.",
    "At each rate an arm is compared with the baseline at the same rate; beside it, with the baseline at the tuned "
    "rate. L*: for each seed that baseline's validation loss at the reference budget.",
    "Speed-up, work, bounds, interval and verdict as in `bench hybrid`: T_baseline(L*) / T_arm(L*) in cost_steps "
    "(true steps plus a third of a step for as many tokens of probe forwards), 95 % t-interval of the log ratios.",
)


class Scale(NamedTuple):
    """How much is trained. The defaults are those of the stored result; tests take less."""

    seeds: tuple[int, ...] = (1337, 1338, 1339, 1340, 1341)
    tuning_seeds: tuple[int, ...] = (11337,)
    budgets: tuple[int, ...] = (12, 17, 24, 36, 51)
    reference: int = 51
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    base_steps: int = 1000
    model: Mapping[str, Any] = MODEL


class Task(NamedTuple):
    """What all trials share."""

    files: BenchFiles
    plan: BenchPlan
    config: RunConfig
    data: PreparedData
    base: Mapping[str, torch.Tensor]


def plan_of(scale: Scale) -> BenchPlan:
    """As `bench hybrid` writes one down; its grid does not grow."""
    return BenchPlan(
        preset="quickstart",
        label="low-rank adapters",
        optimizer="adamw",
        seeds=scale.seeds,
        tuning_seeds=scale.tuning_seeds,
        budgets=scale.budgets,
        reference=scale.reference,
        schedules=(CONSTANT,),
        rates=scale.rates,
        rate_factor=2.0,
        adapts=False,
        arms=ARMS,
        has_clock=False,
    )


def pretrain(config: RunConfig, data: PreparedData, path: Path) -> dict[str, Any]:
    """Train the base and keep its weights at `path`; returns what is told of it. Done once."""
    told = path.with_suffix(".json")
    if not told.exists():
        with scratch_run(config, data) as (run, _losses):
            while run.progress.step < run.max_steps:
                if train_one_step(run) is not None:
                    raise RunError("the base diverged", "train it at a lower rate")
            save_file(run.model.state_dict(), path)
            atomic_write_json(told, {"steps": run.max_steps, "lr": config.optimizer.lr, "val_loss": validate(run).loss})
    loaded: dict[str, Any] = msgspec.json.decode(told.read_bytes())
    return loaded


def adapted(base: Mapping[str, torch.Tensor]) -> Callable[[RunConfig, torch.device], LanguageModel]:
    """A maker of the run's model: `base` with fresh adapters, which the run's seed decides."""

    def make(config: RunConfig, device: torch.device) -> LanguageModel:
        model = make_model(config, torch.device("cpu"))
        model.load_state_dict(base)
        return add_adapters(model, RANK, ALPHA, config.train.seed).to(device)

    return make


def finetune(task: Task, arm: Arm, work: Work, budgets: Sequence[int]) -> list[Trial]:
    """Train adapters for `work.steps` steps; a trial for each budget, validated on the way. Divergence is a result."""
    config = arm_config(task.config, arm, work)
    with scratch_run(config, task.data, adapted(task.base)) as (run, _losses):
        run.train_batches = train_batches(run, task.data, reserved(task.plan, task.config))
        return list(_trials(run, work, budgets))


def _trials(run: TrainingRun, work: Work, budgets: Sequence[int]) -> Iterator[Trial]:
    events, config = run.events, run.config
    assert isinstance(events, LossTap)
    seconds = cpu_seconds = 0.0
    diverged = ""
    with counted_forwards(run) as forwards:
        for steps in budgets:
            started, cpu_started = time.perf_counter(), time.process_time()
            while not diverged and run.progress.step < steps:
                bad = train_one_step(run)
                if bad is not None and not run.hybrid.survives(bad):
                    diverged = f"{bad.what} is {bad.value} at step {bad.step}"
            seconds += time.perf_counter() - started
            cpu_seconds += time.process_time() - cpu_started
            probe_tokens = forwards.probe_tokens
            loss = None if diverged else validate(run).loss
            forwards.probe_tokens = probe_tokens  # validation is nobody's work
            yield Trial(
                arm=work.arm,
                seed=work.seed,
                steps=steps,
                lr=work.lr,
                schedule=work.schedule,
                val_loss=loss,
                diverged=diverged,
                cost_steps=run.progress.step + probe_tokens / (3 * config.tokens_per_step),
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                counts=dict(events.counts),
            )


def measure(task: Task) -> tuple[Tuned, list[Trial]]:
    """Every trial that is not done yet: tuning first, then seed by seed, so that an early end leaves whole pairs."""
    files, plan, trials = task.files, task.plan, task.files.read_trials()
    start = Tuned(CONSTANT, plan.rates[0], None)
    while todo := [work for work in next_trials(plan, start, trials) if work.arm.startswith("tuning.")]:
        trials += _stored(files, finetune(task, TUNING, todo[0], (plan.reference,)))
    tuned = tuned_of(plan, start, trials)
    if tuned is None:
        raise RunError("every rate of the grid diverged", "compare with lower ones")
    for seed in plan.seeds:
        for divisor in RATES.values():
            for arm in plan.arms:
                work = Work(arm.name, seed, plan.budgets[-1], tuned.lr / divisor, CONSTANT)
                if not files.trial(work.stem).exists():
                    trials += _stored(files, finetune(task, arm, work, plan.budgets))
    return tuned, trials


def _stored(files: BenchFiles, trials: list[Trial]) -> list[Trial]:
    """Written in order: where the last one is, all of them are."""
    for trial in trials:
        files.write(files.trial(f"{trial.arm}-{trial.steps}-{trial.lr!r}-{trial.seed}"), trial)
    last = trials[-1]
    print(f"{last.arm} seed {last.seed} lr {last.lr:g}: {last.val_loss} {last.counts}", flush=True)
    return trials


def analysed(plan: BenchPlan, tuned: Tuned, trials: Sequence[Trial]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arm at a rate -> what it came to: against AdamW at that rate, and against AdamW at the tuned rate."""
    measured = [trial for trial in trials if not trial.arm.startswith("tuning.")]
    same_rate: dict[str, Any] = {}
    renamed: list[Trial] = []
    arms: list[Arm] = []
    for rate, divisor in RATES.items():
        lr = tuned.lr / divisor
        own = [trial for trial in measured if trial.lr == lr]
        for name, row in _analysed(plan, own).items():
            same_rate[f"{rate} {name}"] = {"rate": rate, "lr": lr, "arm": name} | row
        for arm in plan.arms:
            name = BASELINE if (rate, arm.name) == ("tuned", BASELINE) else f"{rate} {arm.name}"
            arms.append(msgspec.structs.replace(arm, name=name))
            renamed += [msgspec.structs.replace(trial, arm=name) for trial in own if trial.arm == arm.name]
    return same_rate, _analysed(msgspec.structs.replace(plan, arms=tuple(arms)), renamed)


def _analysed(plan: BenchPlan, trials: Sequence[Trial]) -> dict[str, Any]:
    """As `bench hybrid` does; but what jumps came to is counted in whole trainings, of which budgets are parts."""
    found = analyse(plan, trials)
    for name, row in found.items():
        whole = [trial.counts for trial in trials if (trial.arm, trial.steps) == (name, plan.budgets[-1])]
        row["counts"] = {key: sum(counts[key] for counts in whole) for key in whole[0]}
    return found


def open_folder(root: Path, plan: BenchPlan, config: RunConfig, scale: Scale) -> BenchFiles:
    """Write down what is compared, or find it written. Raises UsageError where something else is compared there."""
    files, text = BenchFiles(root), dump_toml(config)
    details = (
        f"Adapters: rank {RANK}, alpha {ALPHA:g}, every linear layer of the blocks; base: {scale.base_steps} steps."
    )
    decided = Preregistration(
        written_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        plan=plan,
        config_sha256=hashlib.sha256(text).hexdigest(),
        analysis=(*ANALYSIS, details),
    )
    make_directories(root)
    if files.preregistration.exists():
        before = files.read_preregistration()
        if msgspec.structs.replace(before, written_utc=decided.written_utc) != decided:
            raise UsageError(f"{root} holds another comparison", "give another folder with --into")
        return files
    atomic_write_bytes(files.config, text)
    atomic_write_json(files.preregistration, decided)
    return files


def compare(base_text: str, text: str, root: Path, scale: Scale) -> dict[str, Any]:
    """Everything from the base to the result. Raises WorkbenchErrors."""
    sets = {**scale.model, "hybrid.enabled": False}
    fitted = {**scale.model, **TUNE, "data.source": text}
    config, data = prepared(fitted, scale.budgets[-1])
    plan = plan_of(scale)
    files = open_folder(root, plan, config, scale)
    RunLock(files.lock, what=f"the comparison in {root}").acquire()
    base_config, base_data = prepared({**sets, "data.source": base_text, "optimizer.lr": 3e-3}, scale.base_steps)
    base = pretrain(base_config, base_data, root / "base.safetensors")
    if not files.machine.exists():
        files.write(files.machine, dict(machine(config)))
    weights = load_file(root / "base.safetensors")
    task = Task(files, plan, config, data, weights)
    untrained = finetune(task, TUNING, Work("", plan.tuning_seeds[0], plan.reference, 1e-3, CONSTANT), (0,))[0]
    tuned, trials = measure(task)
    same_rate, against_tuned = analysed(plan, tuned, trials)
    n_adapter = sum(p.numel() for p in adapted(weights)(config, torch.device("cpu")).parameters() if p.requires_grad)
    return {
        "seeds": list(plan.seeds),
        "tuning_seeds": list(plan.tuning_seeds),
        "budgets": list(plan.budgets),
        "reference": plan.reference,
        "rates": {rate: tuned.lr / divisor for rate, divisor in RATES.items()},
        "tuning": {f"{t.lr:g}": t.val_loss for t in trials if t.arm.startswith("tuning.")},
        "adapters": {"rank": RANK, "alpha": ALPHA, "n_params": n_adapter},
        "base": base | {"text": Path(base_text).name, "val_loss_on_the_new_text": untrained.val_loss},
        "text": Path(text).name,
        "arms": same_rate,
        "against_tuned": against_tuned,
        "preregistration": msgspec.to_builtins(files.read_preregistration()),
        "preregistration_sha256": files.preregistration_sha256(),
        "machine": files.read_machine(),
        "environment": torch_environment(torch.get_num_threads()),
        "load_average_1min_at_end": os.getloadavg()[0],
        "training_seconds": sum(t.seconds for t in trials if t.steps == plan.budgets[-1]),
        "cpu_seconds": sum(t.cpu_seconds for t in trials if t.steps == plan.budgets[-1]),
        "trials": msgspec.to_builtins(trials),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-text", default="stdlib", help="data.source of the base: a text file, or stdlib")
    parser.add_argument("--text", required=True, help="the text that adapters are trained on")
    parser.add_argument("--into", type=Path, default=Path("runs/hybrid-lora"), help="where finished trials are kept")
    arguments = parser.parse_args()
    try:
        result = compare(arguments.base_text, arguments.text, arguments.into, Scale())
    except WorkbenchError as error:
        print(f"hybrid_lora: {error.line()}", file=sys.stderr)
        return error.exit_code
    print(write_result(NAME, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
