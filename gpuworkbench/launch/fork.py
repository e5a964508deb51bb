"""A new run that starts from another run's checkpoint. The parent is only read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from gpuworkbench.config.diff import differences
from gpuworkbench.config.loader import Override
from gpuworkbench.config.schema import DataConfig, RunConfig
from gpuworkbench.config.storage import checkpoint_format
from gpuworkbench.config.toml_io import dump_toml, read_config_file
from gpuworkbench.data import PreparedData, check_eval_tokens, prepare
from gpuworkbench.data.encoding import Progress, bpe_size
from gpuworkbench.data.tokenization.same_tokenizer import check_same_tokenizer, kept_tokenizer
from gpuworkbench.errors import CheckpointError, ConfigError
from gpuworkbench.gpu.fit import select_device
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.io import REAL_FILES, Files, commit_directory
from gpuworkbench.io.atomic import temporary_path
from gpuworkbench.io.files import write_all
from gpuworkbench.io.reading import open_regular
from gpuworkbench.launch.queue import refuse_busy
from gpuworkbench.launch.resolve import resolve
from gpuworkbench.launch.resume import changed_config, refuse_past_end, run_config
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.manifest import MANIFEST_NAME, CheckpointRef, list_checkpoints, read_manifest, verify_checkpoint
from gpuworkbench.runs.paths import RunPaths, new_run_id, validate_run_id
from gpuworkbench.runs.turns import device_of

# Keys that decide how a checkpoint stores weights and optimizer state.
_FORMAT_KEYS = frozenset(
    {
        "optimizer.name",
        "optimizer.momentum",
        "memory.weights",
        "memory.packed_optimizer",
        "memory.stochastic_rounding",
        "memory.optimizer_offload",
    }
)
_CHUNK_BYTES = 16 * 1024 * 1024


def fork(
    paths: RunPaths,
    runs_dir: Path,
    *,
    sets: Iterable[Override] = (),
    steps: int | None = None,
    run_id: str | None = None,
    queue: bool = False,
    environ: Mapping[str, str] = os.environ,
    files: Files = REAL_FILES,
    on_progress: Progress | None = None,
) -> RunPaths:
    """A new run that starts from the newest intact checkpoint of `paths`, with changed keys.

    It is there with its checkpoint or not at all; `on_progress` hears of its data being made. Raises ConfigError,
    RunError, CheckpointError, DataError, DoesNotFitError, DeviceBusyError (without `queue`).
    """
    if run_id is not None:
        validate_run_id(run_id)
    old, sets = run_config(paths), tuple(sets)
    weights = next((each.value for each in sets if each.key == "memory.weights"), old.memory.weights)
    if weights in ("fp32", "bf16") and weights != old.memory.weights:  # before rules about what else they would need
        raise _other_format(each.key for each in sets)
    new = changed_config(old, sets, steps, environ, paths.tokenizer)
    changed = [difference.key for difference in differences(old, new)]
    if any(key.startswith("model.") for key in changed):
        raise ConfigError("a fork keeps the model of its checkpoint", "start a new run to change [model]")
    if checkpoint_format(old) != checkpoint_format(new):
        raise _other_format(changed)
    if new.train.init_from != old.train.init_from or new.train.init_sha256 != old.train.init_sha256:
        raise ConfigError("a fork starts from its checkpoint", "start a new run to change train.init_from")
    reference = newest_intact_checkpoint(paths)
    refuse_past_end(paths, new)
    choice = select_device(new, probe_cards())
    if not queue:
        refuse_busy(device_of(choice.kind, choice.uuid, choice.index), can_share=False)
    new, data = _prepare(old.data, new, paths, on_progress)
    if new.eval.interval_steps:
        check_eval_tokens(new, data.n_val_tokens)
    resolved = resolve(new, data, choice)
    new = msgspec.structs.replace(
        resolved,
        # The number of steps is resolved already; epochs, where there are any, do not shorten it again.
        train=msgspec.structs.replace(resolved.train, max_steps=new.train.max_steps),
        forked_from=f"{paths.run_id}@{reference.step}",
    )
    return create_run(
        runs_dir,
        run_id or new_run_id(old.preset),
        read_config_file(paths.preset_toml),
        dump_toml(new),
        files,
        # Within the creation: a fork without its checkpoint would train from nothing.
        fill=lambda child: _fill(child, reference, data, files),
    )


def _other_format(changed: Iterable[str]) -> ConfigError:
    found = [key for key in changed if key in _FORMAT_KEYS]
    keys = " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]]))
    store, them = ("stores", "it") if len(found) == 1 else ("store", "them")
    return ConfigError(
        f"a fork reads its checkpoint's weights and optimizer state as they are stored, and {keys} {store} others",
        f"leave {them} out, or export the run and start a new one with train.init_from",
    )


def _prepare(
    old: DataConfig, new: RunConfig, paths: RunPaths, on_progress: Progress | None
) -> tuple[RunConfig, PreparedData]:
    """The fork's config and data. A vocabulary trained on the parent's text stays that one on another text.

    Trained anew, its ids would mean other tokens than the weights know. DataError for any other tokenizer.
    """

    def with_data(**changes: str | None) -> RunConfig:
        return msgspec.structs.replace(new, data=msgspec.structs.replace(new.data, **changes))

    own = kept_tokenizer(paths.tokenizer)
    new = with_data(sha256=None, tokenizer_sha256=None)
    if own is not None and new.data.tokenizer == old.tokenizer and bpe_size(old.tokenizer) is not None:
        changed = any(getattr(old, key) != getattr(new.data, key) for key in ("source", "seed", "val_fraction"))
        if changed or prepare(new, on_progress=on_progress).tokenizer_sha256 != own.sha256:
            new = with_data(tokenizer=os.path.abspath(paths.tokenizer))
    data = prepare(new, on_progress=on_progress, kept_tokenizer=paths.tokenizer)
    check_same_tokenizer(old, data, paths.tokenizer)
    return new, data


def _fill(child: RunPaths, reference: CheckpointRef, data: PreparedData, files: Files) -> None:
    """The checkpoint, and the tokenizer that its weights know: the parent may be removed."""
    copy_checkpoint(reference, child.checkpoint(reference.step), files)
    files.mkdir(child.tokenizer)
    data.tokenizer().save(child.tokenizer, files)


def newest_intact_checkpoint(paths: RunPaths) -> CheckpointRef:
    """The newest checkpoint whose manifest holds. Raises CheckpointError when there is none."""
    problem = "it has none yet"
    for reference in list_checkpoints(paths):
        try:
            verify_checkpoint(reference.path)
        except CheckpointError as error:
            problem = error.message
            continue
        return reference
    raise CheckpointError(f"{paths.root.name}: no intact checkpoint: {problem}", "train it further first")


def copy_checkpoint(reference: CheckpointRef, target: Path, files: Files = REAL_FILES) -> None:
    """Copy a checkpoint durably; it appears under its name only if every byte of the copy is right.

    Its run may be training and retire it meanwhile. Raises OSError where it cannot be written, CheckpointError where
    it cannot be read.
    """
    temporary = temporary_path(target)
    names = [entry.name for entry in read_manifest(reference.path).files]
    files.mkdir(temporary)
    for name in (*names, MANIFEST_NAME):
        try:
            source = open_regular(reference.path / name)
        except OSError as error:
            raise CheckpointError(f"{reference.path.name} went while it was copied: {error.strerror}") from None
        _copy_file(source, temporary / name, files)
    verify_checkpoint(temporary)
    commit_directory(temporary, target, files)


def _copy_file(source: int, target: Path, files: Files) -> None:
    """Copy what descriptor `source` is open on, and close it."""
    with os.fdopen(source, "rb") as stream:
        fd = files.open_write(target)
        try:
            while chunk := stream.read(_CHUNK_BYTES):
                write_all(files, fd, chunk)
            files.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        files.close(fd)
