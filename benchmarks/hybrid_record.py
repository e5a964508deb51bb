"""Records small trainings for benchmarks.hybrid_parts: what each true step showed, and what jumps would have done.

    python -m benchmarks.hybrid_record [--seeds 6] [--steps 800] [--text FILE] [--threads 1] [--into FOLDER]

Every `STRIDE` steps the weights are remembered. Every `EVERY` steps some jumps are tried and undone (probe loss
before and after, on a batch of training text kept for it), and the last displacements are stored as a Gram matrix,
with their products with the displacement of the next STRIDE true steps: from these the error of any coefficients is
exact afterwards. Nothing here changes the run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from gpuworkbench.commands.bench_lr import trial_config
from gpuworkbench.config.loader import Override
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import PreparedData
from gpuworkbench.launch.create import LaunchRequest, check
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.trial import scratch_run, with_rate

STRIDE = 5
EVERY = 10
DIRECTIONS = 5
PROBE_SEQUENCES = 16
HORIZONS = (2, 5, 10, 20)
MODEL = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 96,
    "model.seq_len": 64,
    "train.micro_batch_size": 8,
    "data.tokenizer": "byte",
    "schedule.name": "warmup_stable_decay",
}


def prepared(sets: dict[str, Any], steps: int) -> tuple[RunConfig, PreparedData]:
    """The quickstart preset made small, as the trainer would get it."""
    overrides = tuple(Override(key, value, "benchmark") for key, value in sets.items())
    request = LaunchRequest(preset="quickstart", runs_dir=Path.cwd(), sets=overrides, environ={}, force=True)
    result = check(request)
    return trial_config(result.config, steps, set(sets)), result.data


def flat(run: TrainingRun) -> torch.Tensor:
    """All trainable weights in one vector, fp32."""
    return torch.cat([run.weights.read(p).reshape(-1) for p in run.trainable]).clone()


@torch.no_grad()
def put(run: TrainingRun, vector: torch.Tensor) -> None:
    """Write a vector of `flat` back."""
    at = 0
    for p in run.trainable:
        run.weights.write(p, vector[at : at + p.numel()].view_as(p))
        at += p.numel()


@torch.no_grad()
def probe(run: TrainingRun, x: torch.Tensor, y: torch.Tensor) -> float:
    """Loss of the probe batch with the weights as they are."""
    run.model.eval()
    loss = float(run.forward(x, y))
    run.model.train()
    return loss


def moments(run: TrainingRun) -> tuple[float, float, float, float]:
    """Mean and standard deviation of the optimizer's m and v over all weights."""
    found = []
    for key in ("exp_avg", "exp_avg_sq"):
        states = [s[key] for s in run.optimizer.state.values() if key in s]
        n = sum(t.numel() for t in states)
        mean = sum(float(t.sum(dtype=torch.float64)) for t in states) / n
        square = sum(float(t.double().square().sum()) for t in states) / n
        found += [mean, max(0.0, square - mean * mean) ** 0.5]
    return found[0], found[1], found[2], found[3]


def jumps(vectors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Deltas by arm from remembered weights, oldest first: the trend of the last 20 steps, and averages."""
    now = vectors[-1]
    trend = (now - vectors[-5]) / (4 * STRIDE)
    deltas = {f"trend-{h}": trend * h for h in HORIZONS}
    deltas |= {f"last-{h}": (now - vectors[-2]) / STRIDE * h for h in HORIZONS}
    deltas["average-3"] = torch.stack(vectors[-3:]).mean(0) - now
    deltas["average-6"] = torch.stack(vectors[-6:]).mean(0) - now
    generator = torch.Generator().manual_seed(len(vectors))
    noise = torch.randn(now.shape, generator=generator)
    deltas["random-5"] = noise * (deltas["trend-5"].norm() / noise.norm())
    return deltas


def record(config: RunConfig, data: PreparedData) -> dict[str, Any]:
    """Train to the end; the steps and the shadow proposals of one run."""
    steps: list[list[float]] = []
    shadows: list[dict[str, Any]] = []
    vectors: list[torch.Tensor] = []
    with scratch_run(config, data) as (run, losses):
        tokens = data.tokens("train")
        x, y = run.train_batches.at(len(tokens) // config.train_seq_len - 4 * PROBE_SEQUENCES)
        more = [run.train_batches.at(len(tokens) // config.train_seq_len - n * PROBE_SEQUENCES) for n in (3, 2)]
        x, y = torch.cat([x, *(m[0] for m in more)]), torch.cat([y, *(m[1] for m in more)])
        while run.progress.step < run.max_steps:
            norm = watch_norm(run)
            bad = train_one_step(run)
            if bad is not None:
                break
            step = run.progress.step
            lr = run.optimizer.param_groups[0]["lr"]
            row = [step, losses[-1] or 0.0, norm(), lr, *moments(run)]
            steps.append([float(f"{value:.6g}") for value in row])
            if step % STRIDE:
                continue
            vectors = [*vectors[-DIRECTIONS - 1 :], flat(run)]
            for shadow in shadows:
                if shadow["step"] == step - STRIDE:
                    delta = vectors[-1] - vectors[-2]
                    past = [vectors[i] - vectors[i - 1] for i in range(1, len(vectors) - 1)]
                    shadow["products"] = [float(d @ delta) for d in past[-DIRECTIONS:]]
                    shadow["square"] = float(delta @ delta)
                    shadow["probe_later"] = probe(run, x, y)
            if step % EVERY == 0 and len(vectors) == DIRECTIONS + 2:
                shadows.append(shadow_of(run, vectors, step, x, y))
        config_of = {"seed": config.train.seed, "lr": config.optimizer.lr, "n_params": config.model.n_params()}
        flops = 6 * config.model.n_params() * config.tokens_per_step
        probe_flops = 2 * config.model.n_params() * x.numel()
    return {
        **config_of,
        "max_steps": config.train.max_steps,
        "step_flops": flops,
        "probe_flops": probe_flops,
        "columns": ["step", "loss", "grad_norm", "lr", "m_mean", "m_std", "v_mean", "v_std"],
        "steps": steps,
        "shadows": shadows,
    }


def watch_norm(run: TrainingRun) -> Any:
    """A reader of the gradient norm of the step that comes next."""
    seen: list[float] = []
    emit = type(run.events).emit.__get__(run.events)

    def listening(cls: type[Any], step: int, **fields: Any) -> Any:
        if "grad_norm" in fields:
            seen.append(fields["grad_norm"])
        return emit(cls, step, **fields)

    run.events.emit = listening  # type: ignore[method-assign]
    return lambda: seen[-1]


def shadow_of(run: TrainingRun, vectors: list[torch.Tensor], step: int, x: torch.Tensor, y: torch.Tensor) -> Any:
    """What each jump would have done to the probe loss, and the Gram matrix of the last displacements."""
    now = vectors[-1]
    before = probe(run, x, y)
    arms = {}
    for name, delta in jumps(vectors).items():
        put(run, now + delta)
        arms[name] = {"after": probe(run, x, y), "norm": float(delta.norm())}
    put(run, now)
    past = torch.stack([vectors[i] - vectors[i - 1] for i in range(2, len(vectors))])
    return {"step": step, "before": before, "arms": arms, "gram": (past @ past.T).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--text", default="stdlib", help="data.source: a text file, or stdlib")
    parser.add_argument("--quickstart", action="store_true", help="the preset's own model and tokenizer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--into", type=Path, default=Path("runs/hybrid-recordings"))
    arguments = parser.parse_args()
    model = {} if arguments.quickstart else MODEL
    sets = {**model, "data.source": arguments.text, "train.threads": arguments.threads}
    sets |= {"schedule.warmup_steps": arguments.steps // 20, "schedule.warmdown_steps": arguments.steps * 2 // 5}
    config, data = prepared(sets, arguments.steps)
    arguments.into.mkdir(parents=True, exist_ok=True)
    for seed in range(1, arguments.seeds + 1):
        path = arguments.into / f"seed-{seed}.json"
        if path.exists():
            continue
        result = record(with_rate(config, arguments.lr, seed), data)
        path.write_text(json.dumps(result))
        print(f"{path}: last loss {result['steps'][-1][1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
