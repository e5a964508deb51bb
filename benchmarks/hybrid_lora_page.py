"""The stored comparison on low-rank adapters as the tables and sentences of docs/hybrid-lora.md.

python -m benchmarks.hybrid_lora_page            write them into the page, between its markers
python -m benchmarks.hybrid_lora_page --check    say whether the page is what the stored result makes of it
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks._record import RESULTS, write_page
from benchmarks.hybrid_lora import NAME
from benchmarks.hybrid_results import span, times
from gpuworkbench.plan.hybrid_analysis import NO_BENEFIT

PAGE = Path(__file__).parents[1] / "docs" / "hybrid-lora.md"
BEGIN, END = "<!-- from the stored result: begin -->", "<!-- from the stored result: end -->"
HEAD = (
    "| rate | arm | speed-up in cost [95 %] | in CPU time [95 %] | loss at {steps} steps | jumps kept / undone "
    "| virtual steps | cost of a step | verdict |",
    "|---|---|---|---|---|---|---|---|---|",
)


def stored() -> dict[str, Any]:
    """The stored comparison."""
    loaded: dict[str, Any] = json.loads((RESULTS / f"{NAME}.json").read_text())
    return loaded


def page_with(result: dict[str, Any], page: str) -> str:
    """`page` with what stands between its markers made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = [line.format(steps=result["reference"]) for line in HEAD]
    parts = [
        "## In short",
        "\n".join(f"- {line}" for line in in_short(result)),
        "## At the same rate",
        setting(result),
        "Each arm against AdamW at the same rate. L* is that AdamW's loss.",
        "\n".join([*head, *(table_row(result, "arms", name) for name in result["arms"])]),
        "## Against the tuned rate",
        "Each arm against AdamW at the tuned rate: does a low rate with jumps make up for the tuning?",
        "\n".join([*head, *(table_row(result, "against_tuned", name) for name in result["against_tuned"])]),
    ]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def in_short(result: dict[str, Any]) -> list[str]:
    """Where it helps and where it does not, in sentences."""
    same, tuned = result["arms"], result["against_tuned"]
    lines = [
        told(same[f"{rate} line_jump"], f"At {said(rate)}, against AdamW at that rate") for rate in result["rates"]
    ]
    for rate in result["rates"]:
        if rate != "tuned":
            lines.append(told(tuned[f"{rate} line_jump"], f"At {said(rate)}, against AdamW at the tuned rate"))
    return lines


def told(row: dict[str, Any], where: str) -> str:
    """One comparison in a sentence, with the verdict's own words."""
    missed = f"; L* was not reached by {row['n_at_most']} of {row['n_seeds']} seeds" if row["n_at_most"] else ""
    word = row["verdict"] if row["verdict"].startswith(NO_BENEFIT) else f"**{row['verdict']}**"
    return f"{where}: {word}, {times(row)} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]{missed}."


def said(rate: str) -> str:
    """A rate's name in words."""
    return {"tuned": "the tuned rate", "tuned/3": "a third of it", "tuned/10": "a tenth of it"}[rate]


def setting(result: dict[str, Any]) -> str:
    """What was trained, on what, when."""
    machine, base, adapters = result["machine"], result["base"], result["adapters"]
    tuning = ", ".join(f"{lr}: {'diverged' if loss is None else f'{loss:.4f}'}" for lr, loss in by_rate(result))
    is_edge = f"{result['rates']['tuned']:g}" in (by_rate(result)[0][0], by_rate(result)[-1][0])
    return (
        f"Base: {machine['n_params']:,} parameters, {base['steps']} steps on {base['text']}; its validation loss is "
        f"{base['val_loss']:.4f} nats a byte there, and {base['val_loss_on_the_new_text']:.4f} on {result['text']} "
        "before any adapter. "
        f"Adapters: rank {adapters['rank']}, alpha {adapters['alpha']:g}, {adapters['n_params']:,} parameters, "
        f"{machine['tokens_per_step']} tokens a step. Tuned rate {result['rates']['tuned']:g}"
        f"{', at the edge of the grid' if is_edge else ''} "
        f"(seed {span(result['tuning_seeds'])}; {tuning}). Seeds {span(result['seeds'])}, budgets of "
        f"{', '.join(map(str, result['budgets']))} steps, L* at {result['reference']}. "
        f"{machine['cpu']}, {machine['threads']} thread of {machine['cpu_cores']} cores, load "
        f"{machine['load_average_1min_at_start']:.0f}; torch {machine['torch']}, Python {machine['python']}; "
        f"{result['cpu_seconds'] / 60:.1f} CPU minutes of training. Decided before the measured trials (sha256 "
        f"{result['preregistration_sha256'][:16]}), {result['preregistration']['written_utc']}."
    )


def by_rate(result: dict[str, Any]) -> list[tuple[str, float | None]]:
    """The rates that were tried in tuning with their losses, from the lowest."""
    return sorted(result["tuning"].items(), key=lambda item: float(item[0]))


def table_row(result: dict[str, Any], table: str, name: str) -> str:
    """The row of one arm."""
    row = result[table][name]
    rate, _, arm = name.rpartition(" ")
    loss = "diverged" if None in (losses := row["loss"][str(result["reference"])]) else f"{fmean(losses):.4f}"
    counts = row["counts"]
    jumps = f"{counts['accepted']} / {counts['rejected']}" if counts["accepted"] + counts["rejected"] else "-"
    (low, high), (cpu_low, cpu_high) = row["interval"], row["interval_cpu_seconds"]
    is_base = arm == "baseline" and (table == "arms" or not rate)
    speed = "1" if is_base else f"{times(row)} [{low:.3f}, {high:.3f}]"
    cpu = "1" if is_base else f"{row['speedup_cpu_seconds']:.3f} [{cpu_low:.3f}, {cpu_high:.3f}]"
    missed = f", L* not reached by {row['n_at_most']} of {row['n_seeds']}" if row["n_at_most"] else ""
    verdict = "-" if is_base else row["verdict"] + missed
    return (
        f"| {rate or 'tuned'} | {'AdamW' if arm == 'baseline' else arm} | {speed} | {cpu} | {loss} | {jumps} "
        f"| {counts['virtual_steps'] or '-'} | {row['cost_per_step']:.3f} | {verdict} |"
    )


def main() -> None:
    write_page(__doc__.splitlines()[0], PAGE, lambda page: page_with(stored(), page))


if __name__ == "__main__":
    main()
