"""The schema itself: every key documented, bounded and written as it is read; what the model formulas say."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.keys import known_keys, sections, top_level_keys
from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import DeviceConfig, RunConfig, SampleConfig, TrainConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError

KEYS = {**known_keys(), **top_level_keys()}


@pytest.mark.parametrize("name", KEYS)
def test_every_key_is_documented_in_a_line_and_says_what_it_expects(name: str) -> None:
    key = KEYS[name]
    assert 8 < len(key.documentation) <= 120
    assert key.documentation.isprintable()
    assert key.value_type in (bool, int, float, str)
    assert key.expects.startswith(("true or false", "a whole number", "a number", "text", "one of "))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.value_type is int])
def test_every_whole_number_has_both_bounds(name: str) -> None:
    assert " from " in KEYS[name].expects


def test_the_keys_that_others_rely_on() -> None:
    names = [
        "model.family",
        "model.n_layer",
        "model.n_head",
        "model.n_embd",
        "model.seq_len",
        "data.source",
        "data.tokenizer",
        "data.seed",
        "train.seq_len",
        "train.log_interval_steps",
        "train.max_steps",
        "train.micro_batch_size",
        "train.grad_accum_steps",
        "train.seed",
        "train.mode",
        "train.threads",
        "optimizer.name",
        "optimizer.lr",
        "optimizer.weight_decay",
        "schedule.name",
        "schedule.warmup_steps",
        "schedule.warmdown_steps",
        "memory.precision",
        "memory.chunked_cross_entropy",
        "hybrid.enabled",
        "checkpoint.interval_steps",
        "checkpoint.keep_last",
        "eval.interval_steps",
        "eval.tokens",
        "sample.interval_steps",
        "sample.prompt",
        "device.kind",
        "device.index",
        "device.memory_limit_gib",
        "device.compile",
    ]
    assert set(names) <= set(known_keys())


def test_every_section_is_frozen_and_refuses_unknown_keys() -> None:
    for name, struct in {"": RunConfig, **sections()}.items():
        assert struct.__struct_config__.frozen, name
        assert struct.__struct_config__.forbid_unknown_fields, name


def test_every_default_survives_writing_and_reading() -> None:
    config = RunConfig(schema_version=1, model=Gpt2Config(), train=TrainConfig(max_steps=1))
    assert build(parse_toml(dump_toml(config), "a"), "a") == config


@pytest.mark.parametrize(
    "prompt", ["", "\n", "\0\x1b\x7f\x9b", "quote \" and \\ and '", "'''\n\"\"\"", "ä€😀\u202e", "a\r\n b"]
)
def test_any_text_survives_writing_and_reading(prompt: str) -> None:
    config = RunConfig(
        schema_version=1, model=Gpt2Config(), train=TrainConfig(max_steps=1), sample=SampleConfig(prompt=prompt)
    )
    assert build(parse_toml(dump_toml(config), "a"), "a") == config


def test_text_that_utf8_cannot_hold_is_refused() -> None:
    config = RunConfig(schema_version=1, model=Gpt2Config(), sample=SampleConfig(prompt="a\udcffb"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        dump_toml(config)


def test_none_is_left_out() -> None:
    assert b"uuid" not in dump_toml(DeviceConfig())


class TestGpt2:
    """Closed forms of the family."""

    def test_published_parameter_count(self) -> None:
        assert Gpt2Config(vocab_size=50_257).n_params() == 124_439_808

    def test_padding_is_only_inside(self) -> None:
        model = Gpt2Config(vocab_size=50_257)
        assert model.padded_vocab_size == 50_304
        assert model.n_allocated_params() - model.n_params() == 47 * 768
        assert Gpt2Config(vocab_size=50_304).n_allocated_params() == Gpt2Config(vocab_size=50_304).n_params()

    def test_flops_are_six_per_matrix_parameter_plus_attention(self) -> None:
        model = Gpt2Config(n_layer=1, n_head=1, n_embd=8, seq_len=16, vocab_size=64)
        attention = model.flops_per_token(10) - model.flops_per_token(0)
        assert attention == 12 * 1 * 8 * 10
        assert model.flops_per_token(0) == 6 * (model.n_params() - 16 * 8)

    def test_heads_divide_the_width(self) -> None:
        assert Gpt2Config(n_embd=770, n_head=12).problems()
        assert not Gpt2Config(n_embd=768, n_head=12).problems()


def test_derived_numbers() -> None:
    config = RunConfig(
        schema_version=1,
        model=Gpt2Config(seq_len=128),
        train=TrainConfig(micro_batch_size=3, grad_accum_steps=5),
        preset="x",
    )
    assert (config.train_seq_len, config.eval_micro_batch_size, config.tokens_per_step) == (128, 3, 3 * 5 * 128)
    shorter = replace(config, train=replace(config.train, seq_len=64))
    assert (shorter.train_seq_len, shorter.tokens_per_step) == (64, 3 * 5 * 64)
    assert config.label == "x"
