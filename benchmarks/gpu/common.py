"""What the parts of the GPU check share: runs made and trained in this process, and how they are timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch

from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import load_preset, request
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.data import prepare
from gpuworkbench.errors import DoesNotFitError
from gpuworkbench.events.reader import EventReader
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.gpu.fit import DeviceChoice
from gpuworkbench.gpu.peak import peak_flops
from gpuworkbench.launch.resolve import resolve
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import last_attempt
from gpuworkbench.training.attempt import Outcome, finish, open_run
from gpuworkbench.training.controls import Signals
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.memory_errors import let_go
from gpuworkbench.training.setup import TrainingRun

Sets = Mapping[str, Any]
T = TypeVar("T")

# No network and no tokenizer: token ids from a Markov chain over the published vocabulary.
NO_DOWNLOAD: Sets = {
    "data.source": "synthetic",
    "data.tokenizer": "ids",
    "data.bin_vocab_size": 50_257,
    "data.synthetic_tokens": 4_000_000,
    "sample.prompt": "0",
    "sample.interval_steps": 0,
    "eval.interval_steps": 0,
    "checkpoint.interval_steps": 0,
}
# Every preset at a size that a CPU trains in a moment: the same code, no figure worth anything.
SMALL: Sets = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 64,
    "model.seq_len": 64,
    "model.vocab_size": 512,
    "data.bin_vocab_size": 512,
    "data.synthetic_tokens": 100_000,
    "train.seq_len": 64,
    "train.micro_batch_size": 2,
    "train.threads": 1,
}


class Skipped(Exception):
    """The part has nothing to do here; the text says why."""


class Place(NamedTuple):
    """Where a part runs: `device` cuda or cpu, `is_small` sizes for a CPU, a folder of its own, and where to note."""

    device: str
    is_small: bool
    root: Path
    note: Callable[[Mapping[str, Any]], None]  # what is known so far: kept where the part is ended by its limit

    @property
    def is_cuda(self) -> bool:
        """Whether there is a card to measure."""
        return self.device == "cuda"


def needs_card(place: Place) -> None:
    """Skip the part on a CPU."""
    if not place.is_cuda:
        raise Skipped("needs a CUDA card")


def configured(place: Place, preset: str, sets: Sets, steps: int) -> RunConfig:
    """The preset on this device with data that needs no network. Raises ConfigError."""
    small = SMALL if place.is_small else {}
    merged = {**NO_DOWNLOAD, **sets, **small, "device.kind": place.device}
    if not place.is_cuda:
        merged = {key: value for key, value in merged.items() if key != "device.memory_limit_gib"}
    overrides = [Override(key, value, "gpu_check") for key, value in merged.items()]
    # Early phases are set for presets of any predictor, and some have no use for one of the keys.
    return request(load_preset(preset), sets=overrides, steps=steps, allows_idle=True).build()


def new_run(place: Place, name: str, preset: str, sets: Sets | None = None, *, steps: int = 100) -> RunPaths:
    """A run directory made without NVML, so that a container without it can be measured too."""
    config = configured(place, preset, sets or {}, steps)
    data = prepare(config)
    choice = DeviceChoice(kind="cuda", index=0) if place.is_cuda else DeviceChoice(kind="cpu")
    return create_run(place.root / "runs", name, load_preset(preset).text, dump_toml(resolve(config, data, choice)))


def attempted(paths: RunPaths, work: Callable[[TrainingRun], T]) -> T:
    """What `work` returns for the run right before the first step of a new attempt.

    Nothing of the run is alive afterwards, on the card neither: a run is cyclic, and would wait for the collector.
    `work` keeps nothing of it.
    """
    events = EventWriter(paths.events, attempt=(last_attempt(paths.events) or 0) + 1)
    try:
        return _worked(open_run(paths, events, HeartbeatWriter(paths.heartbeat), Signals()), work)
    except BaseException as error:
        let_go(error)  # the frames it came through hold the run
        raise
    finally:
        events.close()
        gc.collect()
        torch.cuda.empty_cache()


def _worked(run: TrainingRun, work: Callable[[TrainingRun], T]) -> T:
    try:
        return work(run)
    finally:
        run.checkpointer.wait()


def ended(paths: RunPaths) -> Outcome:
    """How a new attempt at the run ended; one that cannot even be built has ended as the trainer says it."""
    try:
        return attempted(paths, finish)
    except DoesNotFitError as error:
        return Outcome(0, "failed", error.exit_code, error.message)


def events_of(paths: RunPaths, cls: type[AnyEvent]) -> list[Any]:
    """The run's events of one kind."""
    reader, found = EventReader(paths.events), []
    while batch := reader.poll():
        found += [event for event in batch if isinstance(event, cls)]
    return found


def wait_for_card(place: Place) -> None:
    """Return when the card has done what it was given."""
    if place.is_cuda:
        torch.cuda.synchronize()


def timed_steps(place: Place, run: TrainingRun, *, warm: int, counted: int) -> dict[str, Any]:
    """Seconds a step after `warm` ones that do not count: median of single steps, each waited for."""
    for _ in range(warm):
        train_one_step(run)
    seconds = []
    for _ in range(counted):
        wait_for_card(place)
        started = time.perf_counter()
        train_one_step(run)
        wait_for_card(place)
        seconds.append(time.perf_counter() - started)
    return {"step_s": statistics.median(seconds), "min_step_s": min(seconds), "steps": counted}


def speed(run: TrainingRun, step_s: float) -> dict[str, Any]:
    """Tokens a second, and MFU against the dense peak of the run's precision (None where that is not known)."""
    config = run.config
    tokens_per_s = config.tokens_per_step / step_s
    precision = run.precisions.current.name
    peak = peak_flops(run.device.card, precision)
    flops = config.model.flops_per_token(config.train_seq_len)
    return {
        "tokens_per_step": config.tokens_per_step,
        "tokens_per_s": tokens_per_s,
        "mfu": None if peak is None else tokens_per_s * flops / peak,
        "dense_peak_flops": peak,
        "precision": precision,
    }


def plain(value: Any) -> Any:
    """As JSON has it."""
    return msgspec.to_builtins(value)
