"""The names of a run directory's files, in one place, and where run directories are looked for."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from gpuworkbench.errors import UsageError

RUNS_DIR_VARIABLE = "GPUWORKBENCH_RUNS_DIR"
MAX_RUN_ID_BYTES = 120  # file names end at 255 bytes, and temporary names put a prefix before the id
CHECKPOINT_NAME = re.compile(r"step-(\d{8,12})")
ATTEMPT_FILE_NAME = re.compile(r"run\.([1-9]\d{0,8})\.toml")
_STAMP = re.compile(r"\d{8}-\d{6}(?=-)")
_NOT_FOR_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class RunPaths:
    """Every file of one run directory. Nothing here touches the disk."""

    root: Path

    @property
    def run_id(self) -> str:
        """The run's name: its directory's."""
        return self.root.name

    @property
    def preset_toml(self) -> Path:
        """Verbatim copy of the preset."""
        return self.root / "preset.toml"

    @property
    def run_toml(self) -> Path:
        """The resolved configuration of the first attempt."""
        return self.root / "run.toml"

    def attempt_toml(self, attempt: int) -> Path:
        """The resolved configuration after a resume that changed keys."""
        return self.root / f"run.{attempt}.toml"

    @property
    def label(self) -> Path:
        """Name, notes and place in the queue."""
        return self.root / "label.json"

    @property
    def env(self) -> Path:
        """Versions and hardware, one record an attempt."""
        return self.root / "env.json"

    @property
    def lock(self) -> Path:
        """Held for the trainer's life."""
        return self.root / "lock"

    @property
    def events(self) -> Path:
        """The append-only event log."""
        return self.root / "events.jsonl"

    @property
    def events_index(self) -> Path:
        """Sidecar index of the event log."""
        return self.root / "events.idx"

    @property
    def heartbeat(self) -> Path:
        """Twice a second: pid, last step, last progress."""
        return self.root / "heartbeat.json"

    @property
    def control(self) -> Path:
        """Directory of commands for the trainer."""
        return self.root / "control"

    @property
    def undo(self) -> Path:
        """What a jump is undone from, where that is kept on disk; seen only while it is written."""
        return self.root / "undo"

    @property
    def trainer_log(self) -> Path:
        """The trainer's stdout and stderr."""
        return self.root / "trainer.log"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The committed checkpoint directory after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    @property
    def tokenizer(self) -> Path:
        """Directory of the tokenizer the run was trained with."""
        return self.root / "tokenizer"

    @property
    def samples(self) -> Path:
        """Directory of generated text."""
        return self.root / "samples"

    @property
    def exports(self) -> Path:
        """Directory of exported weights."""
        return self.root / "exports"

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard files."""
        return self.root / "tensorboard"


def runs_dir(cli_value: str | Path | None = None) -> Path:
    """Where runs live: the flag, then GPUWORKBENCH_RUNS_DIR, then ./runs in a checkout, then the user's data directory.

    A checkout is recognised from anywhere inside it. The directory need not exist yet.
    """
    chosen = cli_value or os.environ.get(RUNS_DIR_VARIABLE)
    if chosen:
        if "\0" in str(chosen):
            raise UsageError("the runs directory's name holds a NUL character", "give another --runs-dir")
        return Path(chosen).expanduser().absolute()
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "pyproject.toml").is_file() and (directory / "gpuworkbench" / "__init__.py").is_file():
            return directory / "runs"
    return platformdirs.user_data_path("gpuworkbench", appauthor=False) / "runs"


def name_to_type(paths: RunPaths) -> str:
    """What a person types to name a run: its id where runs are looked for by default, else its path."""
    return paths.run_id if paths.root.parent == runs_dir() else str(paths.root)


def new_run_id(preset: str, now: datetime | None = None, token: str | None = None) -> str:
    """`<UTC yyyymmdd-hhmmss>-<preset>-<4 hex>`; characters of `preset` that do not belong in a name become `-`.

    `now` must be timezone-aware; `token` is four hex digits (both made here by default).
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    name = _NOT_FOR_NAMES.sub("-", preset).strip("-.")[:60].replace("..", ".") or "run"
    return f"{moment:%Y%m%d-%H%M%S}-{name}-{token or secrets.token_hex(2)}"


def created_unix_s(run_id: str) -> float | None:
    """When a run id made by `new_run_id` says it was made, in seconds since 1970; None for names people chose."""
    match = _STAMP.match(run_id)
    if not match:
        return None
    try:
        return datetime.strptime(match[0], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def validate_run_id(text: str) -> str:
    """Return `text` if it can name a run directory, else raise UsageError."""
    if not text:
        raise UsageError("--run-id is empty", "give a name such as baseline-1")
    if ".." in text or text[0] in ".-":
        raise UsageError(f"--run-id {text[:80]!r} may not start with '.' or '-' or hold '..'", "give a plain name")
    if not all(char.isalnum() or char in "._-" for char in text):
        raise UsageError(f"--run-id {text[:80]!r} may hold letters, digits, '.', '_' and '-' only", "rename it")
    if len(text.encode()) > MAX_RUN_ID_BYTES:
        raise UsageError(f"--run-id is longer than {MAX_RUN_ID_BYTES} bytes", "shorten it")
    return text
