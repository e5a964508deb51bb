"""Starting the process that writes text with a checkpoint, for the command line and the app alike.

It answers on stdout, one JSON object a line: first the prompt and the checkpoint's step, then pieces of text, last
how much was written and how long that took. It holds nothing but its own memory and may be killed at any time.
"""

from __future__ import annotations

import subprocess
from typing import IO

import msgspec

from gpuworkbench.errors import UsageError
from gpuworkbench.launch.spawn import torch_command, trainer_environment

DEFAULT_TOKENS, DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_SEED = 200, 0.8, 50, 1337


class SampleDone(msgspec.Struct, frozen=True):
    """The end of a text: tokens written, seconds without the loading, why it ends (`stop`: the model ended it)."""

    tokens: int
    duration_s: float = 0.0
    finish_reason: str = "length"


class SampleMessage(msgspec.Struct, frozen=True):
    """One line of the sampler; only some of it is set. `tokens` are those written so far."""

    prompt: str | None = None
    step: int | None = None
    text: str | None = None
    tokens: int | None = None
    done: SampleDone | None = None


def sample_request(
    run: str,
    prompt: str | None,
    *,
    tokens: int = DEFAULT_TOKENS,
    temperature: float = DEFAULT_TEMPERATURE,
    top_k: int = DEFAULT_TOP_K,
    seed: int = DEFAULT_SEED,
    checkpoint: int | None = None,
    begins_text: bool = False,
    ignore_eot: bool = False,
) -> dict[str, object]:
    """What `start_sampler` takes. `run` is a directory; `prompt` None is the run's own, `checkpoint` None the newest.

    `temperature` 0 is greedy, `top_k` 0 chooses from the whole vocabulary. `begins_text`: an end of text stands before
    the prompt, as before every document in training; `ignore_eot`: write on where the model ends its text.
    """
    return {
        "run": run,
        "prompt": prompt,
        "tokens": tokens,
        "temperature": temperature,
        "top_k": top_k,
        "seed": seed,
        "checkpoint": checkpoint,
        "begins_text": begins_text,
        "ignore_eot": ignore_eot,
    }


def start_sampler(request: dict[str, object], stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """The subprocess, in a session of its own so that Ctrl-C reaches only us. Raises UsageError."""
    try:
        command = torch_command("gpuworkbench.tools.sample", msgspec.json.encode(request).decode())
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=trainer_environment(),
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"the sampler cannot be started: {reason}", "shorten the prompt") from None


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold the text; arguments of other bytes hold lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
