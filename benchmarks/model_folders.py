"""Writing GPT-2 small as a Hugging Face folder and loading it again: seconds, and memory beyond the model's own.

    python -m benchmarks.model_folders [--rounds 3] [--layers 12]

Each round exports a checkpoint of random weights at the published size and fills a model from the folder, each in a
process of its own (warm file cache, one thread), and reads the peak of its resident memory. Stored as
benchmarks/results/model_folders.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._record import environment, summary, write_result

# Each prints {"seconds", "extra_bytes"}: the peak of resident memory above what was in use before the measured part.
HEAD = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def tell(seconds, before):
    print(json.dumps({"seconds": seconds, "extra_bytes": peak() - before}))
"""
EXPORT = """
from gpuworkbench.tools.export import ExportRequest, export
before, started = peak(), time.perf_counter()
export(ExportRequest(run=sys.argv[1], to=sys.argv[2], max_shard_bytes=int(sys.argv[3])))
tell(time.perf_counter() - started, before)
"""
LOAD = """
from gpuworkbench.training.pretrained import load_pretrained, make_model
from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import load_preset, request
from gpuworkbench.launch.pretrained import with_pretrained
asked = request(load_preset("gpt2_finetune"), sets=[Override("train.init_from", sys.argv[2], "--set")])
config = with_pretrained(asked, sys.argv[2])
model = make_model(config, torch.device("cpu"))
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()  # the model's own memory is in use before
before, started = peak(), time.perf_counter()
load_pretrained(model, config)
tell(time.perf_counter() - started, before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        run = make_run(root, arguments.layers)
        results: dict[str, Any] = {}
        for shard_bytes in (5 * 10**9, 10**8):
            folder = root / "folder"
            label = "one file" if shard_bytes > 10**9 else "files of 100 MB"
            measured: dict[str, list[dict[str, float]]] = {"export": [], "load": []}
            for _ in range(arguments.rounds):
                shutil.rmtree(folder, ignore_errors=True)
                measured["export"].append(measure(EXPORT, str(run), str(folder), str(shard_bytes)))
                measured["load"].append(measure(LOAD, str(run), str(folder)))
            results[label] = {what: described(rounds) for what, rounds in measured.items()}
    record = {
        "environment": environment("torch", "safetensors"),
        "layers": arguments.layers,
        "rounds": arguments.rounds,
        "results": results,
    }
    print(write_result("model_folders", record).read_text())


def described(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Seconds summarised, and the largest additional memory of any round."""
    return {
        **summary([each["seconds"] for each in rounds]),
        "extra_peak_bytes": max(int(each["extra_bytes"]) for each in rounds),
    }


def make_run(root: Path, n_layer: int) -> Path:
    """A run directory with one checkpoint of GPT-2 small's shape, random weights and a byte tokenizer."""
    code = """
import sys
from pathlib import Path
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.loader import Override
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.models import build_model
from gpuworkbench.runs.create import create_run
from gpuworkbench.training.checkpoint import Checkpointer
from gpuworkbench.training.state import ModelState, Progress
sets = [Override("model.vocab_size", 50257, ""), Override("model.n_layer", int(sys.argv[2]), "")]
config = configure(load_preset("rtx5080_gpt2_small_baseline"), sets=sets)
paths = create_run(Path(sys.argv[1]), "small", b"", dump_toml(config))
paths.tokenizer.mkdir()
ByteTokenizer().save(paths.tokenizer)
parts = {"model": ModelState(build_model(config.model, seed=0)), "progress": Progress()}
writer = EventWriter(paths.events, attempt=1)
Checkpointer(paths, parts, writer, keep_last=2, keep_best=False).save(1, best_step=None, wait=True)
"""
    subprocess.run([sys.executable, "-c", code, str(root / "runs"), str(n_layer)], env=environ(), check=True)
    return root / "runs" / "small"


def measure(code: str, *arguments: str) -> dict[str, float]:
    """What a fresh process prints at the end of `code`."""
    command = [sys.executable, "-c", HEAD + code, *arguments]
    output = subprocess.run(command, env=environ(), capture_output=True, text=True, check=True).stdout
    return msgspec.json.decode(output.splitlines()[-1], type=dict[str, float])


def environ() -> dict[str, str]:
    """Importing this checkout."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "CUDA_VISIBLE_DEVICES": ""}


if __name__ == "__main__":
    main()
