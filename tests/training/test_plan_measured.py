"""The planner's formulas and its traced step against what torch's profiler counts in a real step on a CPU."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.tools.probe import probe
from gpuworkbench.tools.trace import trace
from gpuworkbench.training.optimizers.compact_adamw import CompactAdamW
from gpuworkbench.training.optimizers.groups import Group

MODEL = Gpt2Config(n_layer=3, n_head=2, n_embd=96, seq_len=64, vocab_size=1024)
BASE: dict[str, Any] = {"micro_batch_size": 4, "grad_accum_steps": 1, "threads": 1, "max_steps": 2}


def config(train: dict[str, Any], memory: dict[str, Any], model: Gpt2Config = MODEL) -> RunConfig:
    made = RunConfig(schema_version=1, model=model)
    replace = msgspec.structs.replace
    return replace(
        made,
        train=replace(made.train, **(BASE | train)),
        memory=replace(made.memory, **memory),
        eval=replace(made.eval, interval_steps=0),
    )


SHORT = {"micro_batch_size": 1, "seq_len": 16}  # a step whose update is its highest point
PACKED = {"weights": "bf16", "packed_optimizer": True}

CASES = {
    "plain": ({}, {}),
    "accumulation": ({"grad_accum_steps": 3}, {}),
    "the table's gradients meet": ({"micro_batch_size": 1, "seq_len": 16}, {}),
    "bf16 products": ({"grad_accum_steps": 2}, {"precision": "bf16"}),
    "chunked loss": (
        {"grad_accum_steps": 2},
        {"chunked_cross_entropy": True, "cross_entropy_chunk_rows": 64},
    ),
    "the table's gradients meet in place": (
        {"micro_batch_size": 1, "seq_len": 16},
        {"chunked_cross_entropy": True},
    ),
    "recomputed": ({"micro_batch_size": 8}, {"activation_checkpointing": "all", "chunked_cross_entropy": True}),
    "selective": ({"grad_accum_steps": 2}, {"activation_checkpointing": "selective"}),
    "every other block": ({}, {"activation_checkpointing": "every_n"}),
    "packed": (SHORT, PACKED),
    "updated in backward": ({"grad_clip_norm": 0.0}, {"optimizer_in_backward": True}),
    "updated in backward, short": (SHORT | {"grad_clip_norm": 0.0}, {"optimizer_in_backward": True}),
}


@pytest.fixture(autouse=True)
def _settings() -> Any:
    """What a probe sets for its own process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CASES)
def test_trace_and_formulas_are_what_a_step_takes(name: str) -> None:
    """The trace within 2 %; the formulas within 5 %, and never under by more than 2 %.

    Not here: a chunked loss in bf16, where a CPU's kernel adds bf16 to fp32 through a copy that a card's does not make.
    """
    made = config(*CASES[name])
    measured = probe(made, "cpu").peak_bytes
    traced = trace(made, "cpu").total_bytes
    predicted = estimate(made, kind="cpu")
    assert predicted is not None
    assert traced == pytest.approx(measured, rel=0.02)
    assert -0.02 <= predicted.total_bytes / measured - 1 <= 0.05


def test_a_trace_for_a_card_needs_none_and_no_memory() -> None:
    """A model of 7B: nothing of it is ever allocated."""
    big = Gpt2Config(n_layer=2, n_head=32, n_embd=4096, seq_len=2048, vocab_size=50_304)
    made = config({"micro_batch_size": 1}, {"precision": "bf16"}, big)
    found = trace(made, "cuda")
    predicted = estimate(made, kind="cuda")
    assert predicted is not None
    assert found.parts["weights"] == predicted.parts["weights"]
    assert found.total_bytes > 8 * 2**30


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_trace_that_updates_one_parameter_of_each_size_finds_what_one_that_updates_all_does(
    monkeypatch: pytest.MonkeyPatch, accumulated: int
) -> None:
    """A model of 1B has 900 pieces of 1M elements: all of them on fake tensors take minutes."""
    made = config(SHORT | {"grad_accum_steps": accumulated}, PACKED)
    updated: list[int] = []
    update = CompactAdamW._update

    def counted(self: CompactAdamW, parameter: Tensor, grad: Tensor, group: Group) -> None:
        updated.append(parameter.numel())
        update(self, parameter, grad, group)

    monkeypatch.setattr(CompactAdamW, "_update", counted)
    some = trace(made, "cuda")
    assert len(updated) == len(set(updated)) > 0
    updated.clear()
    monkeypatch.setattr("gpuworkbench.tools.trace.update_one_of_each_size", lambda rig: None)
    every = trace(made, "cuda")
    assert len(updated) > len(set(updated))
    assert some.parts == every.parts


def test_a_probe_measures_time_and_the_process() -> None:
    found = probe(config({}, {}), "cpu")
    assert found.step_time_s > 0
    assert found.host_rss_bytes is not None
    assert found.host_rss_bytes > found.peak_bytes
