"""`data.tokenizer` as a path: a tokenizer.json, a Hugging Face folder that holds one, a run, or prepared tokens.

`hf:OWNER/NAME` is such a folder in the hub's cache.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from gpuworkbench.data.hub import OnProgress, Wanted, cached_files, fetch
from gpuworkbench.data.location import OFFLINE_FLAGS, open_regular, stat_path
from gpuworkbench.data.prepared import TOKENIZER_FOLDER
from gpuworkbench.data.tokenization.library_tokenizer import LibraryTokenizer, parse_library, special_tokens
from gpuworkbench.data.tokenization.tokenizer import FILE_NAME, FORMAT, Tokenizer, restore
from gpuworkbench.errors import DataError
from gpuworkbench.registry import nearest

MAX_LIBRARY_BYTES = 128 * 1024 * 1024
_MAX_CONFIG_BYTES = 16 * 1024 * 1024
CONFIG_FILE = "tokenizer_config.json"
HUB_PREFIX = "hf:"
_EOT_FILES = (CONFIG_FILE, "special_tokens_map.json", "generation_config.json", "config.json")
_SHOWN_TOKENS = 8
_HUB_NAME = re.compile(r"hf:(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w.-]{1,100}))?", re.ASCII)


def is_path(name: str) -> bool:
    """Whether a `data.tokenizer` that is no known name is meant as a path, there or not."""
    return (
        "/" in name
        or name.startswith(("~", HUB_PREFIX))
        or name.endswith(".json")
        or ("\0" not in name and os.path.lexists(name))
    )


def absolute_tokenizer(name: str) -> str:
    """The path that a `data.tokenizer` means, absolute."""
    return os.path.abspath(os.path.expanduser(name))


def open_tokenizer(path: Path, eot_token: str | None = None, name: str = "") -> Tokenizer:
    """The tokenizer of a tokenizer.json or of a folder that holds one; `name` where the path's would say nothing.

    `eot_token` is the token that ends a text, for files that do not say which one. Raises DataError in one line.
    """
    with _about_the_tokenizer():
        file = _file_of(path)
        content = _read(file, MAX_LIBRARY_BYTES)
    if _is_ours(content):
        if eot_token is not None:
            raise DataError(f"{file} has an end-of-text token of its own", "leave data.eot_token out")
        ours: Tokenizer = _opened(file, restore, content)
        return ours
    library = _opened(file, parse_library, content)
    config = _table(file.with_name(CONFIG_FILE))
    name = name or (file.parent.name if file.name == FILE_NAME else file.stem)
    eot_id = _eot_id(file, library, eot_token)
    return LibraryTokenizer(name or "tokenizer", content, eot_id=eot_id, config_json=msgspec.json.encode(config))


@contextmanager
def _about_the_tokenizer() -> Iterator[None]:
    """Errors about a path, with the key that names it."""
    try:
        yield
    except DataError as error:
        hint = error.hint if error.hint and "data.source" not in error.hint else "check data.tokenizer"
        raise DataError(error.message.replace("read data at", "read the tokenizer at"), hint) from None


def open_hub_tokenizer(name: str, on_progress: OnProgress | None, eot_token: str | None) -> Tokenizer:
    """The tokenizer of `hf:OWNER/NAME`, of that name: its folder in the cache is named by a hash. Raises DataError."""
    return open_tokenizer(hub_folder(name, on_progress, eot_token), eot_token, name.removeprefix(HUB_PREFIX))


def hub_folder(name: str, on_progress: OnProgress | None = None, eot_token: str | None = None) -> Path:
    """The folder, in the hub's cache, of the tokenizer of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`.

    What is cached is used without a network, where it says which token ends a text or `eot_token` does: a download
    that was killed leaves some of the files. Raises DataError, DoesNotFitError as `hub.fetch`.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise DataError(
            f"data.tokenizer = {name!r} names no repository", "write hf:OWNER/NAME, such as hf:openai-community/gpt2"
        )
    repo_id, revision = match["repo"], match["revision"] or "main"
    cached = cached_files(repo_id, FILE_NAME, revision=revision)
    if cached and (eot_token is not None or next(_said(cached[0].parent), None) is not None):
        return cached[0].parent
    wanted = [Wanted(FILE_NAME), *(Wanted(each, required=False) for each in _EOT_FILES)]
    try:
        paths = fetch(repo_id, wanted, "model", on_progress, revision=revision, instead=f"use {OFFLINE_FLAGS}")
    except DataError:
        if not cached:
            raise
        return cached[0].parent  # perhaps all there is: it is then refused for what it does not say
    return paths[0].parent


def _file_of(path: Path) -> Path:
    if not stat.S_ISDIR(stat_path(path).st_mode):
        return path
    file, own = path / FILE_NAME, path / TOKENIZER_FOLDER / FILE_NAME
    if os.path.lexists(own) and (not os.path.lexists(file) or _is_ours(_read(own, MAX_LIBRARY_BYTES))):
        return own  # of a run, or of prepared tokens: exactly the one they were made with
    if not os.path.lexists(file):
        raise DataError(
            f"folder {path} holds no {FILE_NAME}",
            "write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    return file


def _read(path: Path, limit_bytes: int) -> bytes:
    with open_regular(path) as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise DataError(f"{path} is larger than {limit_bytes} bytes", "point data.tokenizer at a tokenizer.json")
    return content


def _is_ours(content: bytes) -> bool:
    return f'"{FORMAT}"'.encode() in content[:200]


def _opened(file: Path, parse: Any, content: bytes) -> Any:
    try:
        return parse(content)
    except (ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise DataError(f"{file} is not a tokenizer.json: {error}", "check data.tokenizer") from None


def _eot_id(file: Path, library: Any, eot_token: str | None) -> int:
    """Which token ends a text: as asked for, else as the files beside say."""
    if eot_token is not None:
        number: int | None = library.token_to_id(eot_token)
        if number is None:
            close = nearest(eot_token, sorted(special_tokens(library)))
            raise DataError(
                f"data.eot_token = {eot_token!r} is not in the vocabulary of {file}",
                f"did you mean {close!r}?" if close else _candidates(library),
            )
        return number
    for where, value in _said(file.parent):
        number = library.token_to_id(value) if isinstance(value, str) else value
        if number is None or library.id_to_token(number) is None:
            raise DataError(
                f"{where} says that {value!r} ends a text, which is not in the vocabulary of {file}",
                "set data.eot_token",
            )
        return number
    raise DataError(f"nothing beside {file} says which token ends a text", _candidates(library))


def _candidates(library: Any) -> str:
    special = list(special_tokens(library))[:_SHOWN_TOKENS]
    return f"set data.eot_token, for example to one of: {', '.join(special)}" if special else "set data.eot_token"


def _said(folder: Path) -> Iterator[tuple[Path, str | int]]:
    """What each file of a model folder says ends a text, as a token or as an id."""
    for path in (folder / name for name in _EOT_FILES):
        table = _table(path) or {}
        text_config = table.get("text_config")
        for each in (table, text_config if isinstance(text_config, dict) else {}):
            if (value := _eot_of(each)) is not None:
                yield path, value


def _table(path: Path) -> dict[str, Any] | None:
    """A JSON object that may lie beside, None where it does not. DataError for anything else of that name."""
    if not os.path.lexists(path):
        return None
    content = _read(path, _MAX_CONFIG_BYTES)
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON object: {error}", "set it right, or remove it") from None


def _eot_of(table: dict[str, Any]) -> str | int | None:
    token = table.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and token:
        return token
    number = table.get("eos_token_id")
    if isinstance(number, list) and number:
        number = number[0]  # several may end an answer; the first ends a text
    return number if isinstance(number, int) and number is not True and 0 <= number < 2**31 else None
