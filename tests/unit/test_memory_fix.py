"""The one change that would have fitted, against the planner's estimates."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.validate import problems
from gpuworkbench.plan.analytic import TIGHT_SHARE, estimate
from gpuworkbench.plan.fit_me import candidates
from gpuworkbench.plan.memory_fix import FIX_KEYS, find_fix, micro_batches, with_changes
from gpuworkbench.units import GIB


def config(preset: str = "rtx4090_gpt2_small", **keys: Any) -> RunConfig:
    changes = {key.replace("__", "."): value for key, value in keys.items()}
    return with_changes(configure(load_preset(preset)), changes)


def total(made: RunConfig) -> int:
    found = estimate(made, kind="cuda")
    assert found is not None
    return found.total_bytes


def test_the_micro_batch_is_halved_as_often_as_the_limit_asks_for() -> None:
    made = config()
    for size, accum in ((8, 64), (4, 128), (2, 256)):
        smaller = with_changes(made, {"train.micro_batch_size": size, "train.grad_accum_steps": accum})
        fix = find_fix(made, kind="cuda", limit_bytes=int(total(smaller) / TIGHT_SHARE) + 1)
        assert fix is not None
        assert fix.changes == {"train.micro_batch_size": size, "train.grad_accum_steps": accum}
        assert fix.fits
        assert fix.predicted_bytes == total(smaller)
        assert fix.flags() == f"--set train.micro_batch_size={size} --set train.grad_accum_steps={accum}"


def test_every_block_may_be_recomputed_where_every_fourth_was() -> None:
    made = config(memory__activation_checkpointing="every_n", memory__activation_checkpointing_every=4)
    assert made.memory.activation_checkpointing_every == 4
    every = with_changes(made, {"memory.activation_checkpointing": "all"})
    assert every.memory.activation_checkpointing_every == 2
    assert not list(problems(every))


def test_what_was_seen_beyond_the_estimate_is_added_to_every_estimate() -> None:
    made = config()
    quarter = with_changes(made, {"train.micro_batch_size": 4, "train.grad_accum_steps": 128})
    halved = with_changes(made, {"train.micro_batch_size": 8, "train.grad_accum_steps": 64})
    unplanned = (total(halved) - total(quarter)) // 2  # a quarter fits all the same
    limit = int(total(halved) / TIGHT_SHARE) + 1
    as_planned = find_fix(made, kind="cuda", limit_bytes=limit)
    seen = find_fix(made, kind="cuda", limit_bytes=limit, needed_bytes=total(made) + unplanned)
    assert as_planned is not None
    assert seen is not None
    assert as_planned.changes["train.micro_batch_size"] == 8
    assert seen.changes["train.micro_batch_size"] == 4
    assert seen.predicted_bytes == total(quarter) + unplanned


def test_without_a_micro_batch_to_halve_something_else_is_proposed() -> None:
    off = {"memory__chunked_cross_entropy": False, "memory__cross_entropy_chunk_rows": 128}
    made = config("rtx5080_gpt2_medium", train__micro_batch_size=1, **off)
    fix = find_fix(made, kind="cuda", limit_bytes=int(total(made) * 0.99))
    assert fix is not None
    assert fix.changes == {"memory.chunked_cross_entropy": True}
    assert fix.flags() == "--set memory.chunked_cross_entropy=true"


def test_the_closest_is_named_where_nothing_is_enough() -> None:
    made = config("rtx5080_1b")
    fix = find_fix(made, kind="cuda", limit_bytes=4 * GIB)
    assert fix is not None
    assert fix.fits is False
    assert fix.predicted_bytes < total(made)


def test_nothing_is_proposed_that_could_not_go_on_from_the_runs_checkpoints() -> None:
    """State streamed beside bf16 weights has fp32 masters, which no checkpoint without them can give."""
    keys = {
        "train__micro_batch_size": 1,
        "memory__chunked_cross_entropy": True,
        "memory__activation_checkpointing": "all",
        "memory__packed_optimizer": False,
    }
    made = config("rtx5080_1b", memory__weights="bf16", **keys)
    streamed = with_changes(made, {"memory.optimizer_offload": "streamed"})
    assert total(streamed) < total(made)
    assert find_fix(made, kind="cuda", limit_bytes=4 * GIB) is None
    in_fp32 = config("rtx5080_1b", memory__weights="fp32", **keys)
    fix = find_fix(in_fp32, kind="cuda", limit_bytes=4 * GIB)
    assert fix is not None
    assert fix.changes == {"memory.optimizer_offload": "streamed"}


def test_what_validation_cannot_use_is_not_proposed_for_it() -> None:
    assert find_fix(config(), kind="cuda", limit_bytes=GIB, validating=True) is None, "chunked already"
    plain = config(memory__chunked_cross_entropy=False)
    fix = find_fix(plain, kind="cuda", limit_bytes=64 * GIB, validating=True)
    assert fix is not None
    assert fix.changes == {"memory.chunked_cross_entropy": True}


@given(size=st.integers(1, 200), accum=st.integers(1, 50))
def test_tokens_per_step_are_kept_and_the_last_is_one(size: int, accum: int) -> None:
    found = list(micro_batches(config(train__micro_batch_size=size, train__grad_accum_steps=accum)))
    sizes = [size, *(int(changes["train.micro_batch_size"]) for changes in found)]
    assert all(2 * after <= before for before, after in pairwise(sizes))
    assert sizes[-1] == 1
    for changes in found:
        assert int(changes["train.micro_batch_size"]) * int(changes["train.grad_accum_steps"]) == size * accum


def test_a_change_that_the_configuration_refuses_is_passed_over() -> None:
    """schedule.batch_start_sequences = 4 divides 12, but neither divides 6 or 3 nor is a multiple of them."""
    made = config(
        train__micro_batch_size=12,
        train__grad_accum_steps=2,
        schedule__batch_start_sequences=4,
        schedule__batch_warmup_tokens=100_000,
        eval__tokens=12 * 1024,
    )
    fix = find_fix(made, kind="cuda")
    assert fix is not None
    assert fix.changes == {"train.micro_batch_size": 1, "train.grad_accum_steps": 24}
    assert set(fix.changes) <= set(FIX_KEYS)


def test_state_is_never_moved_for_predictions_that_nobody_makes() -> None:
    """Neither as the one fix nor among the other ways."""
    for limit_gib in (1, 2, 4, 8):
        made = config()
        assert not made.hybrid.enabled
        fix = find_fix(made, kind="cuda", limit_bytes=limit_gib * GIB)
        assert fix is None or fix.changes.get("memory.optimizer_offload") != "predict_aware"
    assert all(each.memory.optimizer_offload != "predict_aware" for each in candidates(config(), "cuda"))
