"""Files of Hugging Face repositories: found in its cache, else downloaded into it by a subprocess.

The library that downloads takes a second to import and waits as long as it likes; here a subprocess has it
(`gpuworkbench.tools.fetch`) and is ended when it falls silent. What is cached already needs neither.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from gpuworkbench.errors import DataError, DoesNotFitError
from gpuworkbench.units import format_bytes, format_duration

OnProgress = Callable[[str, float | None], None]
RepoType = Literal["model", "dataset"]

SILENCE_LIMIT_S = 90.0  # the library tries a cut connection again for about a minute
FIRST_ANSWER_LIMIT_S = 25.0


class Wanted(msgspec.Struct, frozen=True):
    """Files of a repository: a name or a shell pattern, the first `limit` of its matches by name (None: all)."""

    pattern: str
    limit: int | None = None
    required: bool = True


class FetchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the subprocess is told."""

    repo_id: str
    wanted: tuple[Wanted, ...]
    repo_type: RepoType = "model"
    revision: str = "main"


def fetch(
    repo_id: str,
    filenames: Sequence[str | Wanted],
    repo_type: RepoType = "model",
    on_progress: OnProgress | None = None,
    *,
    revision: str = "main",
    instead: str = "",
) -> list[Path]:
    """Files of a repository, complete and of the right hash, downloaded where they are not cached yet.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured. A killed download is gone on with at the next call.
    `on_progress(message, fraction)` tells the size before anything is downloaded, then how far it is. Raises DataError
    in one line (with `instead`, what to do without these files, as its end) and DoesNotFitError for a full disk.
    """
    wanted = tuple(Wanted(each) if isinstance(each, str) else each for each in filenames)
    request = FetchRequest(repo_id=repo_id, wanted=wanted, repo_type=repo_type, revision=revision)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DataError(
            f"{repo_id} is not in the cache {hub_cache()}, and downloading needs huggingface_hub",
            _joined("install it: pip install 'gpuworkbench[hf]'", instead),
        )
    try:
        return _run(request, on_progress or (lambda message, fraction: None))
    except DataError as error:
        raise DataError(error.message, _joined(error.hint, instead)) from None


def hub_cache() -> Path:
    """The folder of huggingface_hub's cache, found as the library finds it."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def cached_files(repo_id: str, pattern: str, repo_type: RepoType = "model", revision: str = "main") -> list[Path]:
    """Complete files of a repository that are in the cache, by name; nothing is imported or asked."""
    repository = hub_cache() / f"{repo_type}s--{repo_id.replace('/', '--')}"
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
        snapshot = repository / "snapshots" / commit
        names = sorted(entry.name for entry in os.scandir(snapshot))
    except (OSError, ValueError):
        return []
    return [snapshot / name for name in names if fnmatch.fnmatchcase(name, pattern) and (snapshot / name).is_file()]


def _run(request: FetchRequest, report: OnProgress) -> list[Path]:
    tell = _Reporter(request, report)
    with _subprocess(request) as (process, log):
        for message in _messages(process, request):
            if "paths" in message:
                return [Path(path) for path in message["paths"]]
            if "error" in message:
                kind = DoesNotFitError if message["kind"] == "DoesNotFitError" else DataError
                raise kind(message["error"], message["hint"])
            tell(message)
        log.seek(0)
        last = (log.read().decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"downloading {request.repo_id} ended: {last}")


@contextmanager
def _subprocess(request: FetchRequest) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The downloading process in a session of its own, so that Ctrl-C reaches only us; ended when we leave."""
    package_parent = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": search_path,
        "HF_HUB_CACHE": os.path.abspath(hub_cache()),  # set and empty, the library would take the current folder
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-P", "-m", "gpuworkbench.tools.fetch", msgspec.json.encode(request).decode()]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=environment,
        ) as process,
    ):
        try:
            yield process, log
        finally:
            process.kill()  # what it downloaded so far stays


def _messages(process: subprocess.Popen[bytes], request: FetchRequest) -> Iterator[dict[str, Any]]:
    """The process' lines as they come. DataError when it falls silent."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    pending = b""
    limit_s = FIRST_ANSWER_LIMIT_S
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(limit_s):
                raise DataError(f"{request.repo_id}: the hub gives no answer within {limit_s:.0f} s", "try again later")
            block = os.read(fd, 65536)
            if not block:
                return
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                limit_s = SILENCE_LIMIT_S
                yield msgspec.json.decode(line)


class _Reporter:
    """The subprocess' lines as words for a person, with the time left at the mean rate so far."""

    def __init__(self, request: FetchRequest, report: OnProgress) -> None:
        self._repo_id = request.repo_id
        self._report = report
        self._began: tuple[float, int] | None = None

    def __call__(self, message: dict[str, Any]) -> None:
        if "plan" in message:
            self._tell_plan(message["plan"])
            return
        done, total = message["done_bytes"], message["total_bytes"]
        left = self._seconds_left(done, total)
        eta = f", {format_duration(left)} left" if left is not None else ""
        self._report(f"{message['doing']}: {format_bytes(done)} of {format_bytes(total)}{eta}", done / max(total, 1))

    def _tell_plan(self, plan: dict[str, Any]) -> None:
        if plan["n_files"]:
            size, free = format_bytes(plan["num_bytes"]), format_bytes(plan["free_bytes"])
            files = f"{plan['n_files']} files" if plan["n_files"] > 1 else "1 file"
            self._report(f"{files}, {size}, to download from {self._repo_id} to {plan['folder']} ({free} free)", None)

    def _seconds_left(self, done_bytes: int, total_bytes: int) -> float | None:
        now = time.monotonic()
        began_s, began_bytes = self._began = self._began or (now, done_bytes)
        gained = done_bytes - began_bytes
        return (total_bytes - done_bytes) * (now - began_s) / gained if gained > 0 else None


def _joined(*hints: str) -> str:
    return ", or ".join(hint for hint in hints if hint)
