"""The doctor's single checks: each looks at one thing and says what to do about it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from gpuworkbench.errors import UsageError
from gpuworkbench.gpu import host
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.torch_build import TorchBuild, TorchDevice, architecture_supported
from gpuworkbench.text import safe_text
from gpuworkbench.units import GIB, format_bytes

Status = Literal["ok", "warn", "fail", "n/a"]
MIN_PYTHON = (3, 11)
LOW_DISK_BYTES = 5 * GIB
LOW_MEMORY_BYTES = 2 * GIB
MIN_COLUMNS, MIN_ROWS = 80, 24
MIN_CUDA_FOR_BLACKWELL = (12, 8)  # the first toolkit with compute capability 12.0
# name -> why the program needs it
NATIVE_PACKAGES = ("msgspec", "numpy", "safetensors", "tiktoken", "tokenizers", "textual", "plotext", "nvidia-ml-py")
_GPT2_URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
)
CUDA_WHEEL = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"


class Check(Struct, frozen=True, kw_only=True):
    """One line of the doctor. `advice` is empty where there is nothing to do."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def check_python() -> Check:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < MIN_PYTHON:
        return Check(name="Python", status="fail", detail=version, advice="install Python 3.11 or later")
    return Check(name="Python", status="ok", detail=f"{version}, {sys.executable}")


def check_platform(platform: str = sys.platform) -> Check:
    """Linux or WSL2."""
    try:
        host.require_supported_platform(platform)
    except UsageError as error:
        return Check(name="platform", status="fail", detail=error.message, advice=error.hint)
    release = os.uname().release
    return Check(name="platform", status="ok", detail=f"{'WSL2' if host.is_wsl() else 'Linux'} {release}")


def check_packages(names: Sequence[str] = NATIVE_PACKAGES) -> list[Check]:
    """Versions of the packages the program stands on, and one that gets in the way."""
    found: dict[str, str] = {}
    missing = []
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(f"{name} {version}" for name, version in found.items())
    checks = [Check(name="packages", status="ok", detail=detail)]
    if missing:
        advice = f"pip install {' '.join(missing)}"
        checks = [Check(name="packages", status="fail", detail=f"missing: {', '.join(missing)}", advice=advice)]
    if _is_installed("pynvml"):
        advice = "pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py"
        detail = "the deprecated package pynvml shadows nvidia-ml-py"
        checks.append(Check(name="pynvml", status="warn", detail=detail, advice=advice))
    return checks


def check_driver(cards: Sequence[Card]) -> Check:
    """The NVIDIA driver and the newest CUDA it can run."""
    if not cards:
        inside = (
            "install the NVIDIA driver on Windows, not inside WSL" if host.is_wsl() else "install the NVIDIA driver"
        )
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            inside += f", or unset CUDA_VISIBLE_DEVICES ({safe_text(hidden, max_chars=60)!r})"
        return Check(
            name="driver",
            status="n/a",
            detail="no NVIDIA card visible; everything runs on the CPU",
            advice=f"with a card: {inside}",
        )
    first = cards[0]
    cuda = "n/a" if first.cuda_driver_version is None else "{}.{}".format(*first.cuda_driver_version)
    detail = f"{first.driver_version or 'n/a'}, CUDA up to {cuda}"
    needs_new = any((card.compute_capability or (0, 0)) >= (12, 0) for card in cards)
    if needs_new and first.cuda_driver_version is not None and first.cuda_driver_version < MIN_CUDA_FOR_BLACKWELL:
        return Check(
            name="driver", status="fail", detail=detail, advice="this card needs driver 570 or later (CUDA 12.8)"
        )
    return Check(name="driver", status="ok", detail=detail)


def check_card(card: Card) -> Check:
    """One card: what it is, and who uses its memory already."""
    detail = (
        f"{safe_text(card.name or 'unnamed')}, compute capability {card.capability_text or 'n/a'}, "
        f"{format_bytes(card.memory_total_bytes)}, {format_bytes(card.memory_free_bytes)} free, "
        f"desktop {format_bytes(card.desktop_memory_bytes)}"
    )
    name = f"card {card.index}"
    if card.throttle_reasons and any("thermal" in reason for reason in card.throttle_reasons):
        advice = "it is hot and slows down: check its fans and the case's airflow"
        return Check(name=name, status="warn", detail=f"{detail}, {', '.join(card.throttle_reasons)}", advice=advice)
    if card.memory_total_bytes and card.memory_used_bytes and card.memory_used_bytes > card.memory_total_bytes // 4:
        advice = "other programs hold much of its memory (nvidia-smi lists them): close them before training"
        return Check(name=name, status="warn", detail=detail, advice=advice)
    if card.compute_capability is not None and card.compute_capability < (8, 0):
        advice = "no bf16: runs use fp16 with loss scaling"
        return Check(name=name, status="warn", detail=detail, advice=advice)
    return Check(name=name, status="ok", detail=detail)


def check_torch(build: TorchBuild | str, cards: Sequence[Card]) -> list[Check]:
    """The torch build against the cards: is it a CUDA build, and has it code for each of them?"""
    if isinstance(build, str):
        detail = f"torch does not work: {build}"
        return [Check(name="torch", status="fail", detail=detail, advice="pip install --force-reinstall torch")]
    kind = (
        f"CUDA {build.cuda_version}"
        if build.cuda_version
        else f"ROCm {build.hip_version}"
        if build.hip_version
        else "CPU"
    )
    detail = f"{build.version} ({kind} build), CPU kernels {build.cpu_capability or 'n/a'}"
    if cards and not build.cuda_version:
        advice = f"this build cannot use the card: {CUDA_WHEEL}"
        return [Check(name="torch", status="fail", detail=detail, advice=advice)]
    if cards and not build.is_cuda_available:
        why = f": {safe_text(build.warnings[0], max_chars=200)}" if build.warnings else ""
        advice = "update the NVIDIA driver, or install a build for an older CUDA"
        return [Check(name="torch", status="fail", detail=f"{detail}, no CUDA device{why}", advice=advice)]
    return [
        Check(name="torch", status="ok", detail=detail),
        *(_check_device(build, device) for device in build.devices),
    ]


def _check_device(build: TorchBuild, device: TorchDevice) -> Check:
    name = f"torch on card {device.index}"
    capability = "{}.{}".format(*device.compute_capability)
    built_for = " ".join(build.architectures)
    if not architecture_supported(build.architectures, device.compute_capability):
        detail = f"no kernels for compute capability {capability} (built for {built_for})"
        return Check(name=name, status="fail", detail=detail, advice=CUDA_WHEEL)
    if device.error:
        detail = safe_text(device.error, max_chars=300)
        return Check(name=name, status="fail", detail=detail, advice="update the driver; restart if the card was lost")
    bf16 = {True: "bf16 in hardware", False: "no bf16 in hardware", None: "bf16 n/a"}[device.is_bf16_supported]
    return Check(name=name, status="ok", detail=f"kernels for {capability}, {bf16}, a matrix product works")


def check_host() -> list[Check]:
    """CPU and host memory."""
    found = host.probe_host()
    flags = host.cpu_flags()
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    cpu = f"{safe_text(found.cpu_name or 'n/a')}, {found.physical_cores} cores, {' '.join(wide) or 'no AVX2'}"
    checks = [Check(name="CPU", status="ok", detail=cpu)]
    detail = f"{format_bytes(found.memory_total_bytes)}, {format_bytes(found.memory_available_bytes)} available"
    if found.memory_available_bytes is not None and found.memory_available_bytes < LOW_MEMORY_BYTES:
        advice = "close other programs" + ("; raise memory= in .wslconfig" if found.is_wsl else "")
        return [*checks, Check(name="host memory", status="warn", detail=detail, advice=advice)]
    return [*checks, Check(name="host memory", status="ok", detail=detail)]


def check_disk(name: str, path: Path, flag: str) -> Check:
    """Space and permission where `path` is, or will be. `flag` moves it elsewhere."""
    free = host.disk_free_bytes(path)
    detail = f"{format_bytes(free)} free at {safe_text(str(path.absolute()))}"
    existing = next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        return Check(name=name, status="fail", detail=f"{detail}, not writable", advice=f"choose another with {flag}")
    if free is not None and free < LOW_DISK_BYTES:
        advice = f"checkpoints need space: free some, or choose another place with {flag}"
        return Check(name=name, status="warn", detail=detail, advice=advice)
    return Check(name=name, status="n/a" if free is None else "ok", detail=detail)


def check_caches(cache_dir: Path) -> list[Check]:
    """What is prepared already, and whether GPT-2's vocabulary is here for offline use."""
    size = _tree_bytes(cache_dir)
    detail = "empty: the first run prepares its corpus" if not size else f"{format_bytes(size)} prepared"
    names = [hashlib.sha1(url.encode()).hexdigest() for url in _GPT2_URLS]
    places = [place for place in _tiktoken_caches(cache_dir) if all((place / name).is_file() for name in names)]
    checks = [Check(name="prepared data", status="ok", detail=f"{detail} in {safe_text(str(cache_dir))}")]
    if places:
        return [*checks, Check(name="gpt2 vocabulary", status="ok", detail=f"in {safe_text(str(places[0]))}")]
    advice = "data.tokenizer=gpt2 downloads it once; offline use --set data.source=stdlib --set data.tokenizer=bpe-8192"
    return [*checks, Check(name="gpt2 vocabulary", status="n/a", detail="not downloaded yet", advice=advice)]


def check_terminal() -> Check:
    """Size, colours and UTF-8 of the terminal."""
    if not sys.stdout.isatty():
        return Check(name="terminal", status="n/a", detail="stdout is not a terminal")
    size = shutil.get_terminal_size()
    # Within the app stdout is a stand-in that catches prints; the terminal's own is kept by the interpreter.
    encodings = (getattr(stream, "encoding", None) for stream in (sys.stdout, sys.__stdout__))
    encoding = next(filter(None, encodings), "n/a").lower()
    term = os.environ.get("TERM", "")
    colours = "24-bit" if os.environ.get("COLORTERM") in ("truecolor", "24bit") else "256" if "256" in term else "16"
    if os.environ.get("NO_COLOR"):
        colours = "off (NO_COLOR)"
    detail = f"{size.columns} x {size.lines}, {safe_text(term, max_chars=40) or 'n/a'}, colours {colours}, {encoding}"
    advice = []
    if size.columns < MIN_COLUMNS or size.lines < MIN_ROWS:
        advice.append(f"make the window {MIN_COLUMNS} x {MIN_ROWS} or larger")
    if encoding.replace("-", "") != "utf8":
        advice.append("use a UTF-8 locale (export LANG=C.UTF-8)")
    if term in ("", "dumb"):
        advice.append("set TERM (xterm-256color); --headless works without")
    return Check(name="terminal", status="warn" if advice else "ok", detail=detail, advice="; ".join(advice))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _tiktoken_caches(cache_dir: Path) -> list[Path]:
    """Where vocabularies are looked for: where tiktoken's variables say, else our cache and tiktoken's default one."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if os.environ.get(variable):
            return [Path(os.environ[variable])]
    return [cache_dir / "tiktoken", Path(tempfile.gettempdir()) / "data-gym-cache"]


def _tree_bytes(root: Path, max_files: int = 20_000) -> int:
    """Bytes in a directory tree; looks at no more than `max_files` files."""
    total = seen = 0
    for directory, _, names in os.walk(root):
        for name in names:
            seen += 1
            if seen > max_files:
                return total
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:
                continue
    return total
