"""benchmarks/gpu_check.py without a card: its parts at tiny sizes, its limits, and what it says where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from tests.fixtures.tiny_run import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu_check.py"
ON_CPU = ("--device", "cpu", "--small")


def call(*arguments: str, cwd: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False)


def report(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_few_parts_on_a_cpu_and_a_second_call_that_keeps_them(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = call(*ON_CPU, "--parts", "correctness,transfers,memory/rtx5080_1b", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = report(out)
    status = {name: part["status"] for name, part in found["parts"].items()}
    assert status["environment"] == status["correctness"] == status["memory/rtx5080_1b"] == "done"
    assert status["transfers"] == "skipped"
    assert found["parts"]["transfers"]["reason"] == "needs a CUDA card"
    assert found["parts"]["correctness"]["formats"]["fp32"]["logits_difference"] == 0.0
    assert found["environment"]["packages"]["torch"]
    memory = found["parts"]["memory/rtx5080_1b"]
    assert memory["peak_bytes"] > 0
    assert memory["label"] is None, "a CPU simulates no card"
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(found["parts"]), "the table comes last"
    again = call(*ON_CPU, "--parts", "correctness", "--out", str(out), cwd=tmp_path)
    assert again.returncode == 0
    assert "correctness: kept from an earlier call" in again.stderr
    assert report(out)["parts"]["memory/rtx5080_1b"] == memory


@pytest.mark.timeout(660)
def test_what_moves_changes_no_bit_and_a_hybrid_preset_makes_its_jump(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    moved = ("predict_aware", "activation_offload", "undo_on_disk", "dynamics")
    parts = ",".join((*moved, "memory/rtx5080_gpt2_small_hybrid"))
    limit = ("--part-limit-s", "120")
    done = call(*ON_CPU, "--parts", parts, *limit, "--out", str(out), cwd=tmp_path, timeout_s=600)
    assert done.returncode == 0, done.stdout
    found = report(out)["parts"]
    for name in moved:
        assert found[name]["losses_equal"], name
        assert found[name]["tensors_equal"], name
        assert found[name]["files"] == ["model.safetensors", "optimizer.safetensors"]
    assert found["predict_aware"]["moved_bytes"]["restore"] > 0
    assert found["activation_offload"]["pool_bytes"] > 0
    assert found["undo_on_disk"]["rolled_back"] > 0
    assert found["dynamics"]["updates"] > 0
    memory = found["memory/rtx5080_gpt2_small_hybrid"]
    assert memory["planned_parts"]["predictor, undo"] > 0
    assert memory["jumps_that_stood"] >= 1
    assert memory["jumps_judged"] >= 1


def test_a_part_that_takes_too_long_is_ended_and_the_rest_goes_on(tmp_path: Path) -> None:
    """One second is less than it takes to import torch."""
    out = tmp_path / "out.json"
    done = call(*ON_CPU, "--parts", "correctness,packed", "--part-limit-s", "0.5", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 1
    parts = report(out)["parts"]
    assert {part["status"] for part in parts.values()} == {"timed out"}
    assert list(parts) == ["environment", "correctness", "packed"]
    assert parts["packed"]["reason"] == "ended at its limit of 0 s"


def test_no_time_left_starts_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = call(*ON_CPU, "--parts", "correctness", "--time-limit-s", "1", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 1
    assert report(out)["parts"]["correctness"] == {
        "status": "not started",
        "reason": "no time was left",
        "seconds": 0.0,
    }


def test_without_a_card_it_says_so_in_a_line(tmp_path: Path) -> None:
    done = call("--parts", "correctness", "--out", str(tmp_path / "out.json"), cwd=tmp_path)
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert last == "gpu_check: torch sees no CUDA device; --device cpu --small tests this script without one"
    assert not (tmp_path / "out.json").exists()


def test_mistakes_are_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--parts", "speeed"]) == 2
    assert "there is no part 'speeed'; parts: environment, correctness" in capsys.readouterr().err


def test_every_part_has_a_function_a_limit_and_a_place_within_the_time() -> None:
    import importlib

    for name, part in gpu_check.all_parts().items():
        module, _, function = part.target.partition(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)), name
        assert 10 <= part.limit_s <= 120, name


def test_nothing_it_imports_needs_the_app() -> None:
    """A machine with a card may have no textual, plotext or tiktoken."""
    code = "import sys; sys.modules.update(dict.fromkeys(('textual', 'plotext', 'tiktoken'))); "
    code += "import benchmarks.gpu.memory, benchmarks.gpu.speed, benchmarks.gpu.exactness, benchmarks.gpu.transfers; "
    code += "import benchmarks.gpu.moved; "
    code += "import benchmarks.gpu.correctness, gpuworkbench.training.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)
