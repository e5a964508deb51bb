"""The command line: what is refused and how, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuworkbench import cli
from gpuworkbench.commands import progress
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.gpu.card import Card
from gpuworkbench.units import GIB

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("surroundings")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line on stderr that a command line ends with."""
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpuworkbench: ")
    assert err.count("\n") == 1
    assert "usage:" not in err
    return err.removeprefix("gpuworkbench: ").rstrip("\n")


def started(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """`python -m gpuworkbench ARGUMENTS`, with pipes."""
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "gpuworkbench", *arguments]
    return subprocess.Popen(command, env=environ, **{**defaults, **options})  # type: ignore[call-overload, no-any-return]


class TestUsage:
    """One line, exit 2, and what was probably meant."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "the app needs a terminal; add --headless, or --detach to start a run and return"),
            (["export", "RUN", "--to", "x", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
            (["presest"], "there is no command 'presest'; did you mean 'presets'?"),
            (["zebra"], "there is no command 'zebra'; `gpuworkbench --help` lists them"),
            ([""], "there is no command ''"),
            (["it's"], 'there is no command "it\'s"'),
            (["\x1b[31m"], "there is no command"),
            (["x" * 100_000], "there is no command"),
            (["--hedless"], "there is no flag '--hedless'; did you mean '--headless'?"),
            (["--head"], "there is no flag '--head'; did you mean '--headless'?"),
            (["--zzzzzzzzz=1"], "there is no flag '--zzzzzzzzz'; `gpuworkbench --help` lists them"),
            (["-x"], "there is no flag '-x'"),
            (["sample", "r", "--promt", "y"], "there is no flag '--promt' of `sample`; did you mean '--prompt'?"),
            (["runs", "--steps", "3"], "--steps is not for `runs`"),
            (["--steps", "3", "runs"], "--steps is not for `runs`"),
            (["--set", "a=1", "doctor"], "--set is not for `doctor`"),
            (["--headless", "presets"], "--headless is not for `presets`"),
            (["--preset", "quickstart", "attach", "x"], "--preset is not for `attach`"),
            (["attach"], "the following arguments are required: RUN; `gpuworkbench attach --help`"),
            (["attach", "a", "b"], "'b' is one word too many"),
            (["--steps"], "argument --steps: expected one argument"),
            (["sample", "r", "--prompt", "-x"], "a value that begins with a dash is written --flag=-value"),
            (["--steps", "0"], "argument --steps: give a whole number from 1 on"),
            (["--steps", "-1"], "argument --steps"),
            (["--steps", "x"], "argument --steps: 'x' is not a whole number"),
            (["--steps", "1.5"], "'1.5' is not a whole number"),
            (["--steps", "²"], "'²' is not a whole number"),
            (["--steps", "9" * 5000], "is not a whole number"),
            (["--steps", ""], "'' is not a whole number"),
            (["sample", "r", "--temperature", "nan"], "give a number from 0 to 100"),
            (["sample", "r", "--temperature", "hot"], "'hot' is not a number"),
            (["sample", "r", "--top-k", "-1"], "argument --top-k"),
            (["sample", "r", "--prompt", "\udcff"], "--prompt is not UTF-8"),
            (["--preset", "a", "--resume", "b"], "--preset starts a run and --resume goes on with one"),
            (["--preset", "quickstart"], "the app needs a terminal; add --headless, or --detach"),
            (["--json"], "--json needs --headless or a command"),
            (["--set", "a.b=1"], "--set needs a run; try `gpuworkbench --headless --preset quickstart`"),
            (["--cpu-twin"], "--cpu-twin needs a run"),
            (["--detach"], "--detach needs a run"),
            (["--headless"], "--headless needs a run; try `gpuworkbench --headless --preset quickstart`"),
            (["--headless", "--preset", "quickstart", "--fork"], "--fork needs a run to fork from"),
            (["--headless", "--resume", "a", "--cpu-twin"], "--cpu-twin is chosen when a run starts"),
            (["--headless", "--resume", "a", "--force"], "--force is for starting a run"),
            (["--headless", "--resume", "a", "--run-id", "b"], "--run-id names a new run"),
            (["--headless", "--resume", "a"], "there is no run 'a' in "),
            (["--headless", "--resume", ""], "does not name a run"),
            (["attach", "a\0b"], "does not name a run"),
            (["attach", "../.."], "is not a run directory"),
            (["--runs-dir", "a\0b", "runs"], "holds a NUL character"),
            (["--headless", "--preset", "quikstart"], "no preset is called 'quikstart'; did you mean 'quickstart'?"),
            (["--headless", "--preset", "quickstart", "--set", "trian.seed=1"], "did you mean 'train.seed'?"),
            (["--headless", "--preset", "quickstart", "--set", "train.seed=-1"], "--set: train.seed = -1 is not"),
            (
                ["--headless", "--preset", "quickstart", "--steps", "9999999999"],
                "--steps: train.max_steps = 9999999999",
            ),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_refusals(self, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
        line = refusal(capsys, *arguments)
        assert words in line
        assert len(line) < 1700

    @pytest.mark.parametrize(
        "run_id",
        ["", "..", "a/b", "../a", ".a", "-a", "a b", "a\0b", "a\x1b[31m", "\u202ea", "a\nb", "x" * 300, "~", "*"],
    )
    def test_hostile_run_ids(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, run_id: str) -> None:
        assert "--run-id" in refusal(capsys, "--headless", "--preset", "quickstart", f"--run-id={run_id}")
        assert not (tmp_path / "runs").exists()

    def test_a_taken_run_id_is_refused_before_anything_is_prepared(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "runs" / "a").mkdir(parents=True)
        line = refusal(capsys, "--headless", "--preset", "quickstart", "--run-id", "a")
        assert line == "run a already exists; go on with --resume a, or choose another --run-id"
        assert not (tmp_path / "cache").exists()

    def test_flags_before_and_after_the_command(self) -> None:
        for arguments in (["--runs-dir", "/x", "--json", "runs"], ["runs", "--runs-dir", "/x", "--json"]):
            parsed = cli.parse(arguments)
            assert (parsed.command, parsed.runs_dir, parsed.json) == ("runs", "/x", True)
        parsed = cli.parse(["--runs-dir", "/x", "runs", "--runs-dir", "/y"])
        assert parsed.runs_dir == "/y"
        parsed = cli.parse(["runs"])
        assert (parsed.runs_dir, parsed.json) == (None, False)

    def test_sets_repeat(self) -> None:
        parsed = cli.parse(["--headless", "--preset", "a", "--set", "a.b=1", "--set=c.d=-2"])
        assert parsed.sets == ["a.b=1", "c.d=-2"]

    def test_every_command_leads_to_a_function_and_has_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        for name, command in cli.COMMANDS.items():
            assert callable(cli.registry.load(command.handler))
            assert cli.main([name, "--help"]) == 0
            assert command.help in capsys.readouterr().out

    def test_help_and_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--help"]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in cli.COMMANDS)
        flags = ["--set", "--steps", "--runs-dir", "--run-id", "--json", "--detach", "--force", "--fork", "--cpu-twin"]
        assert all(flag in out for flag in flags)
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"gpuworkbench {cli.__version__}\n"

    def test_other_platforms_get_one_line(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise UsageError("native Windows is not supported", "run gpuworkbench inside WSL2 (wsl --install)")

        monkeypatch.setattr("gpuworkbench.gpu.host.require_supported_platform", refuse)
        assert "WSL2" in refusal(capsys, "presets")


class TestDoesNotFit:
    """Exit 4 with one line; --force where there is a card."""

    def test_no_card(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        line = refusal(capsys, "--headless", "--preset", "rtx5080_1b", code=4)
        assert line == (
            "preset rtx5080_1b needs a CUDA card with compute capability 8.0 and 12.5 GiB; here: no CUDA card; "
            "on the CPU: gpuworkbench --headless --preset rtx5080_1b --cpu-twin"
        )
        assert refusal(capsys, "--headless", "--preset", "rtx5080_1b", "--force", code=4) == line
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "cache").exists()

    def test_the_command_names_the_preset_as_it_was_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        path = str(REPOSITORY / "presets" / "rtx5080_1b.toml")
        assert refusal(capsys, "--headless", "--preset", path, code=4).endswith(f"--preset {path} --cpu-twin")

    def test_without_a_twin_the_full_size_is_named(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        card = '[card]\nname = "x"\ncompute_capability = "8.0"\nmemory_gib = 1\n'
        path.write_text(f"schema_version = 1\n[model]\n[train]\nmax_steps = 1\n{card}")
        assert refusal(capsys, "--headless", "--preset", str(path), code=4).endswith("--set device.kind=cpu")

    def test_a_card_too_small_may_be_forced(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = Card(index=0, uuid="GPU-s", name="small", compute_capability=(7, 5), memory_total_bytes=8 * GIB)
        monkeypatch.setattr("gpuworkbench.launch.create.probe_cards", lambda: [small])
        line = refusal(capsys, "--headless", "--preset", "rtx5080_1b", code=4)
        assert "here: small with compute capability 7.5 and 8.0 GiB; here all the same: add --force; on the CPU" in line

        chosen = []

        class ReachedError(UsageError):
            """Stands for all that comes after the choice."""

        def prepare(config: object, **_: object) -> None:
            raise ReachedError("data")

        def select(*arguments: object, **options: object) -> object:
            chosen.append(original(*arguments, **options))  # type: ignore[arg-type]
            return chosen[-1]

        from gpuworkbench.gpu.fit import select_device as original

        monkeypatch.setattr("gpuworkbench.launch.create.select_device", select)
        monkeypatch.setattr("gpuworkbench.launch.create.prepare", prepare)
        refusal(capsys, "--headless", "--preset", "rtx5080_1b", "--force")
        assert [(choice.kind, choice.uuid) for choice in chosen] == [("cuda", "GPU-s")]


class TestEnds:
    """Readers that go away, streams that are full or closed, and Ctrl-C."""

    def test_a_reader_that_goes_away(self) -> None:
        for arguments in (["presets"], ["presets", "--json"], ["--help"]):
            process = started(*arguments)
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
            process.stderr.close()

    def test_a_full_disk_behind_stdout(self) -> None:
        with open("/dev/full", "w") as full, started("presets", stdout=full) as process:
            assert process.stderr is not None
            assert process.stderr.read() == "gpuworkbench: No space left on device\n"
        assert process.returncode == 1

    def test_closed_streams(self) -> None:
        command = f"{sys.executable} -m gpuworkbench"
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        for arguments, code in (("presets", 0), ("presest", 2)):
            for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
                line = f"{command} {arguments} {closed}"
                assert (
                    subprocess.run(
                        ["sh", "-c", line],
                        env=environ,
                        stderr=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        check=False,
                    ).returncode
                    == code
                )

    def test_an_encoding_that_lacks_characters(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        monkeypatch.setenv("GPUWORKBENCH_RUNS_DIR", str(tmp_path / "ä\x1b"))
        with started("runs") as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert r"\xe4\u241b yet" in out
        assert err == ""

    def test_ctrl_c(self, tmp_path: Path) -> None:
        """While a command waits; 130 and no traceback."""
        fifo = tmp_path / "ready"
        os.mkfifo(fifo)
        code = (
            "import sys, time\nfrom gpuworkbench import cli\n"
            f"def handler(_):\n    open({str(fifo)!r}, 'w').close()\n    time.sleep(60)\n"
            "cli.registry.load = lambda target: handler\nsys.exit(cli.main(['presets']))"
        )
        with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE) as process:
            fifo.read_bytes()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == ExitCode.SIGINT
            assert process.stderr is not None
            assert process.stderr.read() == b""

    def test_an_unexpected_system_error_is_one_line(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> int:
            raise OSError(5, "Input/output error", "a\x1bb")

        monkeypatch.setattr(cli.registry, "load", lambda _: fail)
        monkeypatch.setattr(cli, "_give_up", lambda _: None)
        assert refusal(capsys, "presets", code=1) == "Input/output error: a␛b"

    def test_progress_of_data_is_a_line_a_stage(self, capsys: pytest.CaptureFixture[str]) -> None:
        shown = progress.StageProgress()
        for fraction in (0.0, 0.1, 0.2):
            shown("tokens\x1b", fraction)
        shown("done", None)
        progress.StageProgress("weights")("hashing", None)
        assert capsys.readouterr().err == "data: tokens␛ 0%\ndata: done\nweights: hashing\n"
