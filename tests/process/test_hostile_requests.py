"""Bad requests through the real program: the exit code of the design, one line, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuworkbench.text import safe_text
from tests.fixtures.tiny_run import PRESET, Workspace

LIMIT_S = 20.0  # "a few seconds", on a machine that runs other things too
NASTY = "a\x1b]52;c;aGk=\x07\x1b[2J\u202eb"
Arrange = Callable[[Workspace], list[str]]


def request(*arguments: str) -> Arrange:
    """A request that needs no arrangement; {root} is the workspace."""
    return lambda workspace: [argument.replace("{root}", str(workspace.root)) for argument in arguments]


def train(*arguments: str) -> Arrange:
    """The workspace's preset, headless."""
    return request("--headless", "--preset", "{root}/tiny.toml", *arguments)


def with_data(content: bytes, *arguments: str, name: str = "bad.txt") -> Arrange:
    """Training on a file of this content."""

    def arrange(workspace: Workspace) -> list[str]:
        path = workspace.root / name
        path.write_bytes(content)
        return train("--set", f"data.source={path}", *arguments)(workspace)

    return arrange


def with_preset(text: bytes | str, name: str = "bad.toml") -> Arrange:
    """Training with a preset of this text."""

    def arrange(workspace: Workspace) -> list[str]:
        path = workspace.root / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["--headless", "--preset", str(path)]

    return arrange


def data_fifo(workspace: Workspace) -> list[str]:
    os.mkfifo(workspace.root / "fifo")
    return train("--set", "data.source={root}/fifo")(workspace)


def preset_fifo(workspace: Workspace) -> list[str]:
    os.mkfifo(workspace.root / "fifo.toml")
    return request("--headless", "--preset", "{root}/fifo.toml")(workspace)


def data_loop(workspace: Workspace) -> list[str]:
    (workspace.root / "loop").symlink_to("loop")
    return train("--set", "data.source={root}/loop")(workspace)


def nasty_data(workspace: Workspace) -> list[str]:
    (workspace.root / NASTY).write_bytes(b"")
    return train("--set", f"data.source={workspace.root}/{NASTY}")(workspace)


def nasty_preset(workspace: Workspace) -> list[str]:
    (workspace.root / f"{NASTY}.toml").write_text("x")
    return request("--headless", "--preset", f"{{root}}/{NASTY}.toml")(workspace)


def runs_dir_is_a_file(workspace: Workspace) -> list[str]:
    (workspace.root / "file").write_text("")
    return train("--runs-dir", "{root}/file")(workspace)


def runs_dir_in_a_file(workspace: Workspace) -> list[str]:
    (workspace.root / "file").write_text("")
    return train("--runs-dir", "{root}/file/runs")(workspace)


def run_id_taken(workspace: Workspace) -> list[str]:
    (workspace.root / "elsewhere" / "taken").mkdir(parents=True)
    return train("--runs-dir", "{root}/elsewhere", "--run-id", "taken")(workspace)


def resume_a_fifo(workspace: Workspace) -> list[str]:
    (workspace.root / "odd").mkdir()
    os.mkfifo(workspace.root / "odd" / "run.toml")
    return request("--headless", "--resume", "{root}/odd")(workspace)


def resume_nonsense(workspace: Workspace) -> list[str]:
    (workspace.root / "odd").mkdir()
    (workspace.root / "odd" / "run.toml").write_text("a" + ".a" * 60_000)
    return request("--headless", "--resume", "{root}/odd")(workspace)


CASES: dict[str, tuple[int, str, Arrange]] = {
    "no such command": (2, "there is no command", request("trian")),
    "nasty command": (2, "there is no command", request(NASTY)),
    "no such preset": (2, "no preset is called", request("--headless", "--preset", "zzz")),
    "preset with ..": (2, "no such preset file", request("--headless", "--preset", "../../../etc/none.toml")),
    "preset is a folder": (2, "not a regular file", request("--headless", "--preset", "{root}/")),
    "preset is a device": (2, "not a regular file", request("--headless", "--preset", "/dev/zero")),
    "preset is a FIFO": (2, "not a regular file", preset_fifo),
    "preset of bytes": (2, "not UTF-8 at byte 0", with_preset(b"\xff\xfe\x00")),
    "preset of NUL": (2, "not valid TOML", with_preset(b"\0" * 4096)),
    "preset empty": (2, "schema_version is missing", with_preset("")),
    "preset of ANSI": (2, "not valid TOML", with_preset(f'[model]\nfamily = "{NASTY}"')),
    "preset deeply nested": (2, "nested too deeply", with_preset("a = " + "[" * 100_000)),
    "preset dotted": (2, "a dotted name", with_preset("a" + ".a" * 100_000 + " = 1")),
    "preset with a nasty name": (2, "is no preset name", nasty_preset),
    "preset too large": (2, "larger than", with_preset("#" * 2_000_000)),
    "preset of nan": (2, "is not a finite number", with_preset(PRESET.format(source="stdlib") + "[hybrid]\nx = nan")),
    "unknown key": (2, "did you mean 'train.max_steps'?", train("--set", "train.max_step=3")),
    "nasty key": (2, "is not a key", train("--set", f"train.{NASTY}=3")),
    "nasty value": (2, "train.mode = ", train("--set", f"train.mode={NASTY}")),
    "wrong type": (2, "is not a whole number", train("--set", "train.seed=x")),
    "infinite": (2, "is not a finite number", train("--set", "optimizer.lr=inf")),
    "no steps": (2, "give a whole number from 1 on", train("--steps", "0")),
    "heads": (2, "do not divide", train("--set", "model.n_head=3")),
    "no data": (2, "data.source", train("--set", "data.source={root}/nowhere.txt")),
    "data with ..": (2, "data.source", train("--set", "data.source=../../../nowhere")),
    "data with NUL": (2, "data.source", train("--set", 'data.source="a\\u0000b"')),
    "data is a FIFO": (2, "named pipe", data_fifo),
    "data is a device": (2, "a device", train("--set", "data.source=/dev/zero")),
    "data is a loop": (2, "symbolic links", data_loop),
    "data empty": (2, "empty", with_data(b"")),
    "data not UTF-8": (2, "UTF-8", with_data(b"The small\n" * 900 + b"\xff" + b"steps\n" * 900)),
    "data binary": (2, "NUL", with_data(b"\0\1\2" * 5000)),
    "data too short": (2, "tokens", with_data(b"ab\n\ncd\n\nef\n")),
    "data with a nasty name": (2, "empty", nasty_data),
    "shard of nonsense": (2, "shard", with_data(b"\0" * 4096, name="x.bin")),
    "no such tokenizer": (2, "data.tokenizer", train("--set", "data.tokenizer=zzz")),
    "vocabulary too small": (2, "model.vocab_size is 64", train("--set", "model.vocab_size=64")),
    "run id with ..": (2, "--run-id", train("--run-id", "../x")),
    "run id with a slash": (2, "--run-id", train("--run-id", "a/b")),
    "nasty run id": (2, "--run-id", train("--run-id", NASTY)),
    "run id taken": (2, "already exists", run_id_taken),
    "runs dir is a file": (2, "cannot be made", runs_dir_is_a_file),
    "runs dir in a file": (2, "cannot be made", runs_dir_in_a_file),
    "runs dir unwritable": (2, "cannot be made", train("--runs-dir", "/proc/nowhere")),
    "resume nothing": (2, "there is no run", request("--headless", "--resume", "nothing")),
    "resume a nasty name": (2, "there is no run", request("--headless", "--resume", NASTY)),
    "resume a path with ..": (2, "is not a run directory", request("--headless", "--resume", "../..")),
    "resume a FIFO": (2, "is not a run directory", resume_a_fifo),
    "resume nonsense": (2, "a dotted name", resume_nonsense),
    "attach to nothing": (2, "there is no run", request("attach", "nothing")),
    "stop nothing": (2, "there is no run", request("stop", "nothing")),
    "sample nothing": (2, "there is no run", request("sample", "nothing")),
    "no card": (4, "here: no CUDA card", request("--headless", "--preset", "rtx5080_1b")),
    "no card for XL": (4, "--cpu-twin", request("--headless", "--preset", "rtx5080_gpt2_xl", "--force")),
    "no card, detached": (4, "--cpu-twin", request("--detach", "--preset", "rtx4090_gpt2_small")),
}


def assert_harmless(result: subprocess.CompletedProcess[str]) -> None:
    """Nothing on either stream acts on a terminal, and nothing is a traceback."""
    for text in (result.stdout, result.stderr):
        assert safe_text(text, multiline=True) == text
        assert "Traceback" not in text


def leftovers(directory: Path) -> list[str]:
    """What lies in a runs directory, hidden files too."""
    return sorted(os.listdir(directory)) if directory.is_dir() else []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all requests."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_one_line_and_leaves_nothing(tmp_path: Path, shared: Path, name: str) -> None:
    code, words, arrange = CASES[name]
    workspace = Workspace(tmp_path)
    workspace.environ["GPUWORKBENCH_CACHE_DIR"] = str(shared)
    arguments = arrange(workspace)
    before = leftovers(workspace.root / "elsewhere")

    started = time.monotonic()
    result = workspace.call(*arguments, timeout_s=LIMIT_S)
    assert time.monotonic() - started < LIMIT_S

    assert result.returncode == code, result.stderr
    assert_harmless(result)
    assert result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert all(text.startswith("data: ") for text in progress)
    assert line.startswith("gpuworkbench: ")
    assert words in line
    assert leftovers(workspace.runs) == []
    assert leftovers(workspace.root / "elsewhere") == before


@contextmanager
def broken_after_creation(workspace: Workspace) -> Iterator[None]:
    """Make the trainer refuse what the launcher accepted: it sees other data than the run was made with."""
    site = workspace.root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'gpuworkbench.training' in sys.orig_argv:\n"
        f"    open({str(workspace.corpus)!r}, 'w').write('other text\\n\\n' * 999)\n"
    )
    before = workspace.environ["PYTHONPATH"]
    workspace.environ["PYTHONPATH"] = os.pathsep.join([str(site), before])
    yield
    workspace.environ["PYTHONPATH"] = before


@pytest.mark.parametrize("how", ["--headless", "--detach"])
def test_a_refusal_by_the_trainer_leaves_nothing_either(tmp_path: Path, how: str) -> None:
    workspace = Workspace(tmp_path)
    with broken_after_creation(workspace):
        result = workspace.call(how, "--preset", str(workspace.preset), "--run-id", "refused")
    assert result.returncode == 2, result.stderr
    assert_harmless(result)
    assert "gives other tokens than this run was made with" in result.stdout + result.stderr
    assert leftovers(workspace.runs) == []


def test_a_refused_run_id_does_not_touch_the_run_that_has_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.train("mine", "--steps", "2").returncode == 0
    files = {path: path.stat().st_mtime_ns for path in workspace.runs.rglob("*")}
    result = workspace.train("mine", "--steps", "2")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "gpuworkbench: run mine already exists; go on with --resume mine, or choose another --run-id"
    ]
    assert {path: path.stat().st_mtime_ns for path in workspace.runs.rglob("*")} == files


def test_odd_words_in_the_data_and_the_prompt_reach_the_terminal_as_glyphs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.corpus.write_text("".join(f"The {i}\x1b[31m \x9b2J \u202e steps\n\n" for i in range(400)))
    prompt = 'sample.prompt="\\u001b]0;title\\u0007\\u202e"'
    trained = workspace.train("odd", "--steps", "3", "--set", prompt, "--set", "sample.interval_steps=1")
    assert trained.returncode == 0, trained.stderr
    assert_harmless(trained)
    sampled = workspace.call("sample", "odd", "--tokens", "40", "--temperature", "5", "--prompt", NASTY)
    assert sampled.returncode == 0, sampled.stderr
    assert_harmless(sampled)
    listed = workspace.call("runs")
    assert_harmless(listed)
