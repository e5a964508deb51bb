"""Presets of one's own: whole, valid, read back as what was meant, and never over something unasked."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.config.own_presets import check_preset_name, hidden_by, own_preset, save_own_preset
from gpuworkbench.config.presets import Preset, configure, find_preset, iter_preset_paths, load_preset, user_preset_dir
from gpuworkbench.errors import ConfigError
from gpuworkbench.io.files import Files
from gpuworkbench.tui.form.draft import Draft, check, saved_overrides


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def saved(draft: Draft, name: str = "mine", description: str | None = None) -> Preset:
    save_own_preset(name, own_preset(draft.preset, *saved_overrides(draft), description))
    return load_preset(name)


@pytest.mark.parametrize("path", list(iter_preset_paths()), ids=lambda path: path.stem)
def test_an_unchanged_preset_is_saved_as_it_is(path: Path) -> None:
    preset = load_preset(str(path))
    mine = saved(Draft(preset))
    assert replace_name(mine) == replace_name(preset)
    assert mine.path == user_preset_dir() / "mine.toml"
    if preset.has_cpu_twin:
        assert configure(mine, cpu_twin=True).model == configure(preset, cpu_twin=True).model


def replace_name(preset: Preset) -> dict[str, object]:
    return {**msgspec.to_builtins(preset.config), "preset": ""}


def test_changes_of_both_sizes_are_saved() -> None:
    preset = load_preset("rtx5080_1b")
    draft = Draft(preset).changed("optimizer.lr", "1e-4").changed("train.seq_len", "512").changed("sample.prompt", "12")
    draft = replace(draft, is_twin=True).changed("train.max_steps", "9").changed("sample.prompt", '"a\\nb"')
    mine = saved(draft, description="what it is for")
    assert mine.config.description == "what it is for"
    assert mine.config.card == preset.config.card
    wanted = check(replace(draft, is_twin=False), {}).config
    assert wanted is not None
    expected = {**msgspec.to_builtins(wanted), "preset": "mine", "description": "what it is for"}
    assert {**msgspec.to_builtins(mine.config), "cpu_twin": {}} == {**expected, "cpu_twin": {}}
    twin = configure(mine, cpu_twin=True)
    assert (twin.train.max_steps, twin.sample.prompt) == (9, "a\nb")
    assert twin.train.seq_len == preset.config.cpu_twin["train"]["seq_len"]


def test_a_key_taken_out_is_taken_out() -> None:
    preset = load_preset("quickstart")
    draft = Draft(preset).changed("train.max_epochs", "2").changed("train.max_steps", "")
    assert saved(draft).config.train.max_steps is None


def test_what_a_file_cannot_say_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.toml"
    path.write_text(load_preset("quickstart").text.decode().replace("[train]", "[train]\nseq_len = 64"))
    draft = Draft(load_preset(str(path)), is_twin=True).changed("train.seq_len", "")
    with pytest.raises(ConfigError, match="cannot be left empty in its CPU twin"):
        saved(draft)
    assert not user_preset_dir().exists()


@pytest.mark.parametrize("name", ["", " ", "a b", "../x", "-x", ".x", "a/b", "x" * 65, "é", "x.toml", "a\x1b[31m"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        save_own_preset(name, b"")
    assert "\x1b" not in caught.value.line()
    assert not user_preset_dir().exists()


def test_nothing_is_replaced_unasked() -> None:
    preset = load_preset("quickstart")
    assert "came with the program" in hidden_by("quickstart")
    assert hidden_by("mine") == ""
    saved(Draft(preset))
    assert hidden_by("mine") == "your preset mine is replaced"
    with pytest.raises(ConfigError, match="you have a preset mine already"):
        saved(Draft(preset).changed("train.max_steps", "3"))
    assert load_preset("mine").config.train.max_steps == preset.config.train.max_steps
    text = own_preset(preset, *saved_overrides(Draft(preset).changed("train.max_steps", "3")))
    save_own_preset("mine", text, overwrite=True)
    assert load_preset("mine").config.train.max_steps == 3
    assert find_preset(check_preset_name("mine")).parent == user_preset_dir()


def test_a_full_disk_leaves_nothing_half_made() -> None:
    class FullDisk(Files):
        def write(self, fd: int, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    preset = load_preset("quickstart")
    text = own_preset(preset, [], [])
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        save_own_preset("mine", text, files=FullDisk())
    assert list(user_preset_dir().iterdir()) == []


def test_invalid_changes_are_refused() -> None:
    preset = load_preset("quickstart")
    bad = check(Draft(preset).changed("model.n_head", "7"), {}).overrides
    with pytest.raises(ConfigError, match="7 heads do not divide"):
        own_preset(preset, bad, [])
