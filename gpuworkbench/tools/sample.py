"""`python -m gpuworkbench.tools.sample`: write text with a checkpoint, one JSON object a line as it is written.

Lines: {"prompt": ...} first, then {"text": ..., "tokens": N} pieces, last {"done": {"tokens": N, "duration_s": S,
"finish_reason": "stop" or "length"}}. The caller renders them; this process may be ended at any time. While the run
trains it writes on the CPU: the card's memory was measured out for the trainer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError

from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.data.tokenization.same_tokenizer import load_own_tokenizer
from gpuworkbench.data.tokenization.text_stream import TextStream
from gpuworkbench.data.tokenization.tokenizer import Tokenizer, end_of_text
from gpuworkbench.errors import CheckpointError, DoesNotFitError, ExitCode, RunError, WorkbenchError
from gpuworkbench.memory.bf16_weights import store_in_bf16
from gpuworkbench.models import build_model
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.models.generate import generate
from gpuworkbench.parts import Part
from gpuworkbench.runs.create import newest_run_file
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import CheckpointRef, list_checkpoints, verify_checkpoint
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.checkpoint_files import load_model_tensors
from gpuworkbench.training.state import ModelState

_TRIES = 20  # listings, each made because a checkpoint went away while it was read


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to write; `checkpoint` is a step, None the newest intact one; `prompt` None is the run's own.

    `begins_text` puts an end of text before the prompt, as one stands before every document in training.
    """

    run: str
    prompt: str | None
    tokens: int
    temperature: float
    top_k: int
    seed: int
    checkpoint: int | None = None
    begins_text: bool = False
    ignore_eot: bool = False


def main(argument: str) -> int:
    """Answer one request given as JSON; returns the exit code."""
    request = msgspec.json.decode(argument, type=SampleRequest)
    try:
        paths = RunPaths(Path(request.run))
        config = load_config(paths)
        tokenizer = load_own_tokenizer(config.data, paths.tokenizer)
        step, model = open_model(paths, config, request.checkpoint)
        prompt = config.sample.prompt if request.prompt is None else request.prompt
        prompt_ids = encode_prompt(tokenizer, prompt, begins_text=request.begins_text)
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return error.exit_code
    emit({"prompt": prompt, "step": step})
    started_s = time.monotonic()
    try:
        n_tokens = write_text(model, tokenizer, prompt_ids, request)
    except torch.OutOfMemoryError:
        print("gpuworkbench: the card's memory is full; end what else uses it, or shorten the prompt", file=sys.stderr)
        return ExitCode.FAILED
    duration_s = round(time.monotonic() - started_s, 4)
    reason = "length" if n_tokens == request.tokens else "stop"
    emit({"done": {"tokens": n_tokens, "duration_s": duration_s, "finish_reason": reason}})
    return ExitCode.OK


def load_config(paths: RunPaths) -> RunConfig:
    """The run's newest config. Raises ConfigError."""
    path = newest_run_file(paths)
    return build(parse_toml(read_config_file(path), str(path)), str(path))


def choose_checkpoint(paths: RunPaths, step: int | None) -> CheckpointRef:
    """The checkpoint of `step`, or the newest intact one. Raises RunError, CheckpointError."""
    references = list_checkpoints(paths)
    if not references:
        raise RunError(f"{paths.root.name} has no checkpoint yet", "train it further, or `gpuworkbench checkpoint RUN`")
    if step is not None:
        matching = [reference for reference in references if reference.step == step]
        if not matching:
            steps = ", ".join(str(reference.step) for reference in references)
            raise RunError(f"{paths.root.name} has no checkpoint of step {step}", f"it has: {steps}")
        verify_checkpoint(matching[0].path)
        return matching[0]
    for reference in references:
        try:
            verify_checkpoint(reference.path)
        except CheckpointError as error:
            print(f"gpuworkbench: {error.line()}", file=sys.stderr)
            continue
        return reference
    raise CheckpointError(f"{paths.root.name}: no checkpoint is intact", "resume the run from an earlier copy")


def open_model(paths: RunPaths, config: RunConfig, step: int | None) -> tuple[int, LanguageModel]:
    """The step of the checkpoint that was asked for, and its model. Raises RunError, CheckpointError, DoesNotFitError.

    A run that trains on retires checkpoints; one that goes while it is read is looked for again.
    """
    for _ in range(_TRIES):
        reference = choose_checkpoint(paths, step)
        try:
            return reference.step, load_model(config, reference, on_cpu=probe_lock(paths.lock) is not None)
        except torch.OutOfMemoryError:
            raise DoesNotFitError("the card's memory is full", "end what else uses it") from None
        except (WorkbenchError, OSError, SafetensorError):
            if reference.path.exists():
                raise
    raise CheckpointError(f"{paths.root.name}: its checkpoints go faster than they can be read", "pause the run first")


def load_model(config: RunConfig, reference: CheckpointRef, *, on_cpu: bool = False) -> LanguageModel:
    """The model with the checkpoint's weights, on the CPU or the first CUDA device, in evaluation mode."""
    is_cuda = config.device.kind == "cuda" and not on_cpu and torch.cuda.is_available()
    model = build_model(config.model, seed=0).to(torch.device("cuda" if is_cuda else "cpu"))
    if config.memory.weights == "bf16":
        store_in_bf16(model)
    ModelState(model).load(Part(tensors=load_model_tensors(reference.path)))
    return model.eval()


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, begins_text: bool) -> list[int]:
    """The prompt's ids, never none: text without a beginning begins where a document does. Raises DataError."""
    ids = [int(token) for token in tokenizer.encode(prompt)]
    if not ids or (begins_text and end_of_text(tokenizer) is not None):
        ids.insert(0, tokenizer.eot_id)
    return ids


def write_text(model: LanguageModel, tokenizer: Tokenizer, prompt_ids: list[int], request: SampleRequest) -> int:
    """Emit the continuation piece by piece, up to the end of text the model writes; returns the tokens in it."""
    stream = TextStream(tokenizer, prompt_ids)
    tokens = generate(
        model,
        prompt_ids,
        request.tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        seed=request.seed,
        stop_id=None if request.ignore_eot else end_of_text(tokenizer),
    )
    n_tokens = 0
    for token in tokens:
        n_tokens += 1
        emit_text(stream.push(token), n_tokens)
    emit_text(stream.flush(), n_tokens)
    return n_tokens


def emit_text(piece: str, n_tokens: int) -> None:
    """A piece of text, where there is any: half a character is not. `n_tokens` are written so far."""
    if piece:
        emit({"text": piece, "tokens": n_tokens})


def emit(value: dict[str, object]) -> None:
    """One line of JSON, flushed."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
