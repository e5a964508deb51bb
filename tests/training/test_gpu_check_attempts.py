"""Runs that benchmarks.gpu_check makes one after another in a process: none is alive when the next one begins."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import common, memory, speed
from benchmarks.gpu.common import Place, attempted, ended, new_run
from gpuworkbench.errors import ConfigError, DoesNotFitError
from gpuworkbench.training.attempt import Outcome
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import torch_settings

PRESET = "rtx5080_gpt2_small_hybrid"
Models = list["weakref.ref[torch.nn.Module]"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Tiny runs on the CPU; nothing is collected unless the code asks for it."""
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(common.SMALL, "data.synthetic_tokens", 20_000)  # type: ignore[misc]
    gc.collect()
    with torch_settings():
        gc.disable()
        try:
            yield Place("cpu", is_small=True, root=tmp_path, note=lambda values: None)
        finally:
            gc.enable()


def alive(models: Models) -> int:
    return sum(model() is not None for model in models)


def test_no_model_outlives_its_attempt(place: Place) -> None:
    models: Models = []

    def work(run: TrainingRun) -> int:
        models.append(weakref.ref(run.model))
        train_one_step(run)
        return run.progress.step

    def fails(run: TrainingRun) -> None:
        work(run)
        raise RuntimeError("CUDA out of memory")

    paths = new_run(place, "one", PRESET, steps=4)
    assert attempted(paths, work) == 1
    assert alive(models) == 0
    with pytest.raises(RuntimeError, match="out of memory"):
        attempted(paths, fails)
    assert alive(models) == 0
    try:
        attempted(paths, fails)
    except RuntimeError:
        assert alive(models) == 0, "while the error is dealt with"
    assert ended(paths).exit_code == 0
    assert len(models) == 3


def test_a_run_that_cannot_be_built_has_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise DoesNotFitError("weights and optimizer do not fit the card")

    paths = new_run(place, "one", PRESET, steps=4)
    monkeypatch.setattr(common, "open_run", refuse)
    assert ended(paths)[1:] == ("failed", 4, "weights and optimizer do not fit the card")


def test_smaller_micro_batches_have_the_card_to_themselves(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    models: Models = []
    timed = speed._timed

    def small_card(place: Place, run: TrainingRun, counted: int) -> dict[str, Any]:
        assert alive(models) == 0
        models.append(weakref.ref(run.model))
        train_one_step(run)
        if len(models) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return timed(place, run, counted)

    monkeypatch.setattr(speed, "_timed", small_card)
    result = speed._eager_and_compiled(place, "one", PRESET, micro_batches=(8, 4, 2, 1), counted=1)
    assert len(models) == 4, "two too large, one eager, one compiled"
    assert alive(models) == 0
    assert result["eager"]["step_s"] > 0


def test_a_fix_that_is_not_known_and_one_that_leaves_no_room_are_results(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = new_run(place, "full", PRESET, steps=4)

    def unknown(*_: Any, **__: Any) -> None:
        raise ConfigError("full: no single change is known that would fit")

    monkeypatch.setattr(memory, "ended", lambda paths: Outcome(0, "failed", 4, "weights do not fit"))
    with monkeypatch.context() as patch:
        patch.setattr(memory, "resume", lambda *_, **__: None)
        assert memory._apply_until_it_trains(paths) == (memory.MOST_FIXES, "weights do not fit")
        patch.setattr(memory, "resume", unknown)
        assert memory._apply_until_it_trains(paths) == (0, "full: no single change is known that would fit")
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction: None)
    with pytest.raises(AssertionError, match="eval-whole was not validated: weights do not fit"):
        memory._full_in_validation(place, 4.0)
