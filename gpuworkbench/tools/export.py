"""`python -m gpuworkbench.tools.export`: write a run's model as a folder that transformers loads.

The argument is the request as JSON; the answer is one line of JSON on stdout. SIGTERM takes everything back.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from gpuworkbench.data.tokenization.tokenizer_export import write_tokenizer_json
from gpuworkbench.errors import CheckpointError, ConfigError, DataError, DoesNotFitError, ExitCode, WorkbenchError
from gpuworkbench.gpu.host import disk_free_bytes
from gpuworkbench.hf.card import model_card
from gpuworkbench.hf.folder import CONFIG_FILE, INDEX_FILE, layout_of
from gpuworkbench.hf.layout import Layout, TensorRule
from gpuworkbench.hf.shards import Shard, index_of, is_weights_name, plan_shards
from gpuworkbench.io import REAL_FILES, Files, atomic_write_json, write_durable
from gpuworkbench.io.publish import Publication, irregular, visible_names
from gpuworkbench.io.safetensors_file import TensorSpec, stream_safetensors
from gpuworkbench.io.safetensors_reader import SafetensorsReader, StoredTensor
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tools.checkpoint_weights import CheckpointWeights, open_weights
from gpuworkbench.tools.sample import load_config
from gpuworkbench.training.pretrained import TORCH_DTYPES
from gpuworkbench.units import MIB, format_bytes

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
SMALL_FILES = (CONFIG_FILE, "generation_config.json", "README.md", "tokenizer.json", "tokenizer_config.json")
_SMALL_FILES_BYTES = 32 * MIB  # tokenizer, configs, card: more than they ever take


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to write; `checkpoint` is a step, None the newest intact one."""

    run: str
    to: str
    checkpoint: int | None = None
    dtype: str = "fp32"
    max_shard_bytes: int = 5 * 10**9
    force: bool = False


class Job(NamedTuple):
    """What is exported, and how; `dtype` in safetensors' spelling."""

    run_id: str
    config: RunConfig
    layout: Layout
    rules: tuple[TensorRule, ...]
    tokenizer: Tokenizer
    weights: CheckpointWeights
    dtype: str
    files: Files


def main(argument: str) -> int:
    """Answer one request; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(ExitCode.SIGTERM))
    request = msgspec.json.decode(argument, type=ExportRequest)
    try:
        answer = export(request)
    except WorkbenchError as error:
        note(f"gpuworkbench: {error.line()}")
        return error.exit_code
    except OSError as error:
        reason = error.strerror or str(error)
        note(f"gpuworkbench: {WorkbenchError(f'{request.to} cannot be written: {reason}', 'check the disk').line()}")
        return ExitCode.FAILED
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return ExitCode.OK


def export(request: ExportRequest, files: Files = REAL_FILES) -> dict[str, Any]:
    """Write the folder, whole or not at all; returns what was written.

    Raises ConfigError for a folder that is in use, DoesNotFitError for a full disk, RunError, CheckpointError, OSError.
    """
    paths, final = RunPaths(Path(request.run)), Path(request.to)
    refuse_target(final, force=request.force)
    config = load_config(paths)
    layout = layout_of(config.model.family)
    rules = tuple(rule for rule in layout.tensors(config.model) if not rule.is_copy)
    tokenizer = load_tokenizer(paths.tokenizer)
    weights = open_weights(paths, request.checkpoint, note)
    job = Job(paths.run_id, config, layout, rules, tokenizer, weights, DTYPES[request.dtype], files)
    try:
        shards = plan_shards(specs_of(job), request.max_shard_bytes)
        refuse_full_disk(shards, final)
        publication = Publication(final, files)
        try:
            write_weights(job, publication.temporary, shards)
            write_small_files(job, publication.temporary)
            publication.commit(CONFIG_FILE, is_weights_name)
        except BaseException:
            publication.discard()
            raise
    finally:
        weights.reader.close()
    return {
        "run_id": paths.run_id,
        "step": weights.step,
        "path": str(final),
        "dtype": request.dtype,
        "files": visible_names(final),
        "num_bytes": sum(spec.num_bytes for shard in shards for spec in shard.specs),
        "n_tensors": len(rules),
        "n_params": config.model.n_params(),
    }


def refuse_target(final: Path, *, force: bool) -> None:
    """ConfigError where `final` cannot become the exported folder, or holds something that was not given up."""
    if not final.is_dir():
        if final.exists() or final.is_symlink():
            raise ConfigError(f"{final} is not a folder", "name another one with --to")
        return
    names = visible_names(final)
    if names and not force:
        raise ConfigError(f"{final} is not empty", "name another folder with --to, or replace an export with --force")
    ours = [name for name in names if is_weights_name(name) or name in SMALL_FILES]
    if odd := irregular(final, ours):
        raise ConfigError(f"{final / odd[0]} is not a regular file", "name another folder with --to")


def refuse_full_disk(shards: list[Shard], final: Path) -> None:
    """DoesNotFitError where the file system of `final` has no room for the export."""
    needed = sum(spec.num_bytes for shard in shards for spec in shard.specs) + _SMALL_FILES_BYTES
    free = disk_free_bytes(final)
    if free and free < needed:  # no room at all is told by whoever makes the folder
        raise DoesNotFitError(
            f"the export needs {format_bytes(needed)}, the disk at {final} has {format_bytes(free)} free",
            "free disk space, or take --dtype bf16",
        )


def specs_of(job: Job) -> list[TensorSpec]:
    """What the files will hold, in this order."""
    width = TORCH_DTYPES[job.dtype].itemsize
    return [
        TensorSpec(job.layout.prefix + rule.published, job.dtype, rule.shape, math.prod(rule.shape) * width)
        for rule in job.rules
    ]


def write_weights(job: Job, directory: Path, shards: list[Shard]) -> None:
    """The weights files, one tensor in memory at a time, and their index where there are several."""
    by_name = {job.layout.prefix + rule.published: rule for rule in job.rules}
    reader = job.weights.reader
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for shard in shards:
        parts = (published_bytes(reader, stored, by_name[spec.name], spec.dtype) for spec in shard.specs)
        # transformers refuses files that do not name their framework.
        stream_safetensors(directory / shard.name, shard.specs, parts, job.files, metadata={"format": "pt"})
    if len(shards) > 1:
        atomic_write_json(directory / INDEX_FILE, index_of(shards), job.files)


def published_bytes(
    reader: SafetensorsReader, stored: Mapping[str, StoredTensor], rule: TensorRule, dtype: str
) -> memoryview:
    """One tensor as it stands in the file: without padding rows, transposed where the family says so."""
    source = stored.get(rule.ours)
    rows = rule.shape[-1] if rule.is_transposed else rule.shape[0]
    if source is None or source.dtype not in TORCH_DTYPES or not source.shape or source.shape[0] < rows:
        raise CheckpointError(f"tensor {rule.ours!r} of the checkpoint is not what the configuration describes")
    row_bytes = source.num_bytes // source.shape[0]
    raw = torch.empty(rows * row_bytes, dtype=torch.uint8)
    reader.read_into(source._replace(stop=source.start + raw.numel()), memoryview(raw.numpy().data))
    value = raw.view(TORCH_DTYPES[source.dtype]).view(rows, *source.shape[1:])
    value = value.t() if rule.is_transposed else value
    if tuple(value.shape) != rule.shape:
        raise CheckpointError(f"tensor {rule.ours!r} of the checkpoint has shape {list(source.shape)}")
    result = value.to(TORCH_DTYPES[dtype]).contiguous()  # the same memory where nothing changes
    if not torch.isfinite(torch.stack(torch.aminmax(result))).all():
        raise ConfigError(f"tensor {rule.ours!r} has values beyond {dtype}", "export it with --dtype bf16 or fp32")
    return memoryview(result.view(-1).view(torch.uint8).numpy().data)


def write_small_files(job: Job, directory: Path) -> None:
    """The tokenizer, config.json, generation_config.json and the model card."""
    missing = None
    try:
        write_tokenizer_json(job.tokenizer, directory, job.files)
    except DataError as error:
        missing = error.message
        note(f"without a tokenizer: {error.line()}")
    dtype, eot_id = str(TORCH_DTYPES[job.dtype]).removeprefix("torch."), job.tokenizer.eot_id
    published = job.layout.config_json(job.config.model, dtype=dtype, eot_id=eot_id)
    atomic_write_json(directory / CONFIG_FILE, published, job.files)
    ids = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    atomic_write_json(directory / "generation_config.json", ids, job.files)
    weights = job.weights
    card = model_card(
        job.config, job.run_id, weights.progress, step=weights.step, dtype=dtype, missing_tokenizer=missing
    )
    write_durable(directory / "README.md", card.encode(), job.files)


def note(text: str) -> None:
    """A line for people on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
