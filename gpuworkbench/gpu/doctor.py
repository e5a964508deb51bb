"""`gpuworkbench doctor`: everything that keeps a run from working here, each with what to do about it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
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
# What is looked at, in the order it is shown.
PLACES = (
    *("Python", "platform", "packages", "torch", "driver", "cards", "CPU"),
    *("runs disk", "cache disk", "caches", "terminal"),
)
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
    found = dict(stream_checks(runs_dir, cache_dir, probe, torch_timeout_s))
    return [check for place in PLACES for check in found[place]]


def stream_checks(
    runs_dir: Path, cache_dir: Path | None, probe: TorchProbe, torch_timeout_s: float = TIMEOUT_S
) -> Iterator[tuple[str, list[Check]]]:
    """The checks as they come: for each of PLACES, in any order, what is to be shown there. Never raises."""
    cache = cache_dir or default_cache_dir()
    yield "Python", _checked("Python", single.check_python)
    yield "platform", _checked("platform", single.check_platform)
    yield "packages", _checked("packages", single.check_packages)
    cards = within(CHECK_TIMEOUT_S, probe_cards)
    known = cards or []
    if cards is None:
        yield "driver", [_hung("driver", "restart the machine, or look at the driver's messages in dmesg")]
    else:
        yield "driver", _checked("driver", lambda: single.check_driver(known))
    yield "cards", [single.check_card(card) for card in known]
    yield "CPU", _checked("CPU", single.check_host)
    yield "runs disk", _checked("runs disk", lambda: single.check_disk("runs disk", runs_dir, "--runs-dir DIR"))
    yield "cache disk", _checked("cache disk", lambda: single.check_disk("cache disk", cache, CACHE_VARIABLE))
    yield "caches", _checked("caches", lambda: single.check_caches(cache))
    yield "terminal", _checked("terminal", single.check_terminal)
    yield "torch", single.check_torch(probe.result(torch_timeout_s), known)


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
    lines.append(summary(checks))
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


def summary(checks: Sequence[Check]) -> str:
    """How it stands, in one line."""
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn")}
    if counts["fail"]:
        return f"{counts['fail']} of {len(checks)} checks failed; what to do stands below each"
    if counts["warn"]:
        return f"ready, with {counts['warn']} thing(s) worth a look"
    return "ready"
