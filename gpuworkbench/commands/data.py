"""`gpuworkbench data prepare SOURCE`: text to tokens, in the cache or as a folder of shards."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from gpuworkbench.commands.output import print_json, say, tell
from gpuworkbench.commands.progress import StageProgress
from gpuworkbench.config.loader import Override, build_overridden, environment_overrides, parse_set
from gpuworkbench.config.schema import SCHEMA_VERSION, DataConfig
from gpuworkbench.data import absolute_paths, absolute_source
from gpuworkbench.data.corpora.sieve import Sifted
from gpuworkbench.data.encoding import is_known_name
from gpuworkbench.data.pipeline import Pace
from gpuworkbench.data.prepare import prepare_data
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.errors import ConfigError, ExitCode, UsageError
from gpuworkbench.units import format_bytes, format_count, format_duration

KEYS = ("tokenizer", "documents", "clean", "normalize", "min_chars", "dedup", "val_fraction", "seed")  # with a flag
MAX_WORKERS = 1024


def prepare(arguments: argparse.Namespace) -> int:
    """Make the tokens, or find them; say where they are, what was dropped and how a run uses them."""
    config = data_config(arguments)
    out, workers = out_of(arguments), workers_of(arguments)
    pace, begun = Pace(), time.monotonic()
    try:
        with terminating():
            prepared = prepare_data(config, out=out, workers=workers, on_progress=StageProgress(), pace=pace)
    except KeyboardInterrupt as stopped:
        return _interrupted(stopped, pace)
    seconds = time.monotonic() - begun
    sets = flags_to_use(config, prepared, out)
    if arguments.json:
        print_json(as_json(prepared, pace, seconds, sets))
        return ExitCode.OK
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    if pace.n_tokens:
        rate = f", {format_count(pace.n_tokens / pace.seconds)} tokens/s" if pace.seconds > 0 else ""
        say(f"data: encoded {format_count(pace.n_tokens)} tokens in {format_duration(pace.seconds)}{rate}")
    tell(f"prepared   {prepared.directory}")
    tell(f"tokens     {prepared.n_train_tokens} training, {prepared.n_val_tokens} validation")
    tell(f"tokenizer  {prepared.tokenizer_name}, {prepared.vocab_size} tokens")
    for line in sifted_lines(prepared.sifted):
        tell(line)
    tell(f"use it     gpuworkbench --headless --preset NAME {' '.join(sets)}")
    return ExitCode.OK


def data_config(arguments: argparse.Namespace) -> DataConfig:
    """The data section that a run with these keys would have. Raises ConfigError.

    Flags win over `--set`, `--set` over the environment.
    """
    sets = [parse_set(text) for text in arguments.data_sets]
    for override in sets:
        if not override.key.startswith("data."):
            raise ConfigError(f"--set {override.key}: only keys of [data] matter here", "leave it to the run")
    environment = [each for each in environment_overrides(os.environ) if each.key.startswith("data.")]
    flags = [
        parse_set(f"data.{name}={str(value).lower() if value is True else value}")._replace(where=flag_of(name))
        for name in KEYS
        if (value := getattr(arguments, name)) is not None
    ]
    source = Override("data.source", absolute_source(arguments.source), "SOURCE", absolute_source(arguments.source))
    return absolute_paths(build_overridden(_table(), [*environment, *sets, *flags, source], "data", "data").data)


def flag_of(key: str) -> str:
    """The flag of one of KEYS."""
    return f"--{key.replace('_', '-')}"


def workers_of(arguments: argparse.Namespace) -> int | None:
    """`--workers`. UsageError where it is out of range."""
    if arguments.workers is not None and not 1 <= arguments.workers <= MAX_WORKERS:
        raise UsageError(f"--workers {arguments.workers} is not from 1 to {MAX_WORKERS}", "leave it out: all cores")
    workers: int | None = arguments.workers
    return workers


def out_of(arguments: argparse.Namespace) -> Path | None:
    """`--out`. UsageError where it is no name."""
    if arguments.out is not None and (not arguments.out or "\0" in arguments.out):
        raise UsageError(f"--out {arguments.out!r} is no name of a folder", "name one that is not there yet")
    return None if arguments.out is None else Path(arguments.out)


def flags_to_use(config: DataConfig, prepared: PreparedData, out: Path | None) -> list[str]:
    """The `--set` flags by which a run finds exactly these tokens, quoted for a shell."""
    if out is not None:
        directory = str(prepared.directory)
        name = config.tokenizer if is_known_name(config.tokenizer) else directory  # a path may not be there elsewhere
        values: Mapping[str, Any] = {"source": directory, "tokenizer": name}
    else:
        default = DataConfig()
        chosen = msgspec.structs.asdict(config)
        values = {
            name: value
            for name, value in chosen.items()
            if name in ("source", "tokenizer") or (value != getattr(default, name) and name != "sha256")
        }
    words = [
        f"data.{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()
    ]
    return [f"--set {shlex.quote(word)}" for word in words]


def as_json(prepared: PreparedData, pace: Pace, seconds: float, sets: list[str]) -> dict[str, Any]:
    """The one object of `--json`."""
    return {
        "directory": str(prepared.directory),
        "sha256": prepared.sha256,
        "description": prepared.description,
        "tokenizer": prepared.tokenizer_name,
        "vocab_size": prepared.vocab_size,
        "train_tokens": prepared.n_train_tokens,
        "val_tokens": prepared.n_val_tokens,
        "documents": prepared.n_documents,
        "sifted": prepared.sifted,
        "warnings": prepared.warnings,
        "encoded_tokens": pace.n_tokens,
        "duration_s": seconds,
        "tokens_per_s": pace.n_tokens / pace.seconds if pace.seconds > 0 else None,
        "sets": [word for flag in sets for word in shlex.split(flag)],
    }


def sifted_lines(sifted: Sifted | None) -> Iterator[str]:
    """The drop report in lines: what was kept, then each reason with examples."""
    if sifted is None:
        return
    total = sifted.kept_documents + sum(dropped.documents for dropped in sifted.dropped.values())
    changed = f", {sifted.changed_documents} changed by cleaning" if sifted.changed_documents else ""
    yield f"documents  kept {sifted.kept_documents} of {total} ({format_bytes(sifted.kept_bytes)}){changed}"
    for reason, dropped in sifted.dropped.items():
        yield f"dropped    {dropped.documents} {reason} ({format_bytes(dropped.bytes)})"
        yield from (f"             {example}" for example in dropped.examples)


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is encoded is saved first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(stopped: KeyboardInterrupt, pace: Pace) -> int:
    if pace.kept_bytes:
        say(f"gpuworkbench: stopped; the same command goes on after {format_bytes(pace.kept_bytes)} of text")
        return ExitCode.STOPPED
    say("gpuworkbench: stopped before anything was kept; the same command starts again")
    return ExitCode.SIGTERM if "SIGTERM" in stopped.args else ExitCode.SIGINT


def _table() -> dict[str, Any]:
    """The least a configuration needs beside its data section."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"family": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "seq_len": 8},
        "train": {"max_steps": 1},
        "eval": {"interval_steps": 0},
    }
