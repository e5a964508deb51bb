"""Keys that would do nothing: refused where somebody sets them for the run, never where a preset has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.idle_keys import ALWAYS, IDLE
from gpuworkbench.config.keys import known_keys
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.presets import Preset, configure, iter_preset_paths, load_preset, preset_dirs, request
from gpuworkbench.errors import ConfigError
from gpuworkbench.tui.form.draft import Draft, check

PRESETS = [path.stem for path in iter_preset_paths([preset_dirs()[-1]])]
OFF = ("hybrid.enabled=false",)
NESTEROV = ("hybrid.enabled=true", "hybrid.predictor=outer_nesterov", "hybrid.bandit=false")
LINE = ("hybrid.enabled=true", "hybrid.predictor=line_jump", "hybrid.bandit=false")
QUICKSTART = load_preset("quickstart")


def refused(sets: Sequence[str], preset: Preset = QUICKSTART, environ: dict[str, str] | None = None) -> str:
    """The line it is refused with; "" where it is not."""
    try:
        configure(preset, sets=[parse_set(text) for text in sets], environ=environ)
    except ConfigError as error:
        return error.line()
    return ""


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_switched_off_and_given_another_predictor(name: str) -> None:
    """Whatever its [hybrid] and [memory] sections say."""
    preset = load_preset(name)
    kept = () if preset.config.memory.optimizer_offload != "predict_aware" else ("memory.optimizer_offload=none",)
    assert not refused((*OFF, *kept), preset)
    for predictor in ("null", "outer_nesterov", "ema_trend", "line_jump"):
        assert not refused(("hybrid.enabled=true", f"hybrid.predictor={predictor}"), preset)


@pytest.mark.parametrize(
    "text",
    [
        "hybrid.dynamics=true",
        "hybrid.dynamics_device=device",
        "hybrid.undo_storage=disk",
        "hybrid.corrector=true",
        "hybrid.bandit_predictors=line_jump",
        "hybrid.predictor=null",
        "hybrid.outer_lr=0.9",
        "hybrid.state_device=host",
        "memory.precision_warmup=fp32",
        "memory.precision_predict=fp32",
        "memory.precision_correct=fp32",
    ],
)
def test_keys_of_prediction_without_prediction(text: str) -> None:
    key, _, value = text.partition("=")
    line = refused((*OFF, text))
    assert line.startswith(f"--set: {key}: has no effect: hybrid.enabled is false")
    assert line.endswith("; set hybrid.enabled = true, or leave it out")
    variable = f"GPUWORKBENCH__{key.replace('.', '__')}"
    assert refused(OFF, environ={variable: value}).startswith(f"{variable}: {key}: has no effect")
    in_file = load_preset("rtx5080_gpt2_small_baseline")
    assert refused((text,), in_file).startswith(f"--set: {key}: has no effect")


def test_what_works_without_prediction_and_what_changes_nothing() -> None:
    assert not refused((*OFF, "memory.precision_full=fp32", "hybrid.ema_eval_decay=0.9", "hybrid.state_device=host"))
    assert QUICKSTART.config.hybrid.outer_lr == 0.6
    assert not refused((*OFF, "hybrid.outer_lr=0.6"))  # as the preset has it
    assert not refused((*OFF, "hybrid.undo_storage=memory"))  # as it is anyway


def test_the_place_of_a_dynamics_model_that_is_off() -> None:
    place = "hybrid.dynamics_device=device"
    assert "hybrid.dynamics_device: has no effect: hybrid.dynamics is off" in refused((*LINE, place))
    assert not refused((*LINE, place, "hybrid.dynamics=true"))


def test_keys_of_predictors_that_are_not_chosen() -> None:
    for text in ("hybrid.outer_lr=0.9", "hybrid.outer_momentum=0.9"):
        assert "it is for outer_nesterov, which is not among the predictors; set" in refused((*LINE, text))
        assert not refused((*NESTEROV, text))
        also = ("hybrid.bandit=true", "hybrid.bandit_predictors=outer_nesterov")
        assert not refused((*LINE, *also, text))
    interval, longest = "hybrid.correction_interval=3", "hybrid.max_predict_steps=9"
    assert "hybrid.correction_interval: has no effect: the predictors that are chosen" in refused((*NESTEROV, interval))
    assert "hybrid.max_predict_steps: has no effect: the predictors that are chosen" in refused((*NESTEROV, longest))
    for ahead in ("hybrid.dynamics=true", "hybrid.corrector=true"):  # they look so far ahead themselves
        assert not refused((*NESTEROV, longest, ahead))
    assert not refused((*LINE, interval, longest))


def test_every_key_of_the_section_is_idle_while_it_is_off_or_known_not_to_be() -> None:
    idle = {key for each in IDLE for key in each.keys}
    assert idle <= set(known_keys())
    section = {f"hybrid.{name}" for name in HybridConfig.__struct_fields__}
    assert section - idle == ALWAYS - {"hybrid.state_device"}


def test_a_comparison_decides_itself_what_is_predicted() -> None:
    sets = [parse_set("hybrid.outer_lr=0.9"), parse_set("hybrid.full_steps=5")]
    for name in ("rtx5080_gpt2_small_baseline", "rtx5080_gpt2_small_hybrid"):
        made = request(load_preset(name), sets=sets, allows_idle=True).build()
        assert (made.hybrid.outer_lr, made.hybrid.full_steps) == (0.9, 5)


def test_the_form_blames_the_field_and_tells_the_others_too() -> None:
    texts = {"hybrid.enabled": "false", "hybrid.full_steps": "7", "train.max_steps": "0"}
    found = check(Draft(QUICKSTART, changes=texts), {})
    assert set(found.errors) == {"hybrid.full_steps", "train.max_steps"}
    assert found.errors["hybrid.full_steps"].startswith("hybrid.full_steps: has no effect: hybrid.enabled is false")
    assert not found.is_valid


def test_a_file_may_say_what_it_likes(tmp_path: Path) -> None:
    """A preset that is off for now, with everything that it has when it is on."""
    off = '[hybrid]\nenabled = false\nundo_storage = "disk"'
    text = QUICKSTART.text.decode().replace("[hybrid]\nenabled = true", off)
    path = tmp_path / "off.toml"
    path.write_text(text)
    preset = load_preset(str(path))
    assert not preset.config.hybrid.enabled
    assert not refused(("train.max_steps=5",), preset)
