"""What `bench memory` plans: each case a valid configuration of as many tokens a step, one thing changed at a time."""

from __future__ import annotations

import msgspec
import pytest

from gpuworkbench.cli import main
from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.memory_cases import AS_CONFIGURED, CASES, PLAIN, planned, without_hybrid

ADAMW_ONLY = {("stochastic_rounding", True), ("packed_optimizer", True), ("optimizer_offload", "streamed")}


def twin() -> RunConfig:
    return configure(load_preset("rtx5080_gpt2_small_memory"), cpu_twin=True)


def test_plain_first_and_the_configuration_last() -> None:
    cases = list(planned(twin()))
    assert [case.name for case in cases] == [PLAIN, *(case.name for case in CASES), AS_CONFIGURED]
    plain = cases[0].config
    assert plain is not None
    for case in cases:
        assert case.config is not None, case.refused
        assert case.config.tokens_per_step == plain.tokens_per_step
        assert case.config.model == plain.model
    assert cases[-1].config is not None
    assert cases[-1].config.memory == twin().memory
    for case in cases:  # the measurement makes the predicted stretch itself, and a refused key is none to measure
        assert case.config is not None
        assert not case.config.hybrid.enabled or case.config.memory.optimizer_offload == "predict_aware"
        assert not without_hybrid(case.config).hybrid.enabled
    assert cases[-1].changed["memory.optimizer_offload"] == "predict_aware"
    assert {"memory.activation_offload": True} in [case.changed for case in cases]


def test_small_formats_are_among_the_cases_and_leave_the_rest_as_it_is() -> None:
    config = twin()
    config = msgspec.structs.replace(config, memory=msgspec.structs.replace(config.memory, precision="fp32"))
    cases = {case.name: case for case in planned(config)}
    assert cases["packed AdamW"].changed == {
        "memory.weights": "bf16",
        "memory.precision": "auto",  # fp32 products do not go with bf16 weights
        "memory.packed_optimizer": True,
    }
    assert cases["streamed state"].changed == {"memory.optimizer_offload": "streamed"}
    train = config.train
    in_backward = cases["packed AdamW, in backward"]
    sequences = train.micro_batch_size * train.grad_accum_steps
    assert in_backward.changed["train.micro_batch_size"] == sequences
    assert in_backward.changed["train.grad_accum_steps"] == 1
    assert in_backward.changed["train.grad_clip_norm"] == 0.0
    assert in_backward.config is not None
    assert in_backward.config.eval_micro_batch_size == config.eval_micro_batch_size


@pytest.mark.parametrize("preset", ["rtx5080_1b", "rtx5080_1b_exact"])
def test_the_stacks_of_the_1b_presets_are_measured(preset: str) -> None:
    """Each is the preset's own [memory] section, precision left out."""
    own = configure(load_preset(preset)).memory
    case = next(case for case in CASES if f"({preset})" in case.name)
    assert msgspec.structs.replace(MemoryConfig(**case.keys), precision=own.precision) == own


def test_what_cannot_be_measured_says_why() -> None:
    replace = msgspec.structs.replace
    config = twin()
    one = replace(config, train=replace(config.train, micro_batch_size=1), device=replace(config.device, kind="cpu"))
    refused = {case.name: case.refused for case in planned(one) if case.config is None}
    assert refused == {"half the micro-batch": "the micro-batch is one sequence already"}
    muon = replace(config, optimizer=replace(config.optimizer, name="muon"))
    refused = {case.name: case.refused for case in planned(muon) if case.config is None}
    assert set(refused) == {case.name for case in CASES if ADAMW_ONLY & set(case.keys.items())}
    assert all("optimizer.name is 'muon'" in why for why in refused.values())
    compiled = replace(config, device=replace(config.device, compile="default"))
    assert {case.name for case in planned(compiled) if case.config is None} == {
        "activation offload",
        "chunked + all + activation offload",
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--case", "checkpointing: al"], "did you mean 'checkpointing: all'?"),
        (["--out", "/nowhere/at/all.json"], "there is no such folder"),
        (["--preset", "nothing-like-it"], "no preset is called"),
    ],
)
def test_refusals_are_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    preset = [] if "--preset" in flags else ["--preset", "quickstart"]
    assert main(["bench", "memory", *preset, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
