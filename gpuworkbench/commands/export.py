"""`gpuworkbench export RUN --to DIR`: a run's model as a Hugging Face folder, written by a subprocess."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from pathlib import Path

import msgspec

from gpuworkbench.commands.output import print_json, tell
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.launch.sampler import is_utf8
from gpuworkbench.launch.spawn import torch_command, trainer_environment
from gpuworkbench.runs.paths import runs_dir
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.units import format_bytes

STOP_TIMEOUT_S = 30.0  # for the exporter to take back what it wrote


def run(arguments: argparse.Namespace) -> int:
    """Export a checkpoint; returns the exit code."""
    target = target_folder(arguments.to)
    paths = resolve_run(runs_dir(arguments.runs_dir), arguments.run)
    request = {
        "run": str(paths.root),
        "to": str(target),
        "checkpoint": arguments.checkpoint,
        "dtype": arguments.dtype,
        "max_shard_bytes": arguments.max_shard_size,
        "force": arguments.is_replacing,
    }
    code, output = ask_exporter(request)
    if code != ExitCode.OK:
        return code
    answer = msgspec.json.decode(output)
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    folder = shlex.quote(answer["path"])
    tell(f"step {answer['step']} of {answer['run_id']} is in {answer['path']}")
    tell(f"weights     {answer['n_tensors']} tensors, {format_bytes(answer['num_bytes'])} in {answer['dtype']}")
    tell(f"files       {', '.join(answer['files'])}")
    tell(f"train on    --set train.init_from={folder} --set data.tokenizer={folder}")
    return ExitCode.OK


def target_folder(text: str) -> Path:
    """`--to` as an absolute path. Raises UsageError."""
    if not text.strip() or "\0" in text or not is_utf8(text):
        raise UsageError("--to is not the name of a folder", "give a path in UTF-8")
    try:
        path = Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError:
        raise UsageError(f"--to {text[:80]!r}: there is no such user", "give the whole path") from None
    return path.resolve() if path.is_dir() else path


def ask_exporter(request: dict[str, object]) -> tuple[int, bytes]:
    """Exit code and answer of the subprocess. Ctrl-C here lets it take back what it wrote. Raises UsageError."""
    try:
        process = subprocess.Popen(
            torch_command("gpuworkbench.tools.export", msgspec.json.encode(request).decode()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=trainer_environment(),
        )
    except OSError as error:
        raise UsageError(f"the exporter cannot be started: {error.strerror or error}", "check memory") from None
    with process:  # closes its pipe
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    code = process.returncode
    return (128 - code if code < 0 else code), output
