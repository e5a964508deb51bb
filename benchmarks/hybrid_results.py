"""The stored comparisons of the hybrid trainer as the tables, sentences and pictures of docs/hybrid-results.md.

    python -m benchmarks.hybrid_results            write them into the page, between its markers
    python -m benchmarks.hybrid_results --check    say whether the page is what the stored results make of it

A comparison is made by `gpuworkbench bench hybrid ... --out benchmarks/results/hybrid-NAME.json`. No figure of the page
is typed by hand. The summary stands in docs/hybrid.md too.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, write_pages
from gpuworkbench.plan.hybrid_bench import edge_of_grid

PAGE = Path(__file__).parents[1] / "docs" / "hybrid-results.md"
OVERVIEW = PAGE.with_name("hybrid.md")
BEGIN, END = "<!-- from the stored results: begin -->", "<!-- from the stored results: end -->"


def stored() -> dict[str, dict[str, Any]]:
    """Every stored comparison, by the name of its file; the main one first. That of adapters has a page of its own."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("hybrid-*.json"))}
    found.pop("hybrid-lora", None)
    return dict(sorted(found.items(), key=lambda item: -len(item[1]["arms"])))


def page_with(results: dict[str, dict[str, Any]], page: str) -> str:
    """`page` with what stands between its markers made anew."""
    return _between(page, [verdicts(results), *(section(name, result) for name, result in results.items())])


def overview_with(results: dict[str, dict[str, Any]], page: str) -> str:
    """`page` with the summary alone between its markers, and the main comparison's picture."""
    main_one = next(iter(results))
    picture = f"![Speed-ups with their intervals, {main_one}](../benchmarks/results/{main_one}-speedup.svg)"
    return _between(page, [verdicts(results, PAGE.name), picture])


def _between(page: str, parts: list[str]) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def verdicts(results: dict[str, dict[str, Any]], details: str = "") -> str:
    """What every arm came to in every comparison, in a table; each comparison's section is in `details`."""
    lines = ["## In short", ""] if not details else []
    lines += ["| comparison | faster | no measurable benefit | slower |", "|---|---|---|---|"]
    for name, result in results.items():
        cells: dict[str, list[str]] = {"faster": [], "no measurable benefit": [], "slower": []}
        for arm, row in compared(result).items():
            kind = next(kind for kind in cells if row["verdict"].startswith(kind))
            cells[kind].append(f"{arm} {times(row)}")
        columns = " | ".join(", ".join(found) or "-" for found in cells.values())
        lines.append(f"| [{name}]({details}#{name}) | {columns} |")
    return "\n".join(lines)


def section(name: str, result: dict[str, Any]) -> str:
    """One comparison: how it was made, its table, its pictures."""
    machine, tuned = result["machine"], result["tuned"]
    budgets = ", ".join(str(steps) for steps in result["budgets"])
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread(s) of {machine['cpu_cores']} cores"
    searched = sum(len(rates) for rates in result["tuning"].values())
    at_edge = edge_of_grid(result["tuning"], tuned["schedule"], tuned["lr"])
    edge = f", the {at_edge} of the rates tried: a better one may exist" if at_edge else ""
    baseline = (
        f"tuned over {searched} trials (seeds {span(result['tuning_seeds'])}): "
        f"{tuned['schedule']}, lr {tuned['lr']:g}{edge}"
        if searched
        else f"not tuned: {tuned['schedule']}, lr {tuned['lr']:g}"
    )
    lines = [
        f"## {name}",
        "",
        f"{machine['n_params']:,} parameters, "
        f"{machine['tokens_per_step']:,} tokens a step. Optimizer {result['optimizer']}; baseline {baseline}. "
        f"Seeds {span(result['seeds'])}, budgets of {budgets} steps, L* at {result['reference']}. "
        f"{where}; torch {machine['torch']}, Python {machine['python']}. "
        f"{result['training_seconds'] / 60:.0f} minutes of training on a shared machine. "
        f"Hybrid keys: {hybrid_keys(result)}. "
        f"Decided beforehand (sha256 {result['preregistration_sha256'][:16]}), {registered(result)}.",
        "",
        *(f"    {line}" for line in command(result)),
        "",
        "| arm | speed-up in cost [95 %] | in CPU time [95 %] | loss at equal tokens: difference [95 %] "
        "| jumps kept / undone | cost of a step | verdict |",
        "|---|---|---|---|---|---|---|",
        *(table_row(arm, row) for arm, row in compared(result).items()),
        "",
        *sentences(result),
        "",
        f"![Speed-ups with their intervals](../benchmarks/results/{name}-speedup.svg)",
        "",
        f"![Difference to the baseline's loss at each budget](../benchmarks/results/{name}-difference.svg)",
        "",
        f"![Loss at each budget](../benchmarks/results/{name}-loss.svg)",
    ]
    return "\n".join(lines)


def compared(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every arm but the baseline."""
    return {name: row for name, row in result["arms"].items() if name != "baseline"}


def table_row(arm: str, row: dict[str, Any]) -> str:
    """One arm."""
    difference, counts = row["equal_tokens"], row["counts"]
    jumps = f"{counts['accepted']} / {counts['rejected']}" if counts["accepted"] + counts["rejected"] else "-"
    loss = "diverged"
    if difference is not None:
        low, high = difference["interval"]
        loss = f"{difference['difference_nats']:+.4f} [{low:+.4f}, {high:+.4f}]"
    missed = f", L* not reached by {row['n_at_most']} of {row['n_seeds']}" if row["n_at_most"] else ""
    cpu_low, cpu_high = row["interval_cpu_seconds"]
    return (
        f"| {arm} | {times(row)} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}] "
        f"| {row['speedup_cpu_seconds']:.3f} [{cpu_low:.3f}, {cpu_high:.3f}] | {loss} | {jumps} "
        f"| {row['cost_per_step']:.3f} | {row['verdict']}{missed} |"
    )


def sentences(result: dict[str, Any]) -> list[str]:
    """What else the protocol asks for: equal tokens, and the overhead of what predicts nothing."""
    arms = compared(result)
    worse = [
        f"{name} ({row['worst_mean_at_equal_tokens']:+.2%})" for name, row in arms.items() if not row["is_never_worse"]
    ]
    hybrid = [row["worst_mean_at_equal_tokens"] for row in arms.values() if "hybrid.predictor" in row["sets"]]
    lines = ["At equal tokens, mean over the seeds, worst budget: "]
    if worse:
        lines[0] += f"more than 1 % above the baseline: {', '.join(worse)}; every other arm within 1 %."
    else:
        lines[0] += f"no arm more than 1 % above the baseline (the worst hybrid one {max(hybrid):+.2%})."
    if "null" in arms:
        row = arms["null"]
        low, high = row["cpu_overhead"]["interval"]
        lines.append(
            f"The control `null` jumps nowhere and pays for it all the same: {row['cost_per_step'] - 1:.1%} more cost "
            f"a step, {row['cpu_overhead']['relative']:+.1%} CPU time [{low:+.1%}, {high:+.1%}]."
        )
    for name, row in arms.items():
        if row["loss"] == result["arms"]["baseline"]["loss"]:
            low, high = row["cpu_overhead"]["interval"]
            lines.append(
                f"`{name}` is the very training that tuning chose as the baseline, and its CPU time differs by "
                f"{row['cpu_overhead']['relative']:+.1%} [{low:+.1%}, {high:+.1%}]: so much of any difference "
                "in time is the machine's."
            )
    if not result["is_complete"]:
        lines.append("Not complete: some trials are still to do.")
    return lines


def command(result: dict[str, Any]) -> list[str]:
    """The command that makes such a comparison, in lines."""
    plan = result["preregistration"]["plan"]
    tuning = ["--untuned"] if not plan["schedules"] else []
    if plan["schedules"]:
        tuning += [f"--schedules {','.join(plan['schedules'])}"]
        tuning += [] if plan["adapts"] else [f"--lrs {','.join(f'{lr:g}' for lr in plan['rates'])}"]
    sets = [f"--set {key}={value}" for key, value in result["sets"].items()]
    own = [arm for arm in plan["arms"] if ", with " in arm["what"]]
    arms = ",".join(arm["name"] for arm in plan["arms"] if arm["name"] != "baseline" and arm not in own)
    scale = f"--seeds {len(plan['seeds'])} --budgets {','.join(map(str, plan['budgets']))}"
    parts = [f"gpuworkbench bench hybrid --preset {result['preset']}", *sets, scale, *tuning, f"--arms {arms}"]
    for arm in own:
        base = arm["sets"].get("hybrid.predictor", "baseline")
        parts.append(f"--arm {arm['name']}={base},{arm['what'].partition(', with ')[2].replace(', ', ',')}")
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) > 100:
            lines.append("    ")
        lines[-1] += f"{part} "
    return [*(f"{line}\\" for line in lines[:-1]), lines[-1].rstrip()]


def hybrid_keys(result: dict[str, Any]) -> str:
    """The numbers that phases and predictors go by, as they were: a preset may have others by now."""
    values = result["config"]["hybrid"].items()
    return ", ".join(f"{key} {value:g}" for key, value in values if type(value) in (int, float))


def registered(result: dict[str, Any]) -> str:
    """When."""
    return str(result["preregistration"]["written_utc"])


def times(row: dict[str, Any]) -> str:
    """The speed-up, marked where it is only a bound."""
    mark = "<= " if row["n_at_most"] else ">= " if row["n_at_least"] else ""
    return f"{mark}{row['speedup']:.3f}"


def span(numbers: list[int]) -> str:
    """`1, 2, 3` as 1-3."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def main() -> None:
    results = stored()
    pages = {PAGE: partial(page_with, results), OVERVIEW: partial(overview_with, results)}
    write_pages(__doc__.splitlines()[0], pages)


if __name__ == "__main__":
    main()
