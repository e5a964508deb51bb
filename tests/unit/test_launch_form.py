"""The launch form without its screen: every key has a field, texts keep their values, errors are the loader's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench import registry
from gpuworkbench.config.keys import known_keys
from gpuworkbench.config.loader import apply_overrides, build, parse_set
from gpuworkbench.config.presets import configure, iter_preset_paths, load_preset
from gpuworkbench.errors import ConfigError
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.host import Host
from gpuworkbench.plan.analytic import Verdict, estimate
from gpuworkbench.runs.turns import Ticket, device_of
from gpuworkbench.text import safe_text
from gpuworkbench.tui.form.draft import Draft, check
from gpuworkbench.tui.form.fields import (
    HIDDEN_KEYS,
    HIDDEN_SECTIONS,
    QUEUE_KEY,
    TWIN_KEY,
    FormField,
    form_fields,
    override,
    text_of,
)
from gpuworkbench.tui.form.outlook import Machine, doubt, look
from tests.fixtures.recorded_run import PRESETS

GIB = 1024**3
QUICK = load_preset(str(PRESETS / "quickstart.toml"))
SMALL = load_preset(str(PRESETS / "rtx5080_gpt2_small_baseline.toml"))
HOST = Host(
    memory_total_bytes=32 * GIB, memory_available_bytes=20 * GIB, cpu_name="a CPU", physical_cores=8, is_wsl=False
)


def fields(**table: Any) -> dict[str, FormField]:
    return {item.name: item for item in form_fields(table)}


def card(gib: float = 16, **changes: Any) -> Card:
    return Card(index=0, uuid="GPU-aaaa", compute_capability=(12, 0), memory_total_bytes=int(gib * GIB), **changes)


def test_every_key_has_a_field_with_its_documentation() -> None:
    found = fields()
    expected = {
        name
        for name, key in known_keys().items()
        if key.value_type is not None and name.partition(".")[0] not in HIDDEN_SECTIONS
    }
    assert set(found) == (expected - HIDDEN_KEYS) | {TWIN_KEY, QUEUE_KEY}
    for item in found.values():
        assert item.key.documentation, item.name
        assert item.expects, item.name
        kinds = {bool: "switch"}
        wanted = kinds.get(item.key.value_type or object, "choice" if item.choices else "text")
        assert item.editor == wanted


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("model.family", registry.MODELS),
        ("optimizer.name", registry.OPTIMIZERS),
        ("schedule.name", registry.SCHEDULES),
    ],
)
def test_names_of_a_registry_are_a_list(name: str, table: dict[str, Any]) -> None:
    assert fields()[name].choices == tuple(sorted(table))


def test_the_choices_of_a_key_are_the_schemas() -> None:
    found = fields()
    assert found["memory.precision"].choices == ("auto", "fp32", "bf16", "fp16")
    assert found["train.mode"].is_optional
    assert "default 12" in found["model.n_layer"].expects


@pytest.mark.parametrize("path", list(iter_preset_paths()), ids=lambda path: path.stem)
def test_every_value_of_every_preset_survives_its_text(path: Path) -> None:
    """Typing what the form shows changes nothing: each text is parsed back to the value it stands for."""
    preset = load_preset(str(path))
    for is_twin in {False, preset.has_cpu_twin}:
        draft = Draft(preset, is_twin=is_twin)
        checked = check(draft, {})
        assert checked.is_valid
        assert checked.overrides == ()
        assert checked.config == configure(preset, cpu_twin=is_twin)
        for name, text in checked.base_texts.items():
            again = check(draft.changed(name, text), {})
            assert again.overrides == (), name


@given(st.text(max_size=30))
def test_any_text_is_shown_harmlessly_and_kept(text: str) -> None:
    item = fields()["sample.prompt"]
    shown = text_of(text)
    assert safe_text(shown) == shown
    change = override(item, shown)
    table = apply_overrides(QUICK.table, [change])
    assert table["sample"]["prompt"] == text


@given(st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_number_is_kept(number: float) -> None:
    change = override(fields()["optimizer.lr"], text_of(number))
    assert change.value == number
    assert type(change.value) is type(number) or float(number).is_integer()


WRONG = [
    ("model.n_layer", "abc"),
    ("model.n_layer", "0"),
    ("model.n_layer", "1.5"),
    ("model.n_layer", ""),
    ("model.n_head", "7"),
    ("optimizer.lr", "nan"),
    ("optimizer.lr", "0"),
    ("optimizer.lr", "inf"),
    ("schedule.name", "cosin"),
    ("train.mode", "quick"),
    ("train.seq_len", "129"),
    ("data.tokenizer", "what is this"),
    ("data.source", ""),
    ("eval.tokens", "1000"),
    ("train.max_steps", "99999999999999999999"),
    ("train.max_steps", ""),
    ("data.val_fraction", "[1]"),
    ("memory.precision", "fp8"),
]


@pytest.mark.parametrize(("key", "text"), WRONG)
def test_errors_are_the_loaders_and_stand_at_their_field(key: str, text: str) -> None:
    checked = check(Draft(QUICK).changed(key, text), {})
    assert list(checked.errors) == [key]
    assert not checked.is_valid
    with pytest.raises(ConfigError) as caught:
        configure(QUICK, sets=[parse_set(f"{key}={text}")] if text else [override(fields()[key], text)])
    said = caught.value.line()
    for prefix in ("--set: ", "form: ", f"{QUICK.path}: ", "quickstart with --set optimizer.lr: "):
        said = said.removeprefix(prefix)
    assert checked.errors[key].split("; ")[-1] == said.split("; ")[-1]
    assert key in checked.errors[key] or "not a finite" in checked.errors[key]


def test_every_wrong_field_is_told_and_the_rest_still_counts() -> None:
    draft = Draft(QUICK)
    for key, text in (("model.n_layer", "x"), ("optimizer.lr", "-1"), ("model.n_head", "7"), ("train.max_steps", "9")):
        draft = draft.changed(key, text)
    checked = check(draft, {})
    assert set(checked.errors) == {"model.n_layer", "optimizer.lr", "model.n_head"}
    assert checked.config is not None
    assert checked.config.train.max_steps == 9
    assert checked.config.model.n_layer == QUICK.config.model.n_layer


def test_an_error_of_two_keys_stands_at_one_and_nothing_is_made_of_it() -> None:
    """model.seq_len is changed, and train.seq_len, which was not, no longer fits it."""
    preset = load_preset(str(PRESETS / "rtx5080_1b.toml"))
    draft = Draft(preset, is_twin=True).changed("model.seq_len", "64")
    checked = check(draft, {})
    assert list(checked.errors) == ["train.seq_len"]
    assert "model's 64 positions" in checked.errors["train.seq_len"]
    assert checked.config is None


def test_the_environment_counts_before_the_form() -> None:
    environ = {"GPUWORKBENCH__train__max_steps": "77"}
    checked = check(Draft(QUICK), environ)
    assert checked.base_texts["train.max_steps"] == "77"
    assert not checked.overrides
    back = check(Draft(QUICK).changed("train.max_steps", "1000"), environ)
    assert back.config is not None
    assert back.config.train.max_steps == 1000
    assert back.config == configure(QUICK, sets=back.overrides, environ=environ)
    broken = check(Draft(QUICK), {"GPUWORKBENCH__train__max_steps": "many"})
    assert "GPUWORKBENCH__train__max_steps" in broken.errors[""]
    assert not broken.is_valid


def test_the_twin_has_changes_of_its_own() -> None:
    preset = load_preset(str(PRESETS / "rtx5080_1b.toml"))
    draft = Draft(preset).changed("train.max_steps", "5")
    twin = replace(draft, is_twin=True)
    assert not check(twin, {}).overrides
    both = twin.changed("train.max_steps", "6")
    assert both.changes == {"train.max_steps": "5"}
    assert both.twin_changes == {"train.max_steps": "6"}
    config = check(both, {}).config
    assert config is not None
    assert config.is_cpu_twin
    assert both.label == "rtx5080_1b (CPU twin)"


def outlook_of(draft: Draft, *cards: Card, users: dict[str, tuple[Ticket, ...]] | None = None) -> Any:
    checked = check(draft, {})
    assert checked.config is not None
    assert checked.base is not None
    machine = Machine(cards, HOST, users or {})
    return look(checked.config, checked.base, machine, has_cpu_twin=draft.preset.has_cpu_twin)


def test_the_outlook_is_the_planners() -> None:
    draft = Draft(SMALL).changed("model.n_layer", "24")
    outlook = outlook_of(draft, card(desktop_memory_bytes=GIB))
    assert outlook.kind == "cuda"
    config = build(apply_overrides(SMALL.table, [parse_set("model.n_layer=24")]), "")
    assert outlook.predicted == estimate(config, kind="cuda")
    assert outlook.before == estimate(SMALL.config, kind="cuda")
    assert outlook.limit_bytes == 15 * GIB
    assert outlook.verdict is Verdict.FITS
    big = outlook_of(draft.changed("train.micro_batch_size", "4096").changed("eval.micro_batch_size", "1"), card())
    assert big.verdict is Verdict.DOES_NOT_FIT
    assert "predicted to need" in doubt(big, has_cards=True)
    assert doubt(outlook, has_cards=True) == ""


def test_a_card_that_falls_short_is_said_and_asked_about() -> None:
    short = outlook_of(Draft(SMALL), card(1))
    assert "needs a CUDA card" in short.refusal
    assert short.verdict is None
    assert "all the same?" in doubt(short, has_cards=True)
    none_here = outlook_of(Draft(SMALL))
    assert none_here.refusal
    assert doubt(none_here, has_cards=False) == "", "nothing to agree to: the launcher refuses it"


def test_who_uses_the_device_is_known() -> None:
    ticket = Ticket(run="/runs/other", pid=1, is_waiting=False, since_unix_s=0.0)
    users = {device_of("cuda", "GPU-aaaa", 0).key: (ticket,)}
    assert outlook_of(Draft(SMALL), card(), users=users).users == (ticket,)
    assert outlook_of(Draft(QUICK), users=users).users == ()
