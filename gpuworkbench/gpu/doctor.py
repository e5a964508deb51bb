"""`gpuworkbench doctor`: everything that keeps a run from working here, each with what to do about it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import platformdirs

from gpuworkbench.gpu import checks as single
from gpuworkbench.gpu.checks import Check, Status
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.gpu.torch_build import COMMAND, TIMEOUT_S, TorchProbe
from gpuworkbench.text import wrap_text

CHECK_TIMEOUT_S = 5.0  # a hung driver or a dead network mount must not hang the doctor
CACHE_VARIABLE = "GPUWORKBENCH_CACHE_DIR"
T = TypeVar("T")
_GLYPHS: dict[Status, str] = {"ok": "ok  ", "warn": "warn", "fail": "FAIL", "n/a": "n/a "}
_COLORS: dict[Status, str] = {"ok": "32", "warn": "33", "fail": "31", "n/a": "2"}


def run_checks(
    runs_dir: Path,
    cache_dir: Path | None = None,
    torch_command: Sequence[str] = COMMAND,
    torch_timeout_s: float = TIMEOUT_S,
) -> list[Check]:
    """Every check, in the order they are shown. Torch is asked in a subprocess while the others run. Never raises."""
    probe = TorchProbe(torch_command)
    cache = cache_dir or default_cache_dir()
    cards = within(CHECK_TIMEOUT_S, probe_cards)
    known = cards or []
    before = [
        *_checked("Python", single.check_python),
        *_checked("platform", single.check_platform),
        *_checked("packages", single.check_packages),
    ]
    if cards is None:
        driver = [_hung("driver", "restart the machine, or look at the driver's messages in dmesg")]
    else:
        driver = _checked("driver", lambda: single.check_driver(known))
    after = [
        *driver,
        *map(single.check_card, known),
        *_checked("CPU", single.check_host),
        *_checked("runs disk", lambda: single.check_disk("runs disk", runs_dir, "--runs-dir DIR")),
        *_checked("cache disk", lambda: single.check_disk("cache disk", cache, CACHE_VARIABLE)),
        *_checked("caches", lambda: single.check_caches(cache)),
        *_checked("terminal", single.check_terminal),
    ]
    return [*before, *single.check_torch(probe.result(torch_timeout_s), known), *after]


def render(checks: Sequence[Check], color: bool, columns: int | None = None) -> str:
    """The checks as aligned lines, advice below, and a last line that sums up; wrapped to `columns` where given."""
    width = max((len(check.name) for check in checks), default=0)
    indent = " " * (len(_GLYPHS["ok"]) + 2 + width + 2)
    room = None if columns is None else max(columns - len(indent), 20)
    lines = []
    for check in checks:
        mark = _GLYPHS[check.status]
        mark = f"\x1b[{_COLORS[check.status]}m{mark}\x1b[0m" if color else mark
        first, *rest = wrap_text(check.detail, room) if room else [check.detail]
        lines.append(f"{mark}  {check.name:<{width}}  {first}")
        lines += [indent + line for line in rest]
        if check.advice:
            first, *rest = wrap_text(check.advice, room - 3) if room else [check.advice]
            lines.append(f"{indent}-> {first}")
            lines += [f"{indent}   {line}" for line in rest]
    lines.append(_summary(checks))
    return "\n".join(lines)


def default_cache_dir() -> Path:
    """Where prepared data is kept: GPUWORKBENCH_CACHE_DIR, else the user's cache directory."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("gpuworkbench", appauthor=False)


def within(timeout_s: float, function: Callable[[], T]) -> T | None:
    """The function's result, None when it takes longer or raises OSError. Its thread is then left behind."""
    results: list[T] = []

    def call() -> None:
        try:
            results.append(function())
        except OSError:
            return

    thread = threading.Thread(target=call, daemon=True, name="doctor-check")
    thread.start()
    thread.join(timeout_s)
    return results[0] if results else None


def _checked(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    result = within(CHECK_TIMEOUT_S, check)
    if result is None:
        return [_hung(name, "check the disk or mount it is on")]
    return [result] if isinstance(result, Check) else result


def _hung(name: str, advice: str) -> Check:
    return Check(name=name, status="fail", detail=f"no answer within {CHECK_TIMEOUT_S:.0f} s", advice=advice)


def _summary(checks: Sequence[Check]) -> str:
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn")}
    if counts["fail"]:
        return f"{counts['fail']} of {len(checks)} checks failed; what to do stands below each"
    if counts["warn"]:
        return f"ready, with {counts['warn']} thing(s) worth a look"
    return "ready"
