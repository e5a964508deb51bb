"""GPT-2 small three ways: rtx5080_gpt2_small_baseline, _hybrid and _memory, one report.

    python -m benchmarks.small_three [--runs DIR]            the presets' CPU twins
    python -m benchmarks.small_three --full [--steps N]      124M parameters on this CPU
    python -m benchmarks.small_three --card                  the presets as they are, on the card
    python -m benchmarks.small_three --markdown              the stored result as docs/compare-small.md has it

Each is a run of the real command; a run in --runs that is finished is not made again. Peaks by phase come from a short
run of the same configuration with every allocation recorded. Stored in benchmarks/results as
small_three[-full|-card].json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._record import RESULTS, write_result
from benchmarks.real_runs import Case, figures, finished, measured_peaks, surroundings
from gpuworkbench.units import format_bytes, format_duration

PRESETS = {name: f"rtx5080_gpt2_small_{name}" for name in ("baseline", "hybrid", "memory")}
# The published tokenizer needs a download; a vocabulary of its size keeps the model's.
OFFLINE = {"device.kind": "cpu", "data.tokenizer": "bpe-8192", "model.vocab_size": 50_257}
WORDS = {"matrix products": "computing: matrix products", "other": "computing: small operations"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="124M parameters on the CPU: hours, so give --steps")
    size.add_argument("--card", action="store_true", help="on a CUDA card")
    parser.add_argument("--steps", type=int, help="default: the presets' 100")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, help="where runs are kept (default: they are thrown away)")
    parser.add_argument("--markdown", action="store_true", help="print the stored result as tables; runs nothing")
    arguments = parser.parse_args()
    kind = "full" if arguments.full else "card" if arguments.card else "twin"
    name = "small_three" if kind == "twin" else f"small_three-{kind}"
    if not arguments.markdown:
        with tempfile.TemporaryDirectory() as folder:
            runs = (arguments.runs or Path(folder)).absolute()
            before, found = surroundings(), {}
            for short, case in cases(kind, arguments.threads).items():
                run = figures(finished(case, runs / f"{kind}-{short}", arguments.steps))
                found[short] = {**run, "short_run": measured_peaks(case)}
        load_after = surroundings()["load_average_1min"]
        write_result(name, {"environment": before, "load_after": load_after, "kind": kind, "runs": found})
    print("\n".join(report(msgspec.json.decode((RESULTS / f"{name}.json").read_bytes()))))


def cases(kind: str, threads: int) -> dict[str, Case]:
    """The three, as they are run."""
    sets: dict[str, Any] = {"sample.interval_steps": 0}
    if kind != "card":
        sets["train.threads"] = threads
    sets |= OFFLINE if kind == "full" else {}
    words = ("--cpu-twin",) if kind == "twin" else ()
    return {name: Case(preset, sets, words) for name, preset in PRESETS.items()}


def report(result: dict[str, Any]) -> list[str]:
    """Markdown: where it was measured, and the table."""
    environment, runs = result["environment"], result["runs"]
    first = next(iter(runs.values()))
    loads = f"{environment['load_average_1min']:.0f} to {result['load_after']:.0f}"
    where = f"{first['device']} of {environment['cpu']}, {environment['cpu_cores']} cores, load average {loads}"
    lines = [
        f"Measured on {where}, torch {environment['packages']['torch']}: {first['n_params']:,} parameters,"
        f" {first['steps']} steps, one seed.",
        "",
        f"| | {' | '.join(runs)} |",
        f"|---|{'---|' * len(runs)}",
    ]
    for label, text in ROWS.items():
        lines.append(f"| {label} | {' | '.join(text(run) for run in runs.values())} |")
    return lines


def bottleneck(run: Mapping[str, Any]) -> str:
    """What takes most of the time: of the run's parts the largest, and within steps the largest kind of operation."""
    spent = run["time_shares"]
    part = max(spent, key=spent.get)
    if part != "steps":
        return f"{part} ({spent[part]:.0%} of the time)"
    operations = run["short_run"]["operation_shares"]
    kind = max(operations, key=operations.get)
    return f"{WORDS.get(kind, kind)} ({operations[kind]:.0%} of the operators' time; steps are {spent[part]:.0%})"


def _peak(*phases: str) -> Callable[[Mapping[str, Any]], str]:
    def text(run: Mapping[str, Any]) -> str:
        short = run["short_run"]
        known = [short["peak_bytes"][phase] for phase in phases if phase in short["peak_bytes"]]
        if not known:
            return "none"
        full = short["peak_bytes"]["full"]
        less = "" if phases == ("full",) else f" ({max(known) / full - 1:+.0%})"
        nvml = [short["nvml_bytes"][phase] for phase in phases if short["nvml_bytes"] and phase in short["nvml_bytes"]]
        return format_bytes(max(known)) + less + (f", NVML {format_bytes(max(nvml))}" if nvml else "")

    return text


def _shares(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda run: ", ".join(f"{name} {share:.1%}" for name, share in run[key].items())


ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "tokens a step": lambda run: f"{run['tokens'] // run['steps']}",
    "tokens a second, in steps": lambda run: f"{run['tokens_per_s']:,.0f}",
    "wall time": lambda run: format_duration(run["wall_s"]),
    "validation loss": lambda run: f"{run['val_loss']:.4f}",
    "perplexity": lambda run: f"{run['val_perplexity']:,.0f}",
    "largest rise of the loss in a step": lambda run: f"{run['max_loss_rise']:.2f}",
    "losses that are no number": lambda run: str(run["nonfinite_losses"]),
    "jumps kept, undone, rolled back": lambda run: f"{run['accepted']}, {run['rejected']}, {run['rollbacks']}",
    "divergences told": lambda run: str(run["divergences"]),
    "peak, full": _peak("full"),
    "peak, correct": _peak("correct"),
    "peak, predict": _peak("predict"),
    "peak, jumps over one step": _peak("predict, one step"),
    "peak, state coming back": _peak("return"),
    "host memory of the process": lambda run: format_bytes(run["host_peak_bytes"]),
    "time by phase": _shares("phase_shares"),
    "time by part": _shares("time_shares"),
    "transfers that were waited for": lambda run: format_duration(run["transfers_not_hidden_s"]),
    "bottleneck": bottleneck,
}


if __name__ == "__main__":
    main()
