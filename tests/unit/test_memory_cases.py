"""What `bench memory` plans: each case a valid configuration of as many tokens a step, one thing changed at a time."""

from __future__ import annotations

import pytest

from gpuworkbench.cli import main
from gpuworkbench.config.presets import load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.memory_cases import AS_CONFIGURED, CASES, PLAIN, planned


def twin() -> RunConfig:
    from gpuworkbench.config.presets import configure

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
    assert not any(case.config.hybrid.enabled for case in cases if case.config)
    assert cases[-1].changed["memory.optimizer_offload"] == "predict_aware"
    assert {"memory.activation_offload": True} in [case.changed for case in cases]


def test_what_cannot_be_measured_says_why() -> None:
    import msgspec

    replace = msgspec.structs.replace
    config = twin()
    one = replace(config, train=replace(config.train, micro_batch_size=1), device=replace(config.device, kind="cpu"))
    refused = {case.name: case.refused for case in planned(one) if case.config is None}
    assert refused == {"half the micro-batch": "the micro-batch is one sequence already"}
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
