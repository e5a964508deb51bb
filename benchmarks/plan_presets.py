"""What every preset is planned to need: the table of docs/planner.md.

    python -m benchmarks.plan_presets

From formulas, for the preset's own card; nothing is measured. Stored as benchmarks/results/plan_presets.json, and
printed as the table's rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._record import environment, write_result
from gpuworkbench.config.presets import configure, load_preset, preset_dirs
from gpuworkbench.gpu.host import Host
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.plan.judge import judge
from gpuworkbench.plan.targets import target_of
from gpuworkbench.units import GIB

NO_HOST = Host(memory_total_bytes=None, memory_available_bytes=None, cpu_name=None, physical_cores=1, is_wsl=False)


def main() -> None:
    rows = {path.stem: planned(path) for path in sorted(preset_dirs()[-1].glob("*.toml"))}
    rows = {name: row for name, row in rows.items() if row is not None}
    write_result("plan_presets", {"environment": environment("msgspec"), "presets": rows})
    for line in table(rows):
        print(line)


def planned(path: Path) -> dict[str, Any] | None:
    """One preset on its own card; None for one that is for any machine."""
    config = configure(load_preset(str(path)))
    predicted = estimate(config, kind="cuda")
    if config.card is None or predicted is None:
        return None
    target = target_of(config, None, [], NO_HOST, Path("/"))
    assert target.limit_bytes is not None
    return {
        "card": config.card.name,
        "limit_gib": round(target.limit_bytes / GIB, 2),
        "verdict": judge(predicted, target).value,
        "total_gib": round(predicted.total_bytes / GIB, 2),
        "predict_gib": None if predicted.predict_bytes is None else round(predicted.predict_bytes / GIB, 2),
        "moment": predicted.moment,
        "host_gib": round(predicted.host_bytes / GIB, 1),
        "pinned_gib": round(predicted.pinned_bytes / GIB, 1),
        "disk_gib": round(predicted.disk_bytes / GIB, 1),
        "parts_gib": {name: round(size / GIB, 2) for name, size in predicted.parts.items() if size},
    }


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| preset | card | planned | verdict | host | of it pinned | disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        verdict = row["verdict"].replace("_", " ")
        lines.append(
            f"| `{name}` | {row['card']} | {row['total_gib']:.2f} GiB | {verdict} | {row['host_gib']:.1f} GiB "
            f"| {row['pinned_gib']:.1f} GiB | {row['disk_gib']:.1f} GiB |"
        )
    return lines


if __name__ == "__main__":
    main()
