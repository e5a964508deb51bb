"""`gpuworkbench sample`: text from a checkpoint, streamed by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.local_run import LocalRuns
from tests.fixtures.processes import no_orphans
from tests.fixtures.tiny_run import Workspace


@pytest.fixture(scope="module")
def run(local: LocalRuns) -> RunPaths:
    """Checkpoints of steps 7, 10 (the best) and 14."""
    return local.trained("sampled", {"train.max_steps": 14})


def sample(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    with no_orphans(workspace.root):
        return workspace.call("sample", "sampled", "--tokens", "12", *arguments)


def test_greedy_text_is_the_same_every_time(local: LocalRuns, run: RunPaths) -> None:
    arguments = ("--prompt", "The 5", "--temperature", "0")
    plain = sample(local.workspace, *arguments)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout.startswith("The 5")
    again = sample(local.workspace, *arguments, "--seed", "7", "--json")
    answer = msgspec.json.decode(again.stdout)
    assert answer["prompt"] + answer["text"] == plain.stdout.removesuffix("\n")
    assert (answer["run_id"], answer["step"]) == ("sampled", 14)


def test_an_older_checkpoint_is_used_when_named_or_when_the_newest_is_damaged(local: LocalRuns, run: RunPaths) -> None:
    named = sample(local.workspace, "--checkpoint", "10", "--json")
    assert msgspec.json.decode(named.stdout)["step"] == 10
    missing = sample(local.workspace, "--checkpoint", "9")
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert "no checkpoint of step 9" in line
    weights = run.checkpoint(14) / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        fallen_back = sample(local.workspace, "--json")
    finally:
        weights.write_bytes(original)
    assert fallen_back.returncode == 0
    assert msgspec.json.decode(fallen_back.stdout)["step"] == 10
    (line,) = fallen_back.stderr.splitlines()
    assert "step-00000014/model.safetensors is damaged" in line


def test_a_prompt_that_is_no_text_is_one_line(local: LocalRuns, run: RunPaths) -> None:
    workspace = local.workspace
    command = [sys.executable, "-m", "gpuworkbench", "sample", "sampled", "--prompt", b"\xff\xfe"]
    result = subprocess.run(
        command,  # type: ignore[arg-type]
        cwd=workspace.root,
        env={**workspace.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert b"--prompt is not UTF-8" in result.stderr


def test_nothing_is_imported_from_where_one_happens_to_be(local: LocalRuns, run: RunPaths) -> None:
    planted = local.workspace.root / "torch.py"
    planted.write_text("raise SystemExit('owned')\n")
    try:
        assert sample(local.workspace).returncode == 0
    finally:
        os.unlink(planted)


def test_a_question_is_asked_as_in_a_conversation(local: LocalRuns, run: RunPaths) -> None:
    asked = sample(local.workspace, "--chat", "2 + 2?", "--system", "Be brief.", "--ignore-eot", "--json")
    answer = msgspec.json.decode(asked.stdout)
    assert answer["prompt"] == "System: Be brief.\n\nUser: 2 + 2?\n\nAssistant:"
    assert (answer["tokens"], answer["finish_reason"]) == (12, "length")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--chat", "a", "--prompt", "b"), "--chat and --prompt exclude each other"),
        (("--system", "a"), "--system belongs to --chat"),
        (("--chat",), "--chat: expected one argument"),
    ],
)
def test_half_a_conversation_is_one_line(arguments: tuple[str, ...], reason: str, local: LocalRuns) -> None:
    result = sample(local.workspace, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert reason in line
