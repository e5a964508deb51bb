"""`python -m gpuworkbench.tools.fetch`: files of a Hugging Face repository into its cache, told in JSON lines.

A process of its own because the library is slow to import and has no time limit of its own. The library's own download
begins again when it is killed; here the part that is there is kept, checked and gone on with. Lines: {"plan": ...}
first, {"doing": ..., "done_bytes", "total_bytes"} meanwhile, last {"paths": [...]} or {"error": ...}.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.data.hub import FetchRequest
from gpuworkbench.errors import DataError, DoesNotFitError, WorkbenchError
from gpuworkbench.gpu.host import disk_free_bytes
from gpuworkbench.units import format_bytes

TELL_INTERVAL_S = 2.0
REQUEST_LIMIT_S = 10.0
_PARTIAL_SUFFIX = ".gpuworkbench-partial"
_BLOCK_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024  # what a cut connection loses; the library's own is 10 MB


class RemoteFile(NamedTuple):
    """A file of the repository, and where it will lie."""

    name: str
    size_bytes: int


class Teller:
    """Says how far the whole download is, at most every two seconds."""

    def __init__(self, total_bytes: int) -> None:
        self.done_bytes = 0  # of files that are complete
        self._total_bytes = total_bytes
        self._said_s = 0.0

    def __call__(self, doing: str, file_bytes: int = 0) -> None:
        now = time.monotonic()
        if now - self._said_s < TELL_INTERVAL_S:
            return
        self._said_s = now
        emit({"doing": doing, "done_bytes": self.done_bytes + file_bytes, "total_bytes": self._total_bytes})


class PartialFile(io.BufferedRandom):
    """A file being downloaded, locked against other processes, that says how much of it is there."""

    def __init__(self, path: Path, tell: Callable[[int], None]) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        super().__init__(io.FileIO(fd, "r+"))
        self._say = tell

    def lock(self, waiting: Callable[[], None]) -> None:
        """Wait until no other process downloads into it."""
        while True:
            try:
                return fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                time.sleep(0.2)

    def write(self, data: Any) -> int:
        """Write, and say how far it is."""
        written = super().write(data)
        self._say(self.tell())
        return written


def main(argument: str) -> int:
    """Answer one request given as JSON; whatever goes wrong is one `error` line."""
    request = msgspec.json.decode(argument, type=FetchRequest)
    try:
        emit({"paths": [str(path) for path in fetch(request)]})
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody listens: the rest waits on disk
    except WorkbenchError as error:
        emit({"error": error.message, "hint": error.hint, "kind": type(error).__name__})
    except Exception as error:  # noqa: BLE001 - whatever the library, the network or the disk raise is one refusal
        told = explain(error, request)
        emit({"error": told.message, "hint": told.hint, "kind": type(told).__name__})
    return 0


def fetch(request: FetchRequest) -> list[Path]:
    """Paths of the wanted files in the cache, in the order they were asked for."""
    from huggingface_hub import HfApi, constants

    info = HfApi().repo_info(
        request.repo_id,
        repo_type=request.repo_type,
        revision=request.revision,
        files_metadata=True,
        timeout=REQUEST_LIMIT_S,
    )
    files = choose(request, [RemoteFile(each.rfilename, each.size or 0) for each in info.siblings or ()])
    paths = {file.name: cached_path(request, info.sha, file.name) for file in files}
    missing = [file for file in files if paths[file.name] is None]
    needed = sum(file.size_bytes for file in missing)
    cache = Path(constants.HF_HUB_CACHE)
    free = disk_free_bytes(cache)
    total = sum(file.size_bytes for file in files)
    emit({"plan": {"n_files": len(missing), "num_bytes": needed, "folder": str(cache), "free_bytes": free}})
    if free is not None and needed > free + partial_bytes(cache, request):
        raise DoesNotFitError(
            f"{request.repo_id}: {format_bytes(needed)} to download, {format_bytes(free)} are free at {cache}",
            "free space there, or set HF_HOME to another disk",
        )
    tell = Teller(total)
    tell.done_bytes = total - needed
    for file in missing:
        paths[file.name] = download(request, file, tell)
        tell.done_bytes += file.size_bytes
    return [path for path in paths.values() if path is not None]


def choose(request: FetchRequest, offered: list[RemoteFile]) -> list[RemoteFile]:
    """The wanted files, each once. DataError for a required one that the repository does not hold."""
    chosen: dict[str, RemoteFile] = {}
    for wanted in request.wanted:
        found = sorted(file for file in offered if fnmatch.fnmatchcase(file.name, wanted.pattern))
        if wanted.required and len(found) < max(wanted.limit or 1, 1):
            raise DataError(
                f"{request.repo_id} on the hub holds {len(found)} files {wanted.pattern}, "
                f"{max(wanted.limit or 1, 1)} are wanted"
            )
        chosen |= {file.name: file for file in found[: wanted.limit]}
    return list(chosen.values())


def cached_path(request: FetchRequest, commit: str | None, name: str) -> Path | None:
    """The file in the cache, complete and of the commit that the revision is now."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(request.repo_id, name, repo_type=request.repo_type, revision=commit)
    return Path(found) if isinstance(found, str) else None


def partial_bytes(cache: Path, request: FetchRequest) -> int:
    """What earlier, ended downloads of this repository already hold of the space."""
    from huggingface_hub.file_download import repo_folder_name

    folder = cache / repo_folder_name(repo_id=request.repo_id, repo_type=request.repo_type) / "blobs"
    return sum(path.stat().st_size for path in folder.glob(f"*{_PARTIAL_SUFFIX}"))


def download(request: FetchRequest, file: RemoteFile, tell: Teller) -> Path:
    """Fetch one file to its end, going on with what an earlier process left; the path in the cache."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    where = {"repo_id": request.repo_id, "repo_type": request.repo_type, "revision": request.revision}
    url = hf_hub_url(filename=file.name, **where)
    tell(f"asking for {file.name}")
    remote = get_hf_file_metadata(url, timeout=REQUEST_LIMIT_S)
    if not remote.etag or "/" in remote.etag:
        raise DataError(f"{url} has no usable ETag", "check HF_ENDPOINT: is it a hub?")
    folder = repo_folder_name(repo_id=request.repo_id, repo_type=request.repo_type)
    blob = Path(constants.HF_HUB_CACHE) / folder / "blobs" / remote.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    size = file.size_bytes if remote.size is None else remote.size
    fill_blob(blob, size, url, remote.location, lambda doing, n: tell(f"{doing} {file.name}", n))
    return Path(hf_hub_download(filename=file.name, **where))  # finds the blob, and only gives it its name


def fill_blob(blob: Path, size: int, url: str, location: str, tell: Callable[[str, int], None]) -> None:
    """Make `blob` complete and right. Its name is its hash, so a file of that name is never partial."""
    partial = blob.with_name(blob.name + _PARTIAL_SUFFIX)
    with PartialFile(partial, lambda n: tell("downloading", n)) as stream:
        stream.lock(lambda: tell("waiting for another process that downloads", 0))
        if blob.exists():  # it was that process
            partial.unlink(missing_ok=True)
            return
        for attempt in (1, 2):
            have = stream.seek(0, os.SEEK_END)
            if have > size:
                have = stream.truncate(stream.seek(0))
            get(url, location, stream, have, size)
            stream.flush()
            if is_right(stream, blob.name, tell):
                break
            stream.truncate(stream.seek(0))
            if attempt == 2:
                partial.unlink()
                raise DataError(
                    f"{url}: what arrived twice has another hash than {blob.name[:12]}", "a proxy may change it"
                )
        os.fsync(stream.fileno())
        os.rename(partial, blob)


def get(url: str, location: str, stream: PartialFile, have: int, size: int) -> None:
    """GET the rest of a file into `stream`. The library asks with Range, and again after a cut connection."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    headers = build_hf_headers()
    if urlsplit(url).netloc != urlsplit(location).netloc:
        headers.pop("authorization", None)  # the token is the hub's business, not a storage host's
    http_get(location, stream, resume_size=have, headers=headers, expected_size=size)


def is_right(stream: PartialFile, etag: str, tell: Callable[[str, int], None]) -> bool:
    """Whether the content has the hash that names it: sha256, or git's sha1 of a blob; others tell nothing."""
    size = stream.seek(0, os.SEEK_END)
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        return True
    stream.seek(0)
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
        tell("checking", stream.tell())
    return digest.hexdigest() == etag


def explain(error: Exception, request: FetchRequest) -> WorkbenchError:
    """An error of the library, the network or the disk, in one line."""
    from huggingface_hub import constants, errors

    repo = request.repo_id
    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.GatedRepoError():
            return DataError(f"{repo} is gated", f"accept its terms at {constants.ENDPOINT}/{repo} and set HF_TOKEN")
        case errors.RevisionNotFoundError():
            return DataError(f"{repo} has no revision {request.revision!r}")
        case errors.RepositoryNotFoundError():
            return DataError(f"{repo} is not on {constants.ENDPOINT}, or is private", "check the name, or set HF_TOKEN")
        case errors.OfflineModeIsEnabled():
            return DataError(f"{repo} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set")
        case errors.HfHubHTTPError() if status in (401, 403):
            return DataError(f"{constants.ENDPOINT} refuses {repo} (HTTP {status})", "check HF_TOKEN")
        case errors.HfHubHTTPError():
            return DataError(f"{constants.ENDPOINT} answers HTTP {status} for {repo}", "try again later")
        case errors.HFValidationError():
            return DataError(f"{repo!r} is no repository name", "give OWNER/NAME")
        case OSError() if error.errno:
            return DataError(f"cannot write {constants.HF_HUB_CACHE}: {error.strerror}", "check HF_HOME")
    reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return DataError(f"{repo} cannot be downloaded from {constants.ENDPOINT} ({reason})")


def emit(value: dict[str, Any]) -> None:
    """One line of JSON, flushed."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
