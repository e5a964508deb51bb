"""Dynamics model, confidence, corrector, bandit and learned coefficients, each against its own removal on recordings.

    python -m benchmarks.hybrid_record --seeds 8 --text FILE --into runs/hybrid-recordings    (first, minutes)
    python -m benchmarks.hybrid_parts [--recordings runs/hybrid-recordings] [--first-seed 1]
    python -m benchmarks.hybrid_parts --markdown      the stored result as the tables of docs/hybrid-parts.md

Every piece sees a recording step by step, as beside a training, and is judged on what it says before the truth comes.
Ratios are of mean absolute errors, with against without; the interval is a 95 % t-interval of the log ratios over
runs. Stored as benchmarks/results/hybrid_parts.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._record import RESULTS, torch_environment, write_result
from benchmarks.hybrid_record import prepared
from gpuworkbench.hybrid.acceptance import AcceptanceRate
from gpuworkbench.hybrid.advice.corrector import CorrectorAdvice
from gpuworkbench.hybrid.advice.dynamics import DynamicsAdvice
from gpuworkbench.hybrid.bandit import OFF, Arm, LinUcb, advantage, context_of
from gpuworkbench.hybrid.calibration import AcceptanceRate as BetaRate
from gpuworkbench.hybrid.calibration import Reliability
from gpuworkbench.hybrid.coefficients import LinearCoefficients, MlpCoefficients, lesson
from gpuworkbench.hybrid.components import Outcome
from gpuworkbench.hybrid.cost import cost_table
from gpuworkbench.hybrid.divergence import DivergenceMonitor
from gpuworkbench.hybrid.dynamics.rssm import HIDDEN, LATENT
from gpuworkbench.hybrid.dynamics.trend import Trend
from gpuworkbench.hybrid.loss_trend import LossTrend
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.trial import scratch_run

HORIZONS = (5, 10, 20)
SKIP = 100  # steps before anything is judged: nobody predicts there
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201}
BANDIT_ARMS = ("trend-5", "last-5", "random-5", "average-3", "average-6")


def signals_of(run: dict[str, Any]) -> list[StepSignals]:
    return [StepSignals(int(row[0]), run["max_steps"], "full", *row[1:]) for row in run["steps"]]


def truth(losses: np.ndarray, at: int, horizon: int) -> float:
    """Mean log-loss of the five steps that end `horizon` after step index `at`."""
    return float(losses[at + horizon - 4 : at + horizon + 1].mean())


def forecasts(run: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Mean absolute error in log-loss by way of forecasting and horizon."""
    steps = signals_of(run)
    losses = np.log([s.loss for s in steps])
    holt, trend = LossTrend(), Trend()
    dynamics = DynamicsAdvice(1, run["step_flops"], torch.device("cpu"))
    often = DynamicsAdvice(1, 1e15, torch.device("cpu"))  # learns every tick, whatever that costs
    corrector = CorrectorAdvice(holt.predicted)
    errors: dict[str, dict[int, list[float]]] = {}
    inside = {"dynamics": [0, 0]}
    for at, signals in enumerate(steps):
        holt.observe(signals.loss)
        trend.push(float(losses[at]))
        for piece in (dynamics, often, corrector):
            piece.observe(signals)
        if at < SKIP or at % 5 != 4 or at + HORIZONS[-1] >= len(steps):
            continue
        for horizon in HORIZONS:
            y, middle = truth(losses, at, horizon), horizon - 2
            plain = holt.predicted(middle) or math.nan
            said = {
                "level, no slope": math.exp(trend.fast),
                "removal": plain,
                "dynamics": dynamics.predicted_loss(middle) or math.nan,
                "dynamics, learning every tick": often.predicted_loss(middle) or math.nan,
                "corrector": corrector.corrected_loss(plain, horizon),
            }
            for name, loss in said.items():
                errors.setdefault(name, {}).setdefault(horizon, []).append(abs(y - math.log(loss)))
            made = dynamics.model.forecast(middle)
            inside["dynamics"][0] += abs(y - made.log_loss) <= 1.2816 * made.sd
            inside["dynamics"][1] += 1
    result = {name: {h: statistics.mean(e) for h, e in by.items()} for name, by in errors.items()}
    result["share within the 80 % interval"] = {0: inside["dynamics"][0] / max(inside["dynamics"][1], 1)}
    return result


def confidences(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Brier scores of the confidence, with the dynamics model and without, by kind of jump; the probe must improve."""
    steps, result = signals_of(run), {}
    for arm in ("random-5", "average-3", "average-6"):
        advice = DynamicsAdvice(1, run["step_flops"], torch.device("cpu"))
        rate, plain = AcceptanceRate(), Reliability()
        smooth, smoothed = BetaRate(), Reliability()
        shadows = {shadow["step"]: shadow for shadow in run["shadows"]}
        horizon = int(arm.split("-")[1])
        for signals in steps:
            advice.observe(signals)
            shadow = shadows.get(signals.step)
            if shadow is None:
                continue
            accepted = shadow["arms"][arm]["after"] < shadow["before"]
            known = rate.rate()
            plain.note(0.5 if known is None else known, accepted)
            rate.note(accepted)
            smoothed.note(smooth.rate, accepted)
            smooth.learn(accepted)
            advice.judged(Outcome(signals.step, horizon, accepted, shadow["before"], shadow["arms"][arm]["after"], 2))
        brier, bins = advice.reliability()
        result[arm] = {
            "removal": plain.brier,
            "smoothed rate": smoothed.brier,
            "dynamics": brier,
            "jumps": plain.count,
            "bins": bins,
        }
    return result  # type: ignore[return-value]


def bandits(run: dict[str, Any]) -> dict[str, float]:
    """Mean reward a decision: the bandit's, each arm's alone, and 0 for off. Rewards are of the probe, at once."""
    n, probe_tokens = run["n_params"], run["probe_flops"] / (2 * run["n_params"])
    costs = cost_table(n, int(run["step_flops"] / (6 * n)), int(probe_tokens / 6), 4 * n)  # 8 probe sequences of 48
    cost = 2 * costs["probe"] + 3 * costs["copy"]
    arms = [Arm(name.split("-")[0], int(name.split("-")[1])) for name in BANDIT_ARMS]
    bandit, trend, at = LinUcb(arms), Trend(), 0
    steps = signals_of(run)
    totals = dict.fromkeys((*BANDIT_ARMS, "bandit"), 0.0)
    for shadow in run["shadows"]:
        while at < shadow["step"]:
            trend.push(math.log(steps[at].loss))
            at += 1
        drops = {name: math.log(shadow["before"] / shadow["arms"][name]["after"]) for name in BANDIT_ARMS}
        rate = max(0.0, -trend.slope)
        rewards = {name: advantage(max(drop, 0.0), cost, rate) for name, drop in drops.items()}
        context = context_of(shadow["step"] / run["max_steps"], None, None, 0.0, 0.0)
        choice = bandit.choose(context).arm
        for name, arm in zip(BANDIT_ARMS, arms, strict=True):
            totals[name] += rewards[name]
            if arm == choice and choice.predictor != OFF:
                totals["bandit"] += rewards[name]
                bandit.reward(arm, context, rewards[name])
    for name, arm in zip(BANDIT_ARMS, arms, strict=True):
        totals[f"{name} or off"] = gated(run, name, arm, cost)
    count = len(run["shadows"])
    return {name: total / count for name, total in totals.items()} | {"off": 0.0}


def gated(run: dict[str, Any], name: str, arm: Arm, cost: float) -> float:
    """The sum of rewards of one arm that the bandit may switch off: what it is to a run with one predictor."""
    bandit, trend, at, total = LinUcb([arm]), Trend(), 0, 0.0
    steps = signals_of(run)
    for shadow in run["shadows"]:
        while at < shadow["step"]:
            trend.push(math.log(steps[at].loss))
            at += 1
        context = context_of(shadow["step"] / run["max_steps"], None, None, 0.0, 0.0)
        if bandit.choose(context).arm.predictor != OFF:
            drop = math.log(shadow["before"] / shadow["arms"][name]["after"])
            reward = advantage(max(drop, 0.0), cost, max(0.0, -trend.slope))
            bandit.reward(arm, context, reward)
            total += reward
    return total


def coefficients(run: dict[str, Any]) -> dict[str, float]:
    """Relative squared error of the next displacement (1: nothing predicted), and the best in hindsight."""
    linear, mlp, learned = LinearCoefficients(), MlpCoefficients(), LinearCoefficients(11 + HIDDEN + LATENT)
    advice = DynamicsAdvice(1, run["step_flops"], torch.device("cpu"))
    targets: list[np.ndarray] = []
    errors: dict[str, list[float]] = {}
    steps, at = signals_of(run), 0
    for shadow in run["shadows"]:
        while at < shadow["step"]:
            advice.observe(steps[at])
            at += 1
        if "products" not in shadow:
            continue
        taught = lesson(np.asarray(shadow["gram"]), np.asarray(shadow["products"]), shadow["square"])
        latent = advice.latent()
        wide = np.concatenate((taught.inputs, np.zeros(HIDDEN + LATENT) if latent is None else latent))
        said = {
            "running mean": np.mean(targets[-30:], axis=0) if targets else np.zeros(5),
            "linear": linear.predict(taught.inputs),
            "mlp": mlp.predict(taught.inputs),
            "learned": learned.predict(wide),
            "hindsight": taught.target,
        }
        if shadow["step"] > 2 * SKIP:
            for name, c in said.items():
                error = taught.square - 2 * c @ taught.products + c @ taught.gram @ c
                errors.setdefault(name, []).append(float(error) / taught.square)
        targets.append(taught.target)
        linear.learn(taught)
        mlp.learn(taught)
        learned.learn(taught._replace(inputs=wide))
    return {name: statistics.mean(found) for name, found in errors.items()}


def alarms(run: dict[str, Any]) -> int:
    """Divergence events on a healthy run: none is right."""
    monitor = DivergenceMonitor(2.5)
    return sum(monitor.observe(signals).is_news for signals in signals_of(run))


def interval(logs: Sequence[float]) -> dict[str, Any]:
    """Geometric mean of ratios and its 95 % t-interval."""
    mean, n = statistics.mean(logs), len(logs)
    half = T_95[n - 1] * statistics.stdev(logs) / n**0.5 if n > 1 else math.inf
    return {"ratio": math.exp(mean), "interval": [math.exp(mean - half), math.exp(mean + half)], "runs": n}


def over_runs(results: list[Any], value: Callable[[Any, str], float], name: str, against: str) -> dict[str, Any]:
    return interval([math.log(value(result, name) / value(result, against)) for result in results])


def overhead(run: dict[str, Any]) -> dict[str, float]:
    """CPU milliseconds a step: the dynamics model's, the corrector's and the monitor's beside the quickstart's own."""
    config, data = prepared({"train.threads": 1, "data.source": "stdlib"}, 50)
    with scratch_run(config, data) as (training, _):
        train_one_step(training)
        started = time.process_time()
        for _ in range(6):
            train_one_step(training)
        step_ms = (time.process_time() - started) / 6 * 1e3
        flops = 6.0 * config.model.n_params() * config.tokens_per_step
    steps, holt = signals_of(run), LossTrend()
    pieces: dict[str, Any] = {
        "dynamics": DynamicsAdvice(1, flops, torch.device("cpu")),
        "corrector": CorrectorAdvice(holt.predicted),
        "monitor": DivergenceMonitor(2.5),
    }
    result = {"step_ms": step_ms, "dynamics_updates_every_steps": 5.0 * pieces["dynamics"].model.interval}
    for name, piece in pieces.items():
        started = time.process_time()
        for signals in steps:
            holt.observe(signals.loss)
            piece.observe(signals)
        each = (time.process_time() - started) / len(steps) * 1e3
        result |= {f"{name}_ms": each, f"{name}_share": each / step_ms}
    return result


def markdown(result: dict[str, Any]) -> str:
    """The stored result as tables."""
    lines = ["| forecast of the loss | 5 steps | 10 steps | 20 steps |", "|---|---|---|---|"]
    for name, row in result["forecasts"].items():
        cells = [
            f"{row[str(h)]['ratio']:.3f} ({row[str(h)]['interval'][0]:.3f}-{row[str(h)]['interval'][1]:.3f})"
            for h in HORIZONS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| confidence: Brier score | without | smoothed rate | with the dynamics model | ratio |",
        "|---|---|---|---|---|",
    ]
    for arm, row in result["confidence"].items():
        low, high = row["interval"]
        scores = " | ".join(f"{row[kind]:.3f}" for kind in ("removal", "smoothed rate", "dynamics"))
        lines.append(f"| {arm} | {scores} | {row['ratio']:.2f} ({low:.2f}-{high:.2f}) |")
    lines += ["", "| mean reward a decision | |", "|---|---|"]
    lines += [f"| {name} | {value:+.5f} |" for name, value in sorted(result["bandit"]["mean_reward"].items())]
    lines += ["", "| relative error of the next displacement | |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in result["coefficients"].items()]
    cost = result["overhead"]
    lines += ["", "| CPU time a step | ms | share |", "|---|---|---|"]
    lines += [
        f"| {name} | {cost[f'{name}_ms']:.3f} | {cost[f'{name}_share']:.2%} |"
        for name in ("dynamics", "corrector", "monitor")
    ]
    return "\n".join(lines)


def judged(path: Path) -> dict[str, Any]:
    """All pieces on one recording; kept beside it, so that an interrupted measurement goes on."""
    kept = path.with_name(f"parts-{path.name}")
    if not kept.exists():
        run = json.loads(path.read_text())
        result = {
            "forecasts": {name: {str(h): e for h, e in row.items()} for name, row in forecasts(run).items()},
            "confidence": confidences(run),
            "bandit": bandits(run),
            "coefficients": coefficients(run),
            "alarms": alarms(run),
            "steps": len(run["steps"]),
        }
        kept.write_text(json.dumps(result))
        print(f"{path}: judged", flush=True)
    return json.loads(kept.read_text())


def measured(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything but the overhead, over what `judged` gave of each recording."""
    found = [run["forecasts"] for run in runs]
    names = [name for name in found[0] if name not in ("removal", "share within the 80 % interval")]
    ratios = {
        name: {str(h): over_runs(found, lambda r, n, h=h: r[n][str(h)], name, "removal") for h in HORIZONS}
        for name in names
    }
    scores = [run["confidence"] for run in runs]
    confidence = {}
    for arm in scores[0]:
        pairs = [(s[arm]["dynamics"], s[arm]["removal"]) for s in scores]
        known = [math.log(max(a, 1e-4) / max(b, 1e-4)) for a, b in pairs]
        confidence[arm] = {
            "dynamics": statistics.mean(a for a, _ in pairs),
            "removal": statistics.mean(b for _, b in pairs),
            "smoothed rate": statistics.mean(s[arm]["smoothed rate"] for s in scores),
            **interval(known),
        }
    rewards = [run["bandit"] for run in runs]
    means = {name: statistics.mean(r[name] for r in rewards) for name in rewards[0]}
    best = max((name for name in means if name != "bandit"), key=lambda name: means[name])
    errors = [run["coefficients"] for run in runs]
    return {
        "forecasts": ratios,
        "mean_absolute_error_of_the_removal": {
            str(h): statistics.mean(r["removal"][str(h)] for r in found) for h in HORIZONS
        },
        "share_within_80_percent_interval": statistics.mean(r["share within the 80 % interval"]["0"] for r in found),
        "confidence": confidence,
        "bandit": {"mean_reward": means, "best_arm_in_hindsight": best},
        "coefficients": {name: statistics.mean(e[name] for e in errors) for name in errors[0]},
        "false_alarms": sum(run["alarms"] for run in runs),
        "steps": sum(run["steps"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, nargs="+", default=[Path("runs/hybrid-recordings")])
    parser.add_argument("--first-seed", type=int, default=1, help="leave out the seeds that constants were chosen on")
    parser.add_argument("--markdown", action="store_true", help="print the stored result, measure nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads((RESULTS / "hybrid_parts.json").read_text())))
        return
    torch.set_num_threads(1)
    paths = [path for folder in arguments.recordings for path in sorted(folder.glob("seed-*.json"))]
    used = [path for path in paths if int(path.stem.removeprefix("seed-")) >= arguments.first_seed]
    runs = [json.loads(path.read_text()) for path in used]
    if not runs:
        raise SystemExit("no recordings: run python -m benchmarks.hybrid_record first")
    setting = {"runs": len(runs), "n_params": runs[0]["n_params"], "max_steps": runs[0]["max_steps"]}
    result = {
        "environment": torch_environment(1),
        "setting": setting,
        **measured([judged(path) for path in used]),
        "overhead": overhead(runs[0]),
    }
    write_result("hybrid_parts", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
