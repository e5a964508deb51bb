"""`gpuworkbench sample RUN --prompt TEXT`: stream text from a checkpoint, written by a subprocess."""

from __future__ import annotations

import argparse
import sys

import msgspec

from gpuworkbench.commands.output import print_json, say
from gpuworkbench.data.corpora.records import chat_prompt
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.launch.sampler import is_utf8, sample_request, start_sampler
from gpuworkbench.runs.paths import runs_dir
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.text import safe_text


def run(arguments: argparse.Namespace) -> int:
    """Print the prompt and its continuation as it is written; with --json one object at the end."""
    prompt = prompt_of(arguments)
    paths = resolve_run(runs_dir(arguments.runs_dir), arguments.run)
    request = sample_request(
        str(paths.root),
        prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        checkpoint=arguments.checkpoint,
        begins_text=arguments.chat is not None,
        ignore_eot=arguments.ignore_eot,
    )
    process = start_sampler(request)
    assert process.stdout is not None
    head: dict[str, object] = {}
    done: dict[str, object] = {}
    pieces: list[str] = []
    try:
        for line in process.stdout:
            message = msgspec.json.decode(line)
            if "prompt" in message:
                head = message
                show(message["prompt"], arguments.json)
            elif "text" in message:
                pieces.append(message["text"])
                show(message["text"], arguments.json)
            elif "done" in message:
                done = message["done"]
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code != ExitCode.OK:
        return code
    if arguments.json:
        print_json({"run_id": paths.run_id, **head, "text": "".join(pieces), **done})
    else:
        sys.stdout.write("\n")
        if done.get("tokens") == 0:
            say("the model ended its text at once; --ignore-eot lets it go on")
    return ExitCode.OK


def prompt_of(arguments: argparse.Namespace) -> str | None:
    """What the model continues: `--prompt`, a conversation of `--chat`, or None for the run's. Raises UsageError."""
    for name in ("prompt", "chat", "system"):
        text = getattr(arguments, name)
        if text is not None and not is_utf8(text):
            raise UsageError(f"--{name} is not UTF-8", "give it as UTF-8 text")
    if arguments.chat is None:
        if arguments.system is not None:
            raise UsageError("--system belongs to --chat", "give a question too: --chat TEXT")
        prompt: str | None = arguments.prompt
        return prompt
    if arguments.prompt is not None:
        raise UsageError("--chat and --prompt exclude each other", "--chat writes the prompt of a conversation")
    return chat_prompt(arguments.chat, arguments.system or "")


def show(text: str, as_json: bool) -> None:
    """Write a piece of text to the terminal, its control characters as glyphs."""
    if not as_json:
        sys.stdout.write(safe_text(text, multiline=True))
        sys.stdout.flush()
