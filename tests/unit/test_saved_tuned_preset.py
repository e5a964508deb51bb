"""Saving a tuned preset: whole, valid, in the user's directory, never over another unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuworkbench.config.loader import Override, parse_set
from gpuworkbench.config.own_presets import own_preset, own_preset_path, save_own_preset
from gpuworkbench.config.presets import Preset, configure, iter_preset_paths, load_preset, user_preset_dir
from gpuworkbench.errors import ConfigError

LR = Override("optimizer.lr", 0.0123, "bench lr")


def save_tuned_preset(
    name: str, preset: Preset, changes: list[Override], description: str, *, is_twin: bool, overwrite: bool
) -> Path:
    """As `bench lr --save-preset` saves it."""
    of_full, of_twin = ([], changes) if is_twin else (changes, [])
    return save_own_preset(name, own_preset(preset, of_full, of_twin, description), overwrite=overwrite)


SHIPPED = [path.stem for path in iter_preset_paths()]


@pytest.fixture(autouse=True)
def own_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize("is_twin", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_preset_can_be_saved_tuned_and_only_what_was_tuned_differs(name: str, is_twin: bool) -> None:
    before = load_preset(name)
    save_tuned_preset("mine", before, [LR], "tuned", is_twin=is_twin, overwrite=False)
    after = load_preset("mine")
    assert after.config.description == "tuned"
    for twin in {False, before.has_cpu_twin}:
        old, new = configure(before, cpu_twin=twin), configure(after, cpu_twin=twin)
        inherits = twin and not is_twin and "lr" not in before.config.cpu_twin.get("optimizer", {})
        assert new.optimizer.lr == (0.0123 if twin == is_twin or inherits else old.optimizer.lr)
        assert (new.model, new.data, new.train, new.schedule, new.card) == (
            old.model, old.data, old.train, old.schedule, old.card
        )  # fmt: skip


def test_another_optimizer_takes_its_keys_along_and_the_old_ones_away() -> None:
    sets = [parse_set("optimizer.name=sgd"), parse_set("optimizer.momentum=0.5"), LR]
    save_tuned_preset("mine", load_preset("quickstart"), sets, "tuned", is_twin=False, overwrite=False)
    optimizer = load_preset("mine").config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.beta2, optimizer.lr) == ("sgd", 0.5, None, 0.0123)


def test_a_taken_name_is_refused_unless_it_is_to_be_replaced() -> None:
    quickstart = load_preset("quickstart")
    path = save_tuned_preset("mine", quickstart, [LR], "first", is_twin=False, overwrite=False)
    with pytest.raises(ConfigError, match="already"):
        save_tuned_preset("mine", quickstart, [LR], "second", is_twin=False, overwrite=False)
    assert load_preset("mine").config.description == "first"
    save_tuned_preset("mine", quickstart, [LR], "second", is_twin=False, overwrite=True)
    assert load_preset("mine").config.description == "second"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["", "a b", "../x", ".x", "a" * 65, "é", "a\0", "x.toml"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is no preset name|reads as a file"):
        own_preset_path(name, overwrite=True)


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    user_preset_dir().parent.parent.joinpath("gpuworkbench").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_tuned_preset("mine", load_preset("quickstart"), [LR], "x", is_twin=False, overwrite=True)
