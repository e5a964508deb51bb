"""The change that an attempt which ran out of memory left in its log, for `--apply-fix`."""

from __future__ import annotations

from gpuworkbench.config.loader import Override
from gpuworkbench.errors import ConfigError
from gpuworkbench.plan.memory_fix import FIX_KEYS
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import tail_events


def stored_fix(paths: RunPaths) -> tuple[Override, ...]:
    """What the newest attempt's out-of-memory event says to set. Raises ConfigError where there is nothing to apply."""
    events = tail_events(paths.events)
    newest = max((event.attempt for event in events), default=0)
    full = [event for event in events if event.kind == "cuda_oom" and event.attempt == newest]
    if not full:
        raise ConfigError(
            f"{paths.run_id}: its last attempt did not run out of memory, so there is no fix to apply",
            "leave --apply-fix out",
        )
    fix = full[-1].fix
    if not fix:
        raise ConfigError(
            f"{paths.run_id}: it ran out of memory, and no single change is known that would fit",
            "choose a smaller model, or change it with --fork and --set",
        )
    for key, value in fix.items():
        if type(value) is not FIX_KEYS.get(key):  # a log may hold anything
            raise ConfigError(
                f"{paths.run_id}: the fix in its log, {key[:80]} = {str(value)[:80]}, is none that --apply-fix applies",
                "set what you want with --fork and --set",
            )
    return tuple(Override(key, value, "--apply-fix", str(value)) for key, value in fix.items())
