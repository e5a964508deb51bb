"""What a first run on a card should show, measured in one call of under ten minutes. No network is used.

    python benchmarks/gpu_check.py [--parts a,b] [--time-limit-s 540] [--out FILE] [--again]
    python benchmarks/gpu_check.py --device cpu --small      the same code at a size that tests this script

Each part is a process of its own with a time limit of its own: one that fails, hangs or is killed is recorded, and the
rest goes on. Results are stored after each part, so that a second call does what is missing. Needs torch >= 2.11,
numpy, msgspec, psutil, platformdirs, safetensors, tokenizers, tomli-w and nvidia-ml-py; docs/gpu-check.md says more.
Exit code 0: every part done or skipped; 1: one failed or had no time; 2: a mistake in the command; 4: no CUDA device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

NEEDED = ("torch", "numpy", "msgspec", "psutil", "platformdirs", "safetensors", "tokenizers", "tomli_w", "pynvml")
DONE, FAILED, SKIPPED, TIMED_OUT, NOT_STARTED = "done", "failed", "skipped", "timed out", "not started"
LEAST_S = 8.0  # with less time left no part is started
TIME_LIMIT_S = 540.0


class Part(NamedTuple):
    """`target`: "module:function" of benchmarks.gpu, called with the place and `arguments`."""

    target: str
    limit_s: float
    what: str
    arguments: tuple[Any, ...] = ()


def _under_cap(preset: str, cap_gib: float, limit_s: float = 45.0) -> tuple[str, Part]:
    what = f"peak memory against the plan under {cap_gib:g} GiB"
    return f"memory/{preset}", Part("memory:preset_under_cap", limit_s, what, (preset, cap_gib))


# In the order of what matters most if time runs out.
PARTS: Mapping[str, Part] = dict(
    [
        ("environment", Part("correctness:environment", 30, "card, driver, versions")),
        ("correctness", Part("correctness:correctness", 60, "GPT-2 on the card against fp32 on the CPU")),
        ("speed/gpt2_small", Part("speed:gpt2_small", 90, "124M, 16 x 1024: tok/s, MFU, peak, torch.compile")),
        ("resume", Part("exactness:kill_and_resume", 90, "kill -9 and resume, bit for bit")),
        _under_cap("rtx5080_1b", 16, 75),
        ("out_of_memory", Part("memory:out_of_memory", 60, "a full card: classified, fixed, resumed")),
        ("speed/1b", Part("speed:flagship", 120, "985M: tok/s, MFU, peak, torch.compile")),
        ("transfers", Part("transfers:bandwidth", 45, "card to host and back: GB/s, overlap, exactness")),
        _under_cap("rtx5080_gpt2_medium", 16),
        _under_cap("rtx5080_gpt2_small_baseline", 16, 30),
        _under_cap("rtx5080_gpt2_small_hybrid", 16, 30),  # alone has what jumps need on the card
        _under_cap("rtx4090_gpt2_small", 24),
        ("offload", Part("exactness:streamed_state", 60, "optimizer state streamed from the host")),
        ("packed", Part("exactness:packed_optimizer", 75, "packed AdamW against fp32 AdamW")),
        ("hybrid", Part("exactness:hybrid", 90, "predictions taken and undone; kill and resume")),
        ("predict_aware", Part("moved:predict_aware", 90, "optimizer state away during jumps, predictor on the host")),
        ("activation_offload", Part("moved:activation_offload", 60, "activations through pinned host memory, exactly")),
        ("undo_on_disk", Part("moved:undo_on_disk", 60, "jumps undone from disk as from memory")),
        ("dynamics", Part("moved:dynamics_on_device", 60, "the dynamics model on the card, in exact mode")),
        _under_cap("rtx5080_gpt2_xl", 16),
    ]
)
CARD_PRESETS_LATER = {
    "rtx5080_1b_tight": 16,
    "rtx5080_1b_exact": 16,
    "rtx4060ti_1b": 8,
    "rtx5080_gpt2_small_memory": 16,
}


def all_parts() -> dict[str, Part]:
    """The parts, with one for each further card preset that this checkout has."""
    there = {path.stem for path in (ROOT / "presets").glob("*.toml")}
    further = (_under_cap(name, cap) for name, cap in CARD_PRESETS_LATER.items() if name in there)
    return {**PARTS, **dict(further)}


def main(argv: list[str] | None = None) -> int:
    """See the module; returns the exit code."""
    arguments = _arguments(argv)
    if arguments.run_part:
        return _run_part(arguments)
    parts = all_parts()
    wanted = list(parts) if arguments.parts is None else [name.strip() for name in arguments.parts.split(",")]
    unknown = [name for name in wanted if name not in parts]
    if unknown:
        return _refuse(f"there is no part {unknown[0]!r}; parts: {', '.join(parts)}", 2)
    missing = [name for name in NEEDED if not _is_installed(name)]
    if missing:
        return _refuse(f"not installed here: {', '.join(missing)}; docs/gpu-check.md names what is needed", 2)
    return _check(arguments, {name: parts[name] for name in dict.fromkeys(("environment", *wanted))})


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", help=f"comma-separated, of: {', '.join(all_parts())}")
    parser.add_argument("--time-limit-s", type=float, default=TIME_LIMIT_S, help="for everything (%(default).0f)")
    parser.add_argument("--part-limit-s", type=float, help="for each part, instead of its own limit")
    parser.add_argument("--out", type=Path, help="JSON file, written after each part (a second call goes on with it)")
    parser.add_argument("--again", action="store_true", help="measure parts anew that FILE has")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: to test the script, not the card")
    parser.add_argument("--run-part", help=argparse.SUPPRESS)
    parser.add_argument("--part-root", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace, parts: Mapping[str, Part]) -> int:
    out = arguments.out or Path(__file__).parent / "results" / f"gpu_check_{arguments.device}.json"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as root:
        report: dict[str, Any] = {"schema": 1, "device": arguments.device, "small": arguments.small, "parts": {}}
        for name, part in parts.items():
            left_s = arguments.time_limit_s - (time.monotonic() - started)
            if name != "environment" and _is_kept(report["parts"].get(name), again=arguments.again):
                _say(f"{name}: kept from an earlier call")
                continue
            limit_s = min(arguments.part_limit_s or part.limit_s, left_s)
            _say(f"{name}: {part.what} (at most {max(limit_s, 0):.0f} s)")
            is_out_of_time = left_s < LEAST_S
            report["parts"][name] = _no_time() if is_out_of_time else _measured(name, limit_s, Path(root), arguments)
            _say(f"{name}: {report['parts'][name]['status']}, {_headline(report['parts'][name])}")
            if name == "environment":
                found = report["parts"][name]
                if arguments.device == "cuda" and not found.get("is_cuda_available"):
                    why = found.get("reason") or "torch sees no CUDA device"
                    return _refuse(f"{why}; --device cpu --small tests this script without one", 4)
                report["environment"] = {key: value for key, value in found.items() if key != "headline"}
                report = _continued(out, report)
            _store(out, report)
    _table(report["parts"], parts)
    _say(f"stored in {out}")
    bad = [name for name in parts if report["parts"].get(name, {}).get("status") not in (DONE, SKIPPED)]
    return 1 if bad else 0


def _measured(name: str, limit_s: float, root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One part in a process group of its own, ended with everything it started when its time is up."""
    place = root / name.replace("/", "-")
    place.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--run-part", name, "--part-root", str(place)]
    command += ["--device", arguments.device, *(["--small"] if arguments.small else [])]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "GPUWORKBENCH_CACHE_DIR": str(root / "cache"),
        "XDG_STATE_HOME": str(root / "state"),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    started = time.monotonic()
    with (place / "log").open("wb") as log:
        child = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | None = child.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    result = _read(place / "result.json")
    result["seconds"] = round(time.monotonic() - started, 1)
    log_end = (place / "log").read_text(errors="replace")[-1500:]
    shutil.rmtree(place / "runs", ignore_errors=True)  # checkpoints of large models
    if code is None:
        result |= {"status": TIMED_OUT, "reason": f"ended at its limit of {limit_s:.0f} s", "log": log_end}
    elif "status" not in result:
        result |= {"status": FAILED, "reason": f"its process ended with {code}", "log": log_end}
    elif result["status"] == FAILED:
        result["log"] = log_end
    return result


def _no_time() -> dict[str, Any]:
    return {"status": NOT_STARTED, "reason": "no time was left", "seconds": 0.0}


def _run_part(arguments: argparse.Namespace) -> int:
    """In the part's own process: measure, and write what came out."""
    file, known = arguments.part_root / "result.json", {}

    def note(values: Mapping[str, Any]) -> None:
        known.update(values)
        _store(file, known)

    try:
        import importlib

        from benchmarks.gpu.common import Place, Skipped

        part = all_parts()[arguments.run_part]
        module, _, function = part.target.partition(":")
        work: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        place = Place(arguments.device, arguments.small, arguments.part_root, note)
        try:
            note({**work(place, *part.arguments), "status": DONE})
        except Skipped as reason:
            note({"status": SKIPPED, "reason": str(reason)})
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts go on
        traceback.print_exc()
        note({"status": FAILED, "reason": " ".join(f"{type(error).__name__}: {error}".split())[:600]})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no teardown: a card in trouble may hang in it


def _continued(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The report with the parts of an earlier call on the same hardware and versions."""
    earlier = _read(out)
    same = ("card", "driver", "cuda", "packages", "python", "revision")
    before, now = earlier.get("environment", {}), report["environment"]
    if all(before.get(key) == now.get(key) for key in same) and earlier.get("small") == report["small"]:
        kept = {name: part for name, part in earlier.get("parts", {}).items() if name != "environment"}
        return {**report, "parts": {**report["parts"], **kept}}
    return report


def _is_kept(found: Mapping[str, Any] | None, *, again: bool) -> bool:
    return found is not None and not again and found.get("status") in (DONE, SKIPPED)


def _store(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _table(found: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """The result, a line a part."""
    names = [name for name in parts if name in found]
    width = max(map(len, names), default=0)
    for name in names:
        result = found[name]
        print(f"{name:<{width}}  {result['status']:<11}  {result['seconds']:>5.0f} s  {_headline(result)}", flush=True)


def _headline(result: Mapping[str, Any]) -> str:
    return str(result.get("headline") or result.get("reason") or "")[:160]


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _refuse(text: str, code: int) -> int:
    _say(f"gpu_check: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main())
