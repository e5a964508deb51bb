"""From tables and overrides to a config: precedence, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuworkbench.config.diff import FREE_KEYS, FREE_SECTIONS, differences
from gpuworkbench.config.keys import known_keys, sections
from gpuworkbench.config.loader import (
    Override,
    apply_overrides,
    build,
    build_overridden,
    environment_overrides,
    merge,
    parse_set,
    twin_table,
    where_of,
)
from gpuworkbench.config.presets import Preset, configure
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError

BASE: dict[str, Any] = {
    "schema_version": 1,
    "model": {"family": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "seq_len": 32},
    "train": {"max_steps": 40, "micro_batch_size": 4},
    "eval": {"tokens": 256},
    "cpu_twin": {"train": {"micro_batch_size": 2}, "optimizer": {"lr": 0.5}},
}


def preset(**sections: Any) -> Preset:
    table = merge(BASE, {"preset": "here", **sections})
    return Preset("here", Path("here.toml"), b"", table, build(table, "here.toml"))


def refusal(table: dict[str, Any]) -> str:
    """The line a table is refused with."""
    with pytest.raises(ConfigError) as caught:
        build(table, "a.toml")
    return one_line(caught.value)


def set_refusal(*texts: str, environ: dict[str, str] | None = None, cpu_twin: bool = False, **sections: Any) -> str:
    """The line that `--set` flags are refused with."""
    with pytest.raises(ConfigError) as caught:
        configure(preset(**sections), sets=[parse_set(text) for text in texts], environ=environ, cpu_twin=cpu_twin)
    return one_line(caught.value)


def one_line(error: ConfigError) -> str:
    line = error.line()
    assert line.isprintable(), line
    assert len(line) < 1700
    assert error.hint, line
    return line


class TestPrecedence:
    """Flags > environment > the preset's twin > the preset > defaults."""

    def test_each_layer_wins_over_the_one_below(self) -> None:
        key = "GPUWORKBENCH__train__micro_batch_size"
        assert configure(preset(train={"max_steps": 1})).train.grad_accum_steps == 1
        assert configure(preset()).train.micro_batch_size == 4
        assert configure(preset(), cpu_twin=True).train.micro_batch_size == 2
        assert configure(preset(), cpu_twin=True, environ={key: "8"}).train.micro_batch_size == 8
        flags = [parse_set("train.micro_batch_size=1")]
        assert configure(preset(), cpu_twin=True, environ={key: "8"}, sets=flags).train.micro_batch_size == 1

    def test_the_last_flag_wins_and_steps_is_a_flag_of_its_own(self) -> None:
        flags = [parse_set("train.max_steps=5"), parse_set("train.max_steps=6")]
        assert configure(preset(), sets=flags).train.max_steps == 6
        assert configure(preset(), sets=flags, steps=7).train.max_steps == 7
        assert configure(preset(), environ={"GPUWORKBENCH__train__max_steps": "8"}, steps=7).train.max_steps == 7

    def test_a_twin_replaces_keys_and_leaves_the_rest(self) -> None:
        twin = configure(preset(), cpu_twin=True)
        assert (twin.train.micro_batch_size, twin.train.max_steps, twin.optimizer.lr) == (2, 40, 0.5)
        assert twin.is_cpu_twin
        assert twin.device.kind == "cpu"
        assert twin.cpu_twin == {}
        assert twin.label == "here (CPU twin)"
        assert not configure(preset()).is_cpu_twin

    def test_what_only_a_card_has_does_not_reach_its_twin(self) -> None:
        device = {"memory_limit_gib": 8.0, "index": 1, "uuid": "GPU-1", "compile": "default"}
        twin = configure(preset(device=device), cpu_twin=True).device
        assert (twin.kind, twin.memory_limit_gib, twin.index, twin.uuid) == ("cpu", None, None, None)
        assert twin.compile == "default"

    def test_merging_changes_neither_argument(self) -> None:
        before = msgspec.json.encode(BASE)
        table = apply_overrides(BASE, [parse_set("train.seed=3")])
        table["train"]["seed"] = 9
        twin_table(BASE, "a")["train"]["seed"] = 9
        assert msgspec.json.encode(BASE) == before

    def test_foreign_variables_are_no_overrides(self) -> None:
        environ = {"PATH": "x", "GPUWORKBENCH_RUNS_DIR": "/x", "GPUWORKBENCH__eval__tokens": "512"}
        assert environment_overrides(environ) == [Override("eval.tokens", 512, "GPUWORKBENCH__eval__tokens", "512")]


class TestValues:
    """`--set` values are TOML, else strings."""

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("a=1", 1),
            ("a=-3", -3),
            ("a=1_000", 1000),
            ("a = 0x10 ", 16),
            ("a=1e-3", 0.001),
            ("a=true", True),
            ('a="1"', "1"),
            ("a='x # y'", "x # y"),
            ("a=plain words", "plain words"),
            ("a=/path/with=equals", "/path/with=equals"),
            ("a=True", "True"),
            ("a=1\nb = 2", "1\nb = 2"),
            ("a=", ""),
            ("a=[", "["),
            ("a=[1]", [1]),
        ],
    )
    def test_toml_else_text(self, text: str, value: object) -> None:
        override = parse_set(text)
        assert override.key == "a"
        assert override.value == value
        assert type(override.value) is type(value)

    @pytest.mark.parametrize("word", ["1999", "true", "1979-05-27", "07:32:00", "[1]", "1.50", "{a = 1}", "0x1F"])
    def test_a_key_that_takes_text_takes_the_word_as_it_is_written(self, word: str) -> None:
        assert configure(preset(), sets=[parse_set(f"sample.prompt={word}")]).sample.prompt == word
        environ = {"GPUWORKBENCH__sample__prompt": word}
        assert configure(preset(), environ=environ).sample.prompt == word

    def test_quotes_are_toml(self) -> None:
        assert configure(preset(), sets=[parse_set(r'sample.prompt="a\tb"')]).sample.prompt == "a\tb"

    def test_whole_numbers_are_good_where_a_number_is_wanted(self) -> None:
        assert configure(preset(), sets=[parse_set("optimizer.lr=1")]).optimizer.lr == 1.0


class TestRefusals:
    """What is wrong, where, what to do: in one line."""

    @pytest.mark.parametrize(
        ("section", "value", "words"),
        [
            ("train", {"sed": 1}, "a.toml: train.sed is not a key; did you mean 'train.seed'?"),
            ("train", {"lr": 1}, "a.toml: train.lr is not a key; did you mean 'optimizer.lr'?"),
            ("checkpoint", {"zzz": 1}, "keys of checkpoint: interval_steps, keep_last, keep_best"),
            ("model", {"n_layers": 1}, "a.toml: model.n_layers is not a key; did you mean 'model.n_layer'?"),
            ("trian", {}, "a.toml: trian is not a section; did you mean 'train'?"),
            ("zzz", {}, "a.toml: zzz is not a section; sections: "),
            ("train", 3, "a.toml: train is not a section of keys; write [train]"),
            ("train", [{}], "a.toml: train is not a section of keys; write [train]"),
            ("model", "gpt2", "a.toml: model is not a section of keys; write [model]"),
            ("model", {"family": "gpt3"}, "a.toml: model.family = 'gpt3' is not known; did you mean 'gpt2'?"),
            ("model", {"family": 2}, "a.toml: model.family is not text"),
            ("train", {"seed": "x"}, "a.toml: train.seed = 'x' is not a whole number from 0 to 9223372036854775807"),
            ("train", {"seed": True}, "a.toml: train.seed = true is not a whole number"),
            ("train", {"max_steps": 0}, "a.toml: train.max_steps = 0 is not a whole number from 1 to 1000000000"),
            ("train", {"max_steps": 1.5}, "a.toml: train.max_steps = 1.5 is not a whole number"),
            ("train", {"max_steps": [1]}, "a.toml: train.max_steps = a list is not a whole number"),
            ("train", {"mode": "slow"}, "a.toml: train.mode = 'slow' is not one of exact, fast"),
            ("train", {"mode": {"a": 1}}, "a.toml: train.mode = a dict is not one of exact, fast"),
            ("optimizer", {"lr": "high"}, "a.toml: optimizer.lr = 'high' is not a number > 0"),
            ("optimizer", {"lr": 0}, "a.toml: optimizer.lr = 0 is not a number > 0"),
            ("optimizer", {"lr": float("nan")}, "a.toml: optimizer.lr = nan is not a finite number"),
            ("optimizer", {"lr": float("-inf")}, "a.toml: optimizer.lr = -inf is not a finite number"),
            ("optimizer", {"lr": 10**400}, "a.toml: optimizer.lr is beyond 64 bits"),
            ("train", {"micro_batch_size": 2**63}, "a.toml: train.micro_batch_size is beyond 64 bits"),
            ("train", {"micro_batch_size": 2**62}, "is not a whole number from 1 to 2147483647"),
            ("model", {"vocab_size": 2**40}, "is not a whole number from 0 to 16777216"),
            ("memory", {"chunked_cross_entropy": 1}, "= 1 is not true or false"),
            ("sample", {"prompt": 3}, "a.toml: sample.prompt = 3 is not text of at most 10000 characters"),
            ("sample", {"prompt": "x" * 10_001}, "… is not text of at most 10000 characters"),
            ("card", {}, "a.toml: card.name is missing; card.name is: the card in words"),
            ("card", {"name": "a", "compute_capability": "8", "memory_gib": 1}, "is not text of the form"),
            ("optimizer", {"name": "adam"}, "a.toml: optimizer.name: 'adam' is not known; did you mean 'adamw'?"),
            (
                "schedule",
                {"name": "x"},
                "choices: constant, cosine, inverse_sqrt, linear, polynomial, ",
            ),
            ("schema_version", 2, "a.toml: schema_version = 2 is newer than this program's 1; update gpuworkbench"),
            ("schema_version", "1", "a.toml: schema_version = '1' is not a whole number"),
            pytest.param("schema_version", 16**5000, "a.toml: schema_version is beyond 64 bits", id="huge"),
            ("description", 3, "a.toml: description = 3 is not text"),
            ("cpu_twin", 3, "a.toml: cpu_twin"),
            ("cpu_twin", {"train": 3}, "a.toml: cpu_twin.train is not a section of keys; write [cpu_twin.train]"),
            ("cpu_twin", {"train": {"sed": 1}}, "cpu_twin.train.sed is not a key; did you mean 'train.seed'?"),
            ("cpu_twin", {"description": "x"}, "a.toml: cpu_twin.description is not a section"),
            ("cpu_twin", {"cpu_twin": {}}, "a.toml: cpu_twin.cpu_twin is not a section"),
            ("cpu_twin", {"model": {"family": "x"}}, "a.toml: cpu_twin.model.family = 'x' is not known"),
            ("hybrid", {"enabled": True, "predictor": "line"}, "a.toml: hybrid.predictor: "),
        ],
    )
    def test_one_wrong_thing(self, section: str, value: object, words: str) -> None:
        table = merge(BASE, {section: value}) if isinstance(value, dict) else {**BASE, section: value}
        assert words in refusal(table)

    def test_missing_keys(self) -> None:
        assert refusal({}).startswith("a.toml: schema_version is missing; schema_version is: version of this file")
        assert "a.toml: model is missing" in refusal({"schema_version": 1})
        model = {"schema_version": 1, "model": {"family": "gpt2"}}
        assert "train.max_steps: is missing, and so is train.max_epochs" in refusal(model)

    def test_combinations(self) -> None:
        assert "5 heads do not divide n_embd = 32" in refusal(merge(BASE, {"model": {"n_head": 5}}))
        assert "64 tokens are more than the model's 32 positions" in refusal(merge(BASE, {"train": {"seq_len": 64}}))
        wrong_eval = refusal(merge(BASE, {"eval": {"tokens": 300}}))
        assert "4 x 32 = 128" in wrong_eval
        assert wrong_eval.endswith("set eval.tokens to 256 or 384")
        huge = refusal(merge(BASE, {"train": {"micro_batch_size": 10**8}, "eval": {"tokens": 320}}))
        assert huge.endswith("set eval.micro_batch_size to 10")  # not 3.2 billion tokens of validation
        early = {"eval": {"interval_steps": 0}, "early_stopping": {"patience": 1}}
        assert "needs validations" in refusal(merge(BASE, early))
        capped = {"device": {"kind": "cpu", "memory_limit_gib": 8}}
        assert "device.memory_limit_gib: caps a CUDA card" in refusal(merge(BASE, capped))
        assert "data.source: is empty" in refusal(merge(BASE, {"data": {"source": " "}}))
        assert "data.tokenizer: 'a b' is not known" in refusal(merge(BASE, {"data": {"tokenizer": "a b"}}))

    @pytest.mark.parametrize(
        ("hybrid", "words"),
        [
            (
                {},
                "'predict_aware' has no effect: nothing is predicted with hybrid.enabled = false; set it to 'none' or",
            ),
            ({"enabled": True, "predictor": "outer_nesterov", "full_steps": 1}, "with hybrid.full_steps = 1; set"),
            ({"enabled": True, "predictor": "line_jump", "max_predict_steps": 1}, "hybrid.max_predict_steps = 1; set"),
            (
                {"enabled": True, "predictor": "line_jump", "max_predict_steps": 2, "correction_interval": 1},
                "hybrid.max_predict_steps = 2 and hybrid.correction_interval = 1; set hybrid.max_predict_steps to 3",
            ),
            ({"enabled": True, "predictor": "line_jump", "max_predict_steps": 3, "correction_interval": 1}, ""),
            ({"enabled": True, "predictor": "line_jump", "max_predict_steps": 2, "correction_interval": 0}, ""),
            ({"enabled": True, "predictor": "outer_nesterov", "full_steps": 2, "max_predict_steps": 1}, ""),
        ],
    )
    def test_state_that_would_never_leave(self, hybrid: dict[str, Any], words: str) -> None:
        table = merge(BASE, {"memory": {"optimizer_offload": "predict_aware"}, "hybrid": hybrid})
        if not words:
            build(table, "a.toml")
            return
        line = refusal(table)
        assert line.startswith("a.toml: memory.optimizer_offload: ")
        assert words in line

    def test_deep_nesting_is_refused_without_recursion(self) -> None:
        deep: Any = 1
        for _ in range(100_000):
            deep = {"a": deep}
        line = refusal({**BASE, "train": deep})
        assert line.startswith("a.toml: train.a.a")
        assert "is nested too deeply" in line

    def test_deep_lists(self) -> None:
        deep: Any = 1
        for _ in range(100):
            deep = [deep]
        assert "is nested too deeply" in refusal(merge(BASE, {"train": {"seed": deep}}))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("foo", "--set 'foo': no '=' after a key; write --set section.key=value"),
            ("", "--set '': no '='"),
            ("=1", "--set '=1': no '='"),
            ("a\udcff=1", "is not UTF-8"),
            ("sample.prompt=\udcff", "is not UTF-8"),
        ],
    )
    def test_flags_that_say_nothing(self, text: str, words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_set(text)
        assert words in one_line(caught.value)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("train.sed=1", "--set: 'train.sed' is not a key; did you mean 'train.seed'?"),
            ("trian.seed=1", "did you mean 'train.seed'?"),
            ("TRAIN.SEED=1", "did you mean 'train.seed'?"),
            ("lr=1", "did you mean 'optimizer.lr'?"),
            ("optimizer.foo=1", "keys of optimizer: name, lr, weight_decay"),
            ("train=1", "write train.<key>, such as train.seq_len"),
            ("bogus.thing=1", "sections: card, model, data, train"),
            ("schema_version=9", "is not a key"),
            ("is_cpu_twin=true", "is not a key"),
            ("train.seed.x=1", "is not a key"),
            ("..=1", "is not a key"),
            (".seed=1", "is not a key"),
            ("train.=1", "is not a key"),
            ("train.\x1b[31m=1", r"'train.\x1b[31m' is not a key"),
            ("train.seed=x", "--set: train.seed = 'x' is not a whole number"),
            ("train.seed=nan", "--set: train.seed = nan is not a finite number"),
            ("train.seed={a = [inf]}", "--set: train.seed.a = inf is not a finite number"),
            ("optimizer.lr=-inf", "--set: optimizer.lr = -inf is not a finite number"),
            ("optimizer.lr=1" + "0" * 400, "--set: optimizer.lr is beyond 64 bits"),
            ("model.n_head=5", "--set: model.n_head: 5 heads do not divide"),
            ("train.seq_len=33", "--set: train.seq_len: 33 tokens are more"),
            ("train.micro_batch_size=3", "here with --set train.micro_batch_size: eval.tokens: 256 does not divide"),
        ],
    )
    def test_flags(self, text: str, words: str) -> None:
        assert words in set_refusal(text)

    def test_an_error_names_its_own_source(self) -> None:
        environ = {"GPUWORKBENCH__train__seed": "-1"}
        assert set_refusal("train.max_steps=3", environ=environ).startswith(
            "GPUWORKBENCH__train__seed: train.seed = -1"
        )
        assert set_refusal("train.seed=-2", environ=environ).startswith("--set: train.seed = -2")
        assert set_refusal("train.seed=1", environ={"GPUWORKBENCH__x": "1"}).startswith("GPUWORKBENCH__x: 'x'")
        named = set_refusal("train.seed=1", "train.max_steps=2", "data.seed=1", "sample.seed=1", "model.seq_len=96")
        assert "here with --set train.seed, --set train.max_steps, --set data.seed and 2 more: eval.tokens: " in named

    def test_where_of_takes_the_last(self) -> None:
        overrides = [Override("a.b", 1, "first"), Override("a.b", 2, "second"), Override("a.c", 2, "third")]
        assert where_of(overrides, "a.b", "file") == "second"
        assert where_of(overrides, "a.d", "file") == "file"

    def test_a_cpu_twin_on_a_card_is_a_contradiction(self) -> None:
        assert "but a CPU twin computes on the CPU" in set_refusal("device.kind=cuda", cpu_twin=True)

    def test_no_twin(self) -> None:
        without = {name: value for name, value in BASE.items() if name != "cpu_twin"}
        with pytest.raises(ConfigError, match="no \\[cpu_twin\\] section"):
            twin_table(without, "a.toml")

    def test_a_long_value_does_not_make_a_long_line(self) -> None:
        assert len(set_refusal(f"train.seed={'x' * 100_000}")) < 300
        assert len(set_refusal(f"{'x' * 100_000}=1")) < 1700


class TestDifferences:
    """What a resume may change."""

    def test_only_changed_keys_are_named(self) -> None:
        old, new = (
            configure(preset()),
            configure(preset(), sets=[parse_set("train.seed=3"), parse_set("eval.tokens=128")]),
        )
        found = differences(old, new)
        assert [(d.key, d.old, d.new, d.is_semantic) for d in found] == [
            ("train.seed", 1337, 3, True),
            ("eval.tokens", 256, 128, False),
        ]
        assert str(found[0]) == "train.seed: 1337 -> 3"
        assert differences(old, old) == []

    def test_the_free_keys_exist(self) -> None:
        assert set(known_keys()) >= FREE_KEYS
        assert set(sections()) >= FREE_SECTIONS


def test_overriding_nothing_is_building() -> None:
    assert build_overridden(BASE, [], "x", "a.toml") == build(BASE, "a.toml")
    assert isinstance(build(BASE, "a.toml"), RunConfig)
