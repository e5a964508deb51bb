"""`gpuworkbench data inspect SOURCE|RUN`: what a model reads, as counts and as it is cut into tokens."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpuworkbench.commands.data import KEYS, data_config, flag_of, sifted_lines, terminating, workers_of
from gpuworkbench.commands.output import print_json, say, tell
from gpuworkbench.commands.progress import StageProgress
from gpuworkbench.data import Preview, preview
from gpuworkbench.data.cache import find
from gpuworkbench.data.location import NAMED_SOURCES
from gpuworkbench.data.meta import FILE_NAME, FORMAT, Part
from gpuworkbench.data.prepare import prepare_data
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.sources import with_vocabulary
from gpuworkbench.data.split import SPLITS, Split
from gpuworkbench.data.statistics import Statistics, statistics
from gpuworkbench.errors import DataError, ExitCode, RunError, UsageError
from gpuworkbench.launch.resume import run_config
from gpuworkbench.runs.paths import runs_dir
from gpuworkbench.runs.store import is_run, resolve_run
from gpuworkbench.units import NOT_AVAILABLE, format_bytes, format_number

MAX_SAMPLES = 1000
TOKEN_END = "·"
SCORED = "⟦", "⟧"


class Subject(NamedTuple):
    """What is looked at, and a note where it is not what it was."""

    prepared: PreparedData
    note: str = ""


def inspect(arguments: argparse.Namespace) -> int:
    """Print counts, drop report, samples and shards."""
    if not 0 <= arguments.samples <= MAX_SAMPLES:
        raise UsageError(f"--samples {arguments.samples} is not from 0 to {MAX_SAMPLES}", "give a small number")
    with terminating():
        subject = find_subject(arguments)
    found, previews = statistics(subject.prepared), preview(subject.prepared, arguments.samples)
    if arguments.json:
        print_json(as_json(subject, found, previews))
        return ExitCode.OK
    for warning in [*subject.prepared.warnings, *([subject.note] if subject.note else [])]:
        say(f"warning: {warning}")
    for line in [*_head(subject.prepared, found), *sifted_lines(subject.prepared.sifted)]:
        tell(line)
    for number, each in enumerate(previews, start=1):
        tell(f"sample {number}   {shown_tokens(each)}")
    if previews:
        marks = "" if previews[0].scored is None else f", {SCORED[0]}...{SCORED[1]} around what is scored"
        tell(f"           ({TOKEN_END} after each token{marks})")
    for split in SPLITS:
        for part in subject.prepared.parts(split):
            tell(f"shard      {_shard_line(subject.prepared, split, part)}")
    return ExitCode.OK


def find_subject(arguments: argparse.Namespace) -> Subject:
    """A run, a prepared folder, or a source, which is prepared first. Raises DataError, RunError, UsageError."""
    text: str = arguments.source
    path = Path(text).expanduser()
    try:
        exists = "\0" not in text and os.path.lexists(path)
    except ValueError:
        exists = False
    if exists and is_run(path.absolute()):
        return _of_run(arguments)
    if exists and (path / FILE_NAME).is_file():
        _refuse_keys(arguments, "a prepared folder")
        prepared = find(path.absolute())
        if prepared is None:
            raise DataError(f"{path} is not intact, or of another format than {FORMAT}", "prepare it again")
        return Subject(prepared)
    if exists or text in NAMED_SOURCES:
        return Subject(prepare_data(data_config(arguments), workers=workers_of(arguments), on_progress=StageProgress()))
    try:
        return _of_run(arguments)
    except RunError as error:
        raise DataError(f"{text!r} is no source and no run: {error.message}", error.hint) from None


def _of_run(arguments: argparse.Namespace) -> Subject:
    _refuse_keys(arguments, "a run")
    paths = resolve_run(runs_dir(arguments.runs_dir), arguments.source)
    config = with_vocabulary(run_config(paths))
    prepared = prepare_data(config, workers=workers_of(arguments), on_progress=StageProgress())
    if config.sha256 in (None, prepared.sha256):
        return Subject(prepared)
    was = (config.sha256 or "")[:12]
    return Subject(prepared, f"the source gives other tokens now ({prepared.sha256[:12]}) than the run read ({was})")


def _refuse_keys(arguments: argparse.Namespace, what: str) -> None:
    given = [flag_of(name) for name in KEYS if getattr(arguments, name) is not None]
    given += ["--set"] if arguments.data_sets else []
    if given:
        raise UsageError(f"{given[0]} is for a source, {what} has its own keys", "leave it out")


def shown_tokens(each: Preview) -> str:
    """The tokens of a preview with their boundaries, and marks around what is scored."""
    parts: list[str] = []
    inside = False
    for text, scored in zip(each.decoded, each.scored or [False] * len(each.decoded), strict=True):
        if scored != inside:
            parts.append(SCORED[0] if scored else SCORED[1])
            inside = scored
        parts.append(text + TOKEN_END)
    return "".join(parts) + (SCORED[1] if inside else "")


def _head(prepared: PreparedData, found: Statistics) -> Iterator[str]:
    yield f"source     {prepared.description}"
    yield f"prepared   {prepared.directory}"
    for split, each in found.splits.items():
        per_token = f"{format_number(each.bytes_per_token, 2)} bytes a token" if each.bytes_per_token else NOT_AVAILABLE
        documents = "" if each.documents is None else f", {each.documents} ends of text"
        scored = "" if each.scored_tokens is None else f", {each.scored_tokens / max(each.tokens, 1):.1%} scored"
        yield f"{split:<10} {each.tokens} tokens, {per_token}{documents}{scored}"
    share = found.ids_seen / found.vocab_size
    yield f"vocabulary {prepared.tokenizer_name}: {found.ids_seen} of {found.vocab_size} ids occur ({share:.1%})"
    yield "frequent   " + "  ".join(f"{each.text!r} {each.count}" for each in found.frequent)


def _shard_line(prepared: PreparedData, split: Split, part: Part) -> str:
    stretch = "" if (part.start, part.stop) == (0, part.n_tokens) else f", {part.start}..{part.stop} of it"
    mask = ", with an answer mask" if part.mask else ""
    size = format_bytes(part.size_bytes)
    return f"{split:<5} {part.path}: {part.n_tokens} tokens{stretch}, {size}, sha256 {part.sha256[:12]}{mask}"


def as_json(subject: Subject, found: Statistics, previews: list[Preview]) -> dict[str, Any]:
    """The one object of `--json`."""
    prepared = subject.prepared
    return {
        "directory": str(prepared.directory),
        "sha256": prepared.sha256,
        "description": prepared.description,
        "tokenizer": prepared.tokenizer_name,
        "vocab_size": prepared.vocab_size,
        "documents": prepared.n_documents,
        "statistics": found,
        "sifted": prepared.sifted,
        "samples": previews,
        "shards": {split: prepared.parts(split) for split in SPLITS},
        "warnings": [*prepared.warnings, *([subject.note] if subject.note else [])],
    }
