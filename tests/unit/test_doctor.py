"""The doctor: each check's verdicts, the torch half as a real subprocess, and what is printed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuworkbench.gpu import checks, doctor
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.checks import Check
from gpuworkbench.gpu.torch_build import TorchBuild, TorchDevice, TorchProbe, architecture_supported

GIB = 1024**3
CARD = Card(
    index=0,
    uuid="GPU-1",
    name="RTX 5080",
    compute_capability=(12, 0),
    driver_version="570.1",
    cuda_driver_version=(12, 8),
    memory_total_bytes=16 * GIB,
    memory_used_bytes=GIB,
)
DEVICE = TorchDevice(
    index=0, name="RTX 5080", compute_capability=(12, 0), memory_total_bytes=16 * GIB, is_bf16_supported=True
)
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


def card(**changes: Any) -> Card:
    return msgspec.structs.replace(CARD, **changes)


def build(**changes: Any) -> TorchBuild:
    values: dict[str, Any] = {
        "version": "2.13.0+cu128",
        "is_cuda_available": True,
        "architectures": ARCHITECTURES,
        "devices": (DEVICE,),
        "cuda_version": "12.8",
    }
    return TorchBuild(**{**values, **changes})


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (ARCHITECTURES, (12, 0), True),
        (ARCHITECTURES, (8, 9), True),  # sm_86 code runs on 8.9
        (ARCHITECTURES, (8, 7), True),
        (ARCHITECTURES, (7, 0), False),  # sm_75 code does not run on 7.0
        (("sm_80", "sm_90"), (12, 0), False),  # the build before Blackwell
        (("sm_80", "sm_90", "compute_90"), (12, 0), True),  # PTX is compiled at load
        (("compute_120",), (9, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),
        (("compute_90a",), (12, 0), False),
        (("gfx1100", "", "sm_x"), (12, 0), False),
        ((), (12, 0), False),
    ],
)
def test_architectures(architectures: tuple[str, ...], capability: tuple[int, int], expected: bool) -> None:
    assert architecture_supported(architectures, capability) is expected


def test_torch_and_cards() -> None:
    found = checks.check_torch(build(), [CARD])
    assert [check.status for check in found] == ["ok", "ok"]
    assert "bf16 in hardware" in found[1].detail
    (cpu_build,) = checks.check_torch(build(cuda_version=None, is_cuda_available=False, devices=()), [CARD])
    assert cpu_build.status == "fail"
    assert "whl/cu" in cpu_build.advice
    (no_card,) = checks.check_torch(build(cuda_version=None, is_cuda_available=False, devices=()), [])
    assert no_card.status == "ok"
    (old_driver,) = checks.check_torch(build(is_cuda_available=False, devices=(), warnings=("driver\x1b old",)), [CARD])
    assert old_driver.status == "fail"
    assert "driver␛ old" in old_driver.detail
    _, no_kernels = checks.check_torch(build(architectures=("sm_80", "sm_90")), [CARD])
    assert no_kernels.status == "fail"
    assert "12.0" in no_kernels.detail
    broken = msgspec.structs.replace(DEVICE, error="CUDA error: device lost")
    assert checks.check_torch(build(devices=(broken,)), [CARD])[1].status == "fail"
    (missing,) = checks.check_torch("No module named 'torch'", [])
    assert missing.status == "fail"


def test_driver_and_card_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7\x1b")
    none = checks.check_driver([])
    assert none.status == "n/a"
    assert "unset CUDA_VISIBLE_DEVICES" in none.advice
    assert "\x1b" not in none.advice
    assert checks.check_driver([CARD]).status == "ok"
    assert checks.check_driver([card(cuda_driver_version=(12, 4))]).status == "fail"
    assert checks.check_driver([card(cuda_driver_version=(12, 4), compute_capability=(8, 9))]).status == "ok"
    assert "n/a" in checks.check_driver([card(driver_version=None, cuda_driver_version=None)]).detail
    assert checks.check_card(CARD).status == "ok"
    assert "desktop n/a" in checks.check_card(CARD).detail
    assert checks.check_card(card(memory_used_bytes=9 * GIB)).status == "warn"
    assert checks.check_card(card(throttle_reasons=("hardware thermal slowdown",))).status == "warn"
    assert checks.check_card(card(throttle_reasons=("power limit",))).status == "ok"
    assert checks.check_card(card(compute_capability=(7, 5))).status == "warn"
    assert "\x1b" not in checks.check_card(card(name="\x1b]0;x")).detail
    assert checks.check_card(Card(index=3)).status == "ok"


def test_packages() -> None:
    (found,) = checks.check_packages(["msgspec"])
    assert (found.status, found.detail) == ("ok", f"msgspec {msgspec.__version__}")
    missing = checks.check_packages(["msgspec", "no-such-package-here"])[0]
    assert (missing.status, missing.advice) == ("fail", "pip install no-such-package-here")


def test_platform_and_python() -> None:
    assert checks.check_python().status == "ok"
    assert checks.check_platform().status == "ok"
    windows = checks.check_platform("win32")
    assert (windows.status, "WSL2" in windows.advice) == ("fail", True)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.host, "disk_free_bytes", lambda _: 100 * GIB)
    assert checks.check_disk("runs disk", tmp_path / "new", "--runs-dir DIR").status == "ok"
    monkeypatch.setattr(checks.host, "disk_free_bytes", lambda _: GIB)
    low = checks.check_disk("runs disk", tmp_path, "--runs-dir DIR")
    assert (low.status, "--runs-dir DIR" in low.advice) == ("warn", True)
    monkeypatch.setattr(checks.host, "disk_free_bytes", lambda _: None)
    assert checks.check_disk("runs disk", tmp_path, "--runs-dir DIR").status == "n/a"
    (tmp_path / "file").touch()
    assert checks.check_disk("runs disk", tmp_path / "file", "--runs-dir DIR").status == "fail"


def test_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    prepared, vocabulary = checks.check_caches(tmp_path / "cache")
    assert prepared.detail.startswith("empty")
    assert (vocabulary.status, "bpe-8192" in vocabulary.advice) == ("n/a", True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens.bin").write_bytes(b"x" * 2048)
    (tmp_path / "tiktoken").mkdir()
    for name in ("vocab.bpe", "encoder.json"):
        url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        (tmp_path / "tiktoken" / hashlib.sha1(url.encode()).hexdigest()).touch()
    prepared, vocabulary = checks.check_caches(tmp_path / "cache")
    assert prepared.detail.startswith("2.0 KiB prepared")
    assert vocabulary.status == "ok"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    (tmp_path / "tiktoken").rename(tmp_path / "cache" / "tiktoken")
    assert checks.check_caches(tmp_path / "cache")[1].detail == f"in {tmp_path / 'cache' / 'tiktoken'}"


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_terminal().status == "n/a"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    good = checks.check_terminal()
    assert (good.status, "120 x 40" in good.detail, "24-bit" in good.detail) == ("ok", True, True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    poor = checks.check_terminal()
    assert poor.status == "warn"
    assert "80 x 24" in poor.advice
    assert "NO_COLOR" in poor.detail


def test_the_terminal_behind_a_stand_in_for_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the app stdout only catches prints, and has no encoding."""

    class Capture:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Capture())
    check = checks.check_terminal()
    monkeypatch.undo()
    assert sys.__stdout__ is not None
    assert check.detail.endswith(f", {sys.__stdout__.encoding.lower()}")


def test_the_torch_probe_survives_anything() -> None:
    def ask(code: str, timeout_s: float = 20.0) -> TorchBuild | str:
        return TorchProbe([sys.executable, "-c", code]).result(timeout_s)

    assert ask("raise SystemExit(3)") == "it ended with exit code 3"
    assert "No module named 'nothing'" in str(ask("import nothing"))
    assert "malformed" in str(ask("print('{')"))
    assert "\x1b" not in str(ask("import sys; sys.exit('bad \\x1b[31m')"))
    began = time.monotonic()
    assert "longer than" in str(ask("import time; time.sleep(60)", 0.2))
    assert time.monotonic() - began < 5
    assert "cannot be started" in str(TorchProbe(["/nonexistent/python"]).result())


def test_the_whole_doctor_on_this_machine(tmp_path: Path) -> None:
    """With the real torch half. On a machine with a card it also multiplies matrices there."""
    began = time.monotonic()
    found = doctor.run_checks(tmp_path / "runs", tmp_path / "cache")
    assert time.monotonic() - began < 30
    names = [check.name for check in found]
    expected = ["Python", "platform", "packages", "torch", "driver", "CPU", "host memory", "runs disk", "cache disk"]
    assert [name for name in names if name in expected] == expected
    assert {check.status for check in found if check.name in ("Python", "platform", "packages", "torch")} == {"ok"}
    assert all(check.advice for check in found if check.status in ("warn", "fail"))
    assert json.loads(msgspec.json.encode(found))[0]["name"] == "Python"
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()


def test_a_hung_check_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(doctor, "probe_cards", lambda: time.sleep(3))
    found = doctor.run_checks(tmp_path, tmp_path, [sys.executable, "-c", "print('{}')"])
    assert next(check for check in found if check.name == "driver").status == "fail"


def test_render() -> None:
    listed = [
        Check(name="Python", status="ok", detail="3.11"),
        Check(name="driver", status="fail", detail="old", advice="update it"),
    ]
    assert doctor.render(listed, color=False) == (
        "ok    Python  3.11\nFAIL  driver  old\n              -> update it\n"
        "1 of 2 checks failed; what to do stands below each"
    )
    coloured = doctor.render(listed, color=True)
    assert "\x1b[31mFAIL\x1b[0m" in coloured
    assert "\x1b" not in doctor.render(listed, color=False)
    assert doctor.render(listed[:1], color=False).endswith("\nready")
