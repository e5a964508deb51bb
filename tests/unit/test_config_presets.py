"""Preset files: the shipped ones, how a name is found, and whatever else may lie in a file's place."""

from __future__ import annotations

import errno
import itertools
import os
import time
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.config import presets
from gpuworkbench.config.loader import build
from gpuworkbench.config.presets import configure, find_preset, iter_preset_paths, load_preset
from gpuworkbench.config.toml_io import MAX_CONFIG_BYTES, dump_toml, parse_toml, read_config_file
from gpuworkbench.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.toml"))
GOOD = b'schema_version = 1\n[model]\nfamily = "gpt2"\n[train]\nmax_steps = 1\n'


@pytest.fixture(autouse=True)
def user_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user preset directory of our own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    directory = tmp_path / "config" / "gpuworkbench" / "presets"
    directory.mkdir(parents=True)
    return directory


def refusal(name_or_path: str | Path) -> str:
    """The one line that a preset is refused with, within two seconds."""
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_preset(str(name_or_path))
    assert time.monotonic() - started < 2.0
    line = caught.value.line()
    assert line.isprintable()
    assert caught.value.hint
    return line


class TestShipped:
    """The directory is the registry."""

    def test_the_presets_are_there(self) -> None:
        assert [path.stem for path in iter_preset_paths()] == SHIPPED
        assert SHIPPED == [
            "gpt2_finetune",
            "quickstart",
            "rtx3050_gpt2_small",
            "rtx4060ti_1b",
            "rtx4090_gpt2_small",
            "rtx5080_1b",
            "rtx5080_1b_exact",
            "rtx5080_1b_tight",
            "rtx5080_gpt2_medium",
            "rtx5080_gpt2_small_baseline",
            "rtx5080_gpt2_small_hybrid",
            "rtx5080_gpt2_small_memory",
            "rtx5080_gpt2_xl",
        ]

    @pytest.mark.parametrize("name", SHIPPED)
    @pytest.mark.parametrize("cpu_twin", [False, True], ids=["itself", "twin"])
    def test_it_and_its_twin_survive_writing_and_reading(self, name: str, cpu_twin: bool) -> None:
        preset = load_preset(name)
        assert preset.has_cpu_twin
        config = configure(preset, cpu_twin=cpu_twin)
        assert config.is_cpu_twin is cpu_twin
        assert build(parse_toml(dump_toml(config), "run.toml"), "run.toml") == config
        assert preset.text == preset.path.read_bytes()

    @pytest.mark.parametrize("name", SHIPPED)
    def test_the_preset_itself_survives_writing_and_reading(self, name: str) -> None:
        config = load_preset(name).config
        assert build(parse_toml(dump_toml(config), "a"), "a") == config

    @pytest.mark.parametrize("name", SHIPPED)
    def test_a_twin_is_small_and_needs_no_network(self, name: str) -> None:
        twin = configure(load_preset(name), cpu_twin=True)
        assert twin.data.source == "stdlib"
        assert twin.data.tokenizer.startswith("bpe-")
        model = msgspec.structs.replace(twin.model, vocab_size=8192)
        assert model.n_params() < 10_000_000
        assert model.flops_per_token(twin.train_seq_len) * twin.tokens_per_step < 1e12  # a step takes seconds at most
        assert twin.train.max_steps is not None
        assert twin.train.max_steps <= 1000

    @pytest.mark.parametrize("name", [name for name in SHIPPED if name != "quickstart"])
    def test_card_presets_have_a_card(self, name: str) -> None:
        card = load_preset(name).config.card
        assert card is not None
        assert card.memory_gib > 0

    @pytest.mark.parametrize(
        ("name", "n_params"),
        [
            # Published: GPT-2 small 124,439,808, medium 354,823,168, XL 1,557,611,200 (Radford et al. 2019; the
            # checkpoints' tensors counted once with the tied head).
            ("rtx5080_gpt2_small_baseline", 124_439_808),
            ("rtx4090_gpt2_small", 124_439_808),
            ("rtx5080_gpt2_medium", 354_823_168),
            ("rtx5080_gpt2_xl", 1_557_611_200),
            # 50,304 x 1,536 + 1,024 x 1,536 + 32 x (12 x 1,536^2 + 13 x 1,536) + 2 x 1,536
            ("rtx5080_1b", 77_266_944 + 1_572_864 + 32 * 28_331_520 + 3_072),
        ],
    )
    def test_parameter_counts(self, name: str, n_params: int) -> None:
        model = load_preset(name).config.model
        assert msgspec.structs.replace(model, vocab_size=model.vocab_size or 50_257).n_params() == n_params

    @pytest.mark.parametrize("name", ["rtx5080_1b", "rtx5080_1b_tight", "rtx5080_1b_exact"])
    @pytest.mark.parametrize("cpu_twin", [False, True], ids=["itself", "twin"])
    def test_the_985m_presets_predict_with_their_copies_on_the_host(self, name: str, cpu_twin: bool) -> None:
        config = configure(load_preset(name), cpu_twin=cpu_twin)
        hybrid = config.hybrid
        assert (hybrid.enabled, hybrid.predictor, hybrid.state_device) == (True, "outer_nesterov", "host")
        first_jump = hybrid.warmup_steps + hybrid.full_steps
        assert config.train.max_steps is not None
        assert first_jump + hybrid.correct_steps < 60 <= config.train.max_steps  # all phases in 60 steps, if it stands

    def test_the_baseline_is_four_times_64_tokens(self) -> None:
        config = load_preset("rtx5080_gpt2_small_baseline").config
        assert (config.tokens_per_step, config.train.max_steps, config.optimizer.lr) == (4 * 64, 100, 6e-4)
        assert load_preset("rtx4090_gpt2_small").config.tokens_per_step == 524_288


class TestFinding:
    """By path, else by name: the user's directory, then the shipped one."""

    def test_a_users_preset_hides_a_shipped_one(self, user_dir: Path) -> None:
        (user_dir / "quickstart.toml").write_bytes(GOOD)
        (user_dir / "mine.toml").write_bytes(GOOD)
        assert find_preset("quickstart") == user_dir / "quickstart.toml"
        assert load_preset("mine").name == "mine"
        others = [name for name in SHIPPED if name != "quickstart"]
        assert [path.stem for path in iter_preset_paths()] == ["mine", "quickstart", *others]

    def test_a_path_may_be_a_symlink(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_bytes(GOOD)
        (tmp_path / "link.toml").symlink_to("a.toml")
        assert load_preset(str(tmp_path / "link.toml")).name == "link"

    def test_a_path_relative_to_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.toml").write_bytes(GOOD)
        assert load_preset("~/a.toml").path == tmp_path / "a.toml"

    def test_the_name_in_the_file_does_not_count(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_bytes(b'preset = "other"\n' + GOOD)
        assert load_preset(str(tmp_path / "a.toml")).config.preset == "a"

    def test_in_a_wheel_presets_lie_in_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(presets, "checkout_root", lambda: None)
        assert presets.preset_dirs()[-1] == Path(presets.__file__).parents[1] / "presets"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("quickstrat", "no preset is called 'quickstrat'; did you mean 'quickstart'?"),
            ("zzz", "`gpuworkbench presets` lists the names"),
            ("", "name is empty"),
            ("  ", "name is empty"),
            ("presets/quikstart.toml", "no such preset file; did you mean the preset 'quickstart'?"),
            ("../../etc/passwd.toml", "no such preset file"),
            ("~nobody-of-that-name/a", "there is no such user"),
            ("/tmp/a\0b.toml", "no such preset file"),
            ("a\x1b[31mb", r"'a\x1b[31mb'"),
            ("x" * 100_000, "no preset is called"),
            ("/" + "x" * 100_000, "no such preset file"),
            ("/dev/null", "not a regular file"),
            ("/dev/zero", "not a regular file"),
            ("/proc/self/mem", "cannot be read"),
            (".", "no preset is called '.'"),
            ("./", "not a regular file"),
            ("/etc/passwd", "not valid TOML"),
        ],
    )
    def test_names_that_lead_nowhere(self, name: str, words: str) -> None:
        assert words in refusal(name)


class TestHostileFiles:
    """Nothing blocks, nothing fills the memory, everything is one line."""

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo.toml")
        (tmp_path / "dir.toml").mkdir()
        (tmp_path / "loop.toml").symlink_to("loop.toml")
        (tmp_path / "gone.toml").symlink_to("nowhere")
        (tmp_path / "fifo-link.toml").symlink_to("fifo.toml")
        assert "not a regular file" in refusal(tmp_path / "fifo.toml")
        assert "not a regular file" in refusal(tmp_path / "fifo-link.toml")
        assert "not a regular file" in refusal(tmp_path / "dir.toml")
        assert "Too many levels of symbolic links" in refusal(tmp_path / "loop.toml")
        assert "No such file" in refusal(tmp_path / "gone.toml")

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.toml"
        path.write_bytes(GOOD)

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)  # root, which tests may run as, can read everything
        assert "Permission denied; name a .toml file that you may read" in refusal(path)

    def test_huge(self, tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
        assert f"larger than {MAX_CONFIG_BYTES} bytes" in refusal(path)

    def test_a_run_directory_is_read_without_following_symlinks(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_bytes(GOOD)
        (tmp_path / "link.toml").symlink_to("a.toml")
        assert read_config_file(tmp_path / "a.toml") == GOOD
        with pytest.raises(ConfigError, match="symbolic link"):
            read_config_file(tmp_path / "link.toml")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "schema_version is missing"),
            (b"\xef\xbb\xbf" + GOOD, "not valid TOML"),
            (b"\xff\xfe" + GOOD, "not UTF-8 at byte 0"),
            (GOOD + b"# \xc3\x28", f"not UTF-8 at byte {len(GOOD) + 2}"),
            (b"a = 1\na = 2\n", "not valid TOML: Cannot overwrite a value (at line 2, column 6)"),
            (b"[train]\n[train]\n", "not valid TOML"),
            (b"a = 'x\n", "not valid TOML"),
            (b"\0" * 1000, "not valid TOML"),
            (b"\x1b[2J = 1", "not valid TOML"),
            (GOOD + b"[optimizer]\nlr = nan", "optimizer.lr = nan is not a finite number"),
            (GOOD + b"[optimizer]\nlr = [1, inf]", "optimizer.lr = inf is not a finite number"),
            (GOOD + b"[data]\nseed = " + b"9" * 5000, "not valid TOML"),
            (GOOD + b"[data]\nseed = 0x" + b"f" * 5000, "data.seed is beyond 64 bits"),
            (GOOD + b"[data]\nseed = 1979-05-27", "data.seed = a date is not a whole number"),
            (b"a = " + b"[" * 50_000, "nested too deeply"),
            (b"a = " + b"{a = " * 50_000, "nested too deeply"),
            (b"a" + b".a" * 31 + b" = 1", "is nested too deeply"),
            (b"a" + b".a" * 100_000 + b" = 1", "a dotted name of more than 32 parts"),
            (b"[a" + b" . a" * 50_000 + b"]", "a dotted name of more than 32 parts"),
            (b'x = {"a"' + b'."\\"a"' * 30_000 + b" = 1}", "a dotted name of more than 32 parts"),
            (b"'a'" + b".'a'" * 50_000 + b" = 1", "a dotted name of more than 32 parts"),
            (b'"' + b'\\"' * 100_000, "not valid TOML"),
            (b'"' * 200_000, "not valid TOML"),
            (b"a" * 200_000, "not valid TOML"),
            (b"a." * 100_000, "a dotted name of more than 32 parts"),
            (b"".join(b"[s%d]\n" % n for n in range(20_000)), "s0 is not a section"),
            (b"".join(b"a.b.c.d.e.k%d = 1\n" % n for n in range(10_000)), "a is not a section"),
            (GOOD + b"[cpu_twin.train]\nmax_steps = 0\n", "[cpu_twin]: train.max_steps = 0 is not"),
            (GOOD + b"[cpu_twin.train]\nseq_len = 2000\n", "[cpu_twin]: train.seq_len: 2000 tokens are more"),
            (GOOD + b'[cpu_twin.device]\nkind = "cuda"\n', "a CPU twin computes on the CPU"),
        ],
        ids=map(str, itertools.count()),
    )
    def test_hostile_content(self, tmp_path: Path, content: bytes, words: str) -> None:
        path = tmp_path / "a.toml"
        path.write_bytes(content)
        line = refusal(path)
        assert words in line
        assert str(path) in line

    def test_quoted_parts_too_long_to_count_are_still_quick(self) -> None:
        part = '"' + "a" * 101 + '"'
        key = ".".join([part] * (MAX_CONFIG_BYTES // (len(part) + 1) - 8))
        started = time.monotonic()
        with pytest.raises(ConfigError):
            parse_toml(f"{key} = 1".encode(), "a.toml")
        assert time.monotonic() - started < 2.0

    def test_prose_with_dots_is_no_dotted_name(self) -> None:
        prose = "Well. " * 20 + "..." * 50 + " a.b.c " * 50
        assert parse_toml(f'description = "{prose}"'.encode(), "a") == {"description": prose}

    @pytest.mark.parametrize("name", ["a b", "ä", "-x", ".x", "x" * 65])
    def test_file_names_that_are_no_preset_names(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / f"{name}.toml"
        path.write_bytes(GOOD)
        assert "is no preset name" in refusal(path)

    def test_odd_files_in_the_users_directory_are_passed_over(self, user_dir: Path) -> None:
        os.mkfifo(user_dir / "fifo.toml")
        (user_dir / "notes.txt").write_text("x")
        (user_dir / "a b.toml").write_bytes(GOOD)
        assert "fifo" in [path.stem for path in iter_preset_paths()]
        assert "a b" not in [path.stem for path in iter_preset_paths()]
        assert "not a regular file" in refusal("fifo")
