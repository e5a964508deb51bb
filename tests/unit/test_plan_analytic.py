"""The analytic tier against closed forms and published sizes. That it is what a step takes: test_plan_measured.py."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_bytes
from gpuworkbench.plan.activation_bytes import COMPILED_SHARE, activations
from gpuworkbench.plan.analytic import (
    CPU_PROCESS_BYTES,
    CUDA_CONTEXT_BYTES,
    CUDA_PROCESS_BYTES,
    HOLES_BLOCKS,
    HOLES_SHARE,
    MOMENTS,
    PARTS,
    Estimate,
    Verdict,
    estimate,
    verdict,
)
from gpuworkbench.plan.targets import PINNED_SHARE
from gpuworkbench.plan.vocabulary import promised_vocab_size, with_known_vocabulary
from gpuworkbench.units import GIB

WIDTH, VOCAB, LAYERS = 768, 50_304, 12
GPT2_PADDED = 124_439_808 + (50_304 - 50_257) * WIDTH
BIG_BATCH = {"micro_batch_size": 8, "seq_len": 1024, "grad_accum_steps": 2}
ROWS = 8 * 1024


def config(preset: str = "rtx5080_gpt2_small_baseline", **sections: dict[str, Any]) -> RunConfig:
    """A preset with keys replaced, by section."""
    made = configure(load_preset(preset))
    changed = {name: msgspec.structs.replace(getattr(made, name), **keys) for name, keys in sections.items()}
    return msgspec.structs.replace(made, **changed)


def known(made: RunConfig, kind: str = "cuda") -> Estimate:
    """An estimate that must exist."""
    result = estimate(made, kind=kind)
    assert result is not None
    return result


def test_gpt2_small_in_bf16_on_a_card_while_the_loss_is_computed() -> None:
    result = known(config(train=BIG_BATCH))
    parts = result.parts
    assert result.moment == "loss"
    assert parts["weights"] == parts["gradients"] == 4 * GPT2_PADDED
    assert parts["optimizer state"] == 8 * GPT2_PADDED
    # copies of the matrices and biases, and of the table that the head multiplies by
    block = 12 * WIDTH * WIDTH + 13 * WIDTH
    assert parts["autocast copies"] == 2 * (LAYERS * block + 2 * WIDTH + VOCAB * WIDTH)
    # 36 bytes per block, token and channel, and the final norm's and the head's inputs
    assert parts["activations"] == ROWS * WIDTH * (36 * LAYERS + 6)
    assert parts["logits"] == ROWS * VOCAB * 12
    assert parts["CUDA context"] == CUDA_CONTEXT_BYTES


def test_a_single_small_micro_batch_peaks_where_the_tables_gradients_meet() -> None:
    """4 x 64 tokens of one micro-batch: no gradients before it, all of them at its end, and of the table
    the head's, the embedding's and their sum."""
    result = known(config())
    assert result.moment == "end of backward"
    table = 4 * VOCAB * WIDTH
    assert result.parts["gradients"] == 4 * GPT2_PADDED - table + 3 * table
    assert result.parts["activations"] == result.parts["logits"] == 0


def test_fp32_on_a_cpu_has_no_copies_and_no_context() -> None:
    result = known(config(train=BIG_BATCH), "cpu")
    assert result.parts["autocast copies"] == result.parts["CUDA context"] == 0
    assert result.parts["activations"] == ROWS * WIDTH * (64 * LAYERS + 8)
    holes = HOLES_BLOCKS * ROWS * VOCAB * 4
    assert holes > HOLES_SHARE * (result.parts["activations"] + result.parts["logits"] + result.parts["gradients"])
    checkpoint = 12 * GPT2_PADDED  # weights and moments once more, for the thread that writes them
    expected = CPU_PROCESS_BYTES + result.total_bytes + holes + checkpoint
    assert result.host_bytes == pytest.approx(expected, abs=2)
    waiting = known(config(train=BIG_BATCH, checkpoint={"in_background": False}), "cpu")
    assert result.host_bytes - waiting.host_bytes == checkpoint


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("preset", ["quickstart", "rtx5080_1b", "rtx5080_1b_exact", "rtx4090_gpt2_small"])
def test_parts_are_complete_and_sum_up_to_the_highest_moment(preset: str, kind: str) -> None:
    result = known(config(preset), kind)
    assert tuple(result.parts) == PARTS
    assert tuple(result.moments) == MOMENTS
    assert sum(result.parts.values()) == result.total_bytes == max(result.moments.values())
    assert result.moments[result.moment] == result.total_bytes
    assert min(result.parts.values()) >= 0
    assert result.host_bytes >= result.pinned_bytes


def test_plain_adamw_is_sixteen_bytes_a_parameter_and_packed_seven() -> None:
    plain = {"weights": "fp32", "packed_optimizer": False}
    for changes, expected in ((plain, 16), ({}, 7)):
        parts = known(config("rtx5080_1b", memory=changes)).parts
        state = sum(parts[name] for name in ("weights", "8-bit residual", "gradients", "optimizer state"))
        assert state == pytest.approx(expected * 985e6, rel=0.01)


def test_the_stacks_are_within_their_budgets() -> None:
    budgets = {"rtx5080_1b": 13.0, "rtx5080_1b_tight": 9.5, "rtx5080_1b_exact": 13.0, "rtx4060ti_1b": 7.5}
    for name, budget in budgets.items():
        assert known(config(name, hybrid={"enabled": True})).total_bytes <= budget * GIB, name
    assert known(config("rtx5080_gpt2_medium")).total_bytes < 6e9
    assert known(config("rtx3050_gpt2_small")).allocator_bytes < 2e9


@pytest.mark.parametrize(
    "name",
    [
        "rtx5080_1b",
        "rtx5080_1b_tight",
        "rtx5080_1b_exact",
        "rtx4060ti_1b",
        "rtx5080_gpt2_xl",
        "rtx5080_gpt2_medium",
        "rtx3050_gpt2_small",
        "rtx5080_gpt2_small_memory",
    ],
)
def test_a_presets_card_is_what_it_is_planned_to_need(name: str) -> None:
    made = config(name)
    assert made.card is not None
    assert known(made).total_bytes <= made.card.memory_gib * GIB


def test_chunked_cross_entropy_keeps_a_chunk_and_the_gradients() -> None:
    plain = known(config(train=BIG_BATCH)).parts["logits"]
    chunked = known(config(train=BIG_BATCH, memory={"chunked_cross_entropy": True})).parts["logits"]
    copies = (VOCAB * WIDTH + ROWS * WIDTH) * 2
    softmax = 1024 * VOCAB * (2 + 4 + 4)
    assert chunked == copies + softmax + VOCAB * WIDTH * 4 + ROWS * WIDTH * 2
    assert plain - chunked > 3 * GIB


def test_a_chunk_is_no_larger_than_the_batch() -> None:
    made = config(memory={"chunked_cross_entropy": True, "cross_entropy_chunk_rows": 10**6}, train=BIG_BATCH)
    held, table, rows = ROWS * VOCAB * 6, VOCAB * WIDTH * 4, ROWS * WIDTH * 2
    during = max(ROWS * VOCAB * 10, held + VOCAB * WIDTH * 2 + table) + rows
    assert known(made).parts["logits"] == VOCAB * WIDTH * 2 + rows + during


def test_compiling_keeps_less_and_accumulation_counts_once() -> None:
    eager = known(config(train=BIG_BATCH))
    compiled = known(config(train=BIG_BATCH, device={"compile": "default"}))
    ends = ROWS * WIDTH * 6
    assert compiled.parts["activations"] == int((eager.parts["activations"] - ends) * COMPILED_SHARE) + ends
    assert known(config(train=BIG_BATCH | {"grad_accum_steps": 16})) == eager


def test_checkpointing_keeps_inputs_and_activation_offload_moves_the_rest() -> None:
    made = config("rtx5080_1b_tight")
    n_rows, channels = 8 * 1024, 1536
    # bf16 weights, so a bf16 stream: 2 bytes a block and channel, and 6 at the ends
    kept = activations(made, n_rows, 2)
    assert (kept.saved, kept.host) == (n_rows * channels * (2 * 32 + 6), 0)
    assert kept.block == n_rows * channels * (36 - 4)
    offloaded = config("rtx5080_1b_tight", memory={"activation_offload": True})
    assert activations(offloaded, n_rows, 2).saved == n_rows * channels * (2 * 2 + 6)
    assert known(offloaded).pinned_bytes - known(made).pinned_bytes == n_rows * channels * 2 * 32


def test_state_on_the_host_is_pinned_and_counted_there() -> None:
    exact = known(config("rtx5080_1b_exact", hybrid={"enabled": False}))
    storage = storage_bytes(config("rtx5080_1b_exact"))
    n_params = storage.weights // 2
    assert exact.pinned_bytes == storage.host_state == 12 * n_params
    assert exact.parts["optimizer state"] == 0
    assert exact.parts["staging"] == storage.staging > 0
    # with jumps: slow weights and momentum in fp32, and the copy to undo one: bf16 weights, masters and moments
    in_memory = known(config("rtx5080_1b_exact", hybrid={"undo_storage": "memory"}))
    assert in_memory.pinned_bytes == (12 + 8 + 2 + 12) * n_params


def test_undo_copies_on_disk_are_the_disks() -> None:
    """bf16 weights, fp32 masters and moments: 14 bytes a parameter less of pinned memory, and as many more of disk."""
    in_memory = known(config("rtx5080_1b_exact", hybrid={"undo_storage": "memory"}))
    on_disk = known(config("rtx5080_1b_exact", hybrid={"undo_storage": "disk"}))
    undo = 14 * storage_bytes(config("rtx5080_1b_exact")).weights // 2
    assert in_memory.pinned_bytes - on_disk.pinned_bytes == in_memory.host_bytes - on_disk.host_bytes == undo
    assert on_disk.disk_bytes - in_memory.disk_bytes == on_disk.undo_disk_bytes == undo
    assert in_memory.undo_disk_bytes == 0
    assert (on_disk.parts, on_disk.moments) == (in_memory.parts, in_memory.moments)


@pytest.mark.parametrize("preset", ["rtx5080_1b_exact", "rtx4060ti_1b"])
def test_exact_presets_fit_a_host_of_32_gb(preset: str) -> None:
    """With the hybrid trainer on. 31 GiB are what such a host has, 80 % of them can be pinned."""
    made = known(config(preset, hybrid={"enabled": True}))
    assert made.host_bytes < 0.8 * 31 * GIB
    assert made.pinned_bytes < PINNED_SHARE * 31 * GIB


def test_a_copy_of_undo_copies_is_only_made_of_a_cards() -> None:
    """From 8 bytes of fp32 state a parameter, and 12 of undo copies: the host copies those of a card."""
    on_card = known(config("quickstart", hybrid={"enabled": True}))
    on_host = known(config("quickstart", hybrid={"enabled": True}), "cpu")
    n_params = on_host.parts["weights"] // 4
    assert on_card.host_bytes - CUDA_PROCESS_BYTES == (12 + 8 + 12) * n_params
    beside = on_host.host_bytes - on_host.total_bytes - CPU_PROCESS_BYTES
    holes = HOLES_BLOCKS * 8 * 128 * 4096 * 4  # of one micro-batch's logits each
    assert beside == (12 + 8) * n_params + holes


def test_a_predictors_state_lies_where_it_is_told_to() -> None:
    off = known(config("rtx5080_1b", hybrid={"enabled": False}))
    host = known(config("rtx5080_1b", hybrid={"enabled": True, "state_device": "host"}))
    device = known(config("rtx5080_1b", hybrid={"enabled": True, "state_device": "device"}))
    storage = storage_bytes(config("rtx5080_1b"))
    n_params = storage.weights // 2
    assert host.total_bytes == off.total_bytes
    # outer_nesterov: slow weights and momentum in fp32; undo: weights, residual and moments
    undo = storage.weights + storage.residual + storage.optimizer_state
    assert host.pinned_bytes == 8 * n_params + undo
    # the undo copy too: the true steps that judge a jump run beside it
    assert device.total_bytes - off.total_bytes == device.parts["predictor, undo"] == 8 * n_params + undo
    assert off.predict_bytes is None
    assert host.predict_bytes is not None
    assert host.predict_bytes < host.total_bytes


def test_only_phases_with_true_steps_count_and_none_but_full_where_nothing_is_predicted() -> None:
    """rtx4090_gpt2_small has the hybrid trainer off. A predicted phase has true steps where it is cut into jumps."""
    off = known(config("rtx4090_gpt2_small"))
    for phase in ("warmup", "predict", "correct"):
        assert known(config("rtx4090_gpt2_small", memory={f"precision_{phase}": "fp32"})) == off
    wider = known(config("rtx4090_gpt2_small", memory={"precision_full": "fp32"})).total_bytes
    assert wider > 1.2 * off.total_bytes

    def takes_more(phase: str, **hybrid: Any) -> bool:
        keys = {"enabled": True, "predictor": "line_jump", "undo_storage": "disk", **hybrid}
        plain = known(config("rtx4090_gpt2_small", hybrid=keys))
        made = known(config("rtx4090_gpt2_small", hybrid=keys, memory={f"precision_{phase}": "fp32"}))
        return made.total_bytes > 1.2 * plain.total_bytes

    assert takes_more("correct")
    assert takes_more("warmup")
    assert not takes_more("warmup", warmup_steps=0)
    assert takes_more("predict")
    assert not takes_more("predict", correction_interval=0)
    assert not takes_more("predict", correction_interval=5)
    assert not takes_more("predict", predictor="outer_nesterov")
    assert not takes_more("predict", predictor="outer_nesterov", bandit_predictors="line_jump")  # nobody chooses
    assert takes_more("predict", predictor="outer_nesterov", bandit=True, bandit_predictors="line_jump")


def test_a_jump_is_probed_in_its_own_precision_and_validated_in_fulls() -> None:
    keys = {"enabled": True, "predictor": "outer_nesterov"}
    bf16 = known(config(hybrid=keys)).moments
    own = known(config(hybrid=keys, memory={"precision_predict": "fp32"})).moments
    assert {name for name in MOMENTS if own[name] != bf16[name]} == {"jump"}
    full = known(config(hybrid=keys, memory={"precision_full": "fp32"})).moments
    assert full["validation"] != bf16["validation"]
    assert full["jump"] == bf16["jump"]


def test_a_predicted_phase_takes_half_where_the_state_leaves() -> None:
    """The aim for rtx5080_gpt2_small_memory: 40 to 60 % below full."""
    made = known(config("rtx5080_gpt2_small_memory", hybrid={"enabled": True}))
    assert made.predict_bytes is not None
    assert 0.4 <= 1 - made.predict_bytes / made.total_bytes <= 0.6


@pytest.mark.parametrize(
    ("needed", "expected"),
    [(0, Verdict.FITS), (920, Verdict.FITS), (921, Verdict.TIGHT), (1000, Verdict.TIGHT), (1001, Verdict.DOES_NOT_FIT)],
)
def test_verdicts_at_their_limits(needed: int, expected: Verdict) -> None:
    assert verdict(needed, 1000) is expected


def test_an_unknown_vocabulary_is_no_estimate() -> None:
    assert estimate(config(data={"tokenizer": "some-new-one"}), kind="cpu") is None


@pytest.mark.parametrize(
    ("name", "size"),
    [("byte", 257), ("bpe-8192", 8192), ("gpt2", 50_257), ("bpe-", None), ("bpe-x", None), ("bpe-²", None), ("", None)],
)
def test_promised_vocabularies(name: str, size: int | None) -> None:
    assert promised_vocab_size(name) == size


def test_a_stated_vocabulary_is_not_overruled() -> None:
    made = config("rtx5080_1b")
    assert with_known_vocabulary(made) is made


def test_an_estimate_takes_less_than_a_millisecond() -> None:
    made = config("rtx5080_1b", hybrid={"enabled": True})
    times = []
    for _ in range(50):
        started = time.process_time()
        estimate(made, kind="cuda")
        times.append(time.process_time() - started)
    assert min(times) < 1e-3
