"""A key that another optimizer or schedule has is refused, and goes away with the name it was written for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuworkbench import registry
from gpuworkbench.config.applicable import owners
from gpuworkbench.config.keys import known_keys
from gpuworkbench.config.loader import build, parse_set
from gpuworkbench.config.optimizers import optimizer_state_bytes, setting, spec_of
from gpuworkbench.config.presets import Preset, configure
from gpuworkbench.config.schema import OptimizerConfig, RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError
from gpuworkbench.launch.resolve import resolve_optimizer
from gpuworkbench.plan.analytic import estimate

BASE = {"schema_version": 1, "model": {"vocab_size": 512, "n_embd": 32, "n_head": 2}, "train": {"max_steps": 10}}
ADAMW = {"name": "adamw", "beta1": 0.8, "beta2": 0.99, "eps": 1e-6}


def configured(
    *sets: str,
    optimizer: dict[str, object] | None = None,
    twin: dict[str, dict[str, object]] | None = None,
    **keys: object,
) -> RunConfig:
    table = {**BASE, "optimizer": ADAMW if optimizer is None else optimizer, **keys}
    if twin is not None:
        table["cpu_twin"] = twin
    preset = Preset("p", Path("p.toml"), b"", table, build(table, "p.toml"))
    return configure(preset, sets=[parse_set(text) for text in sets], cpu_twin=twin is not None)


@pytest.mark.parametrize(("name", "kept"), [("sgd", []), ("adafactor", []), ("lion", ["beta1", "beta2"])])
def test_another_name_on_the_command_line_takes_the_old_ones_keys_away(name: str, kept: list[str]) -> None:
    optimizer = configured(f"optimizer.name={name}").optimizer
    assert [key for key in ("beta1", "beta2", "eps") if getattr(optimizer, key) is not None] == kept


def test_a_twin_with_another_optimizer_drops_them_too() -> None:
    config = configured(twin={"optimizer": {"name": "sgd", "momentum": 0.5}})
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.eps) == ("sgd", 0.5, None)


def test_a_schedule_of_another_name_drops_its_power() -> None:
    config = configured("schedule.name=cosine", schedule={"name": "polynomial", "power": 3.0})
    assert config.schedule.power is None


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["optimizer.name=sgd", "optimizer.beta2=0.9"], "--set: optimizer.beta2: has no effect with"),
        (["optimizer.momentum=0.9"], "leave it out; it is for muon, sgd"),
        (["optimizer.relative_step=false"], "--set: optimizer.relative_step: has no effect"),
        (["schedule.power=2"], "--set: schedule.power: has no effect with schedule.name = 'cosine'"),
        (["schedule.warmdown_shape=cosine"], "it is for warmup_stable_decay"),
        (["schedule.warmdown_shape=bent"], "is not one of linear, 1-sqrt, cosine"),
        (["optimizer.name=muon", "optimizer.ns_steps=0"], "is not a whole number from 1 to 99"),
        (["optimizer.name=muon", "optimizer.lr_adjust=none"], "is not one of match_rms_adamw, original"),
        (["optimizer.name=adafactor", "optimizer.beta2_decay=0.8"], "is not a number"),
        (["optimizer.name=sgd", "optimizer.momentum=1"], "is not a number >= 0 and < 1"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused_in_a_line(sets: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(*sets)
    assert words in caught.value.line()
    assert "\n" not in caught.value.line()


EVERY_5TH = {"activation_checkpointing": "every_n", "activation_checkpointing_every": 5}


def test_another_activation_checkpointing_takes_the_distance_away() -> None:
    assert configured(memory=EVERY_5TH).memory.activation_checkpointing_every == 5
    memory = configured("memory.activation_checkpointing=all", memory=EVERY_5TH).memory
    assert (memory.activation_checkpointing, memory.activation_checkpointing_every) == ("all", 2)
    config = configured(memory=EVERY_5TH, twin={"memory": {"activation_checkpointing": "none"}})
    assert config.memory.activation_checkpointing_every == 2


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["memory.activation_checkpointing_every=3"], "has no effect with memory.activation_checkpointing = 'none'"),
        (["memory.activation_checkpointing=all", "memory.activation_checkpointing_every=3"], "has no effect with"),
        (
            ["memory.activation_checkpointing=every_n", "memory.activation_checkpointing_every=13"],
            "13 is more than the model's 12 blocks",
        ),
    ],
)
def test_a_distance_of_recomputed_blocks_without_effect_is_refused_in_a_line(sets: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(*sets)
    assert f"memory.activation_checkpointing_every: {words}" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_as_many_as_there_are_blocks_is_a_distance() -> None:
    sets = ["memory.activation_checkpointing=every_n", "memory.activation_checkpointing_every=12"]
    assert configured(*sets).memory.activation_checkpointing_every == 12


def test_a_file_with_a_stray_key_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"p\.toml: optimizer\.eps: has no effect with optimizer\.name = 'lion'"):
        configured(optimizer={"name": "lion", "eps": 1e-6})


def test_every_key_that_some_names_own_is_a_key_and_none_by_default() -> None:
    for section in ("optimizer", "schedule"):
        for key, names in owners(section).items():
            assert known_keys()[f"{section}.{key}"].default is None
            assert names <= set(registry.OPTIMIZERS if section == "optimizer" else registry.SCHEDULES)


@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_a_run_stores_every_value_and_reads_it_back(name: str) -> None:
    resolved = resolve_optimizer(OptimizerConfig(name=name))
    assert {key: getattr(resolved, key) for key in spec_of(name).keys} == dict(spec_of(name).keys)
    config = build({**BASE, "optimizer": {"name": name}}, "a")
    stored = RunConfig(
        **{key: getattr(config, key) for key in config.__struct_fields__ if key != "optimizer"}, optimizer=resolved
    )
    assert build(parse_toml(dump_toml(stored), "a"), "a").optimizer == resolved


def test_a_value_that_is_written_counts_more_than_the_default() -> None:
    assert setting(OptimizerConfig(name="lion"), "beta2") == 0.99
    assert setting(OptimizerConfig(name="lion", beta2=0.5), "beta2") == 0.5
    with pytest.raises(KeyError):
        setting(OptimizerConfig(name="lion"), "eps")


def test_the_planner_counts_each_optimizers_state() -> None:
    """Closed forms for one block of width c, vocabulary v and n positions."""
    c, v, n, layers = 32, 512, 1024, 12
    hidden, tables, vectors = 12 * c * c * layers, (v + n) * c, 13 * c * layers + 2 * c
    total = hidden + tables + vectors
    factors = (v + c) + (n + c) + layers * (4 * c + 2 * c + 5 * c + 5 * c)
    elements = {
        "adamw": 2 * total,
        "muon": hidden + 2 * (tables + vectors),
        "lion": total,
        "adafactor": factors + vectors,
        "sgd": total,
    }
    for name, count in elements.items():
        config = configured(f"optimizer.name={name}")
        assert optimizer_state_bytes(config.optimizer, config.model.parameter_shapes()) == 4 * count, name
        planned = estimate(config, kind="cuda")
        assert planned is not None
        assert planned.parts["optimizer state"] == 4 * count
        assert planned.disk_bytes % (4 * (total + count)) == 0
    plain = configured("optimizer.name=sgd", "optimizer.momentum=0.0")
    assert optimizer_state_bytes(plain.optimizer, plain.model.parameter_shapes()) == 0
