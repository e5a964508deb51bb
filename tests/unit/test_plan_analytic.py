"""The analytic tier against closed forms and published sizes."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.analytic import (
    COMPILED_SHARE,
    CPU_PROCESS_BYTES,
    CUDA_CONTEXT_BYTES,
    PARTS,
    Estimate,
    Verdict,
    estimate,
    verdict,
)
from gpuworkbench.plan.vocabulary import promised_vocab_size, with_known_vocabulary
from gpuworkbench.units import GIB

GPT2_PADDED = 124_439_808 + (50_304 - 50_257) * 768


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


def test_gpt2_small_in_bf16_on_a_card() -> None:
    parts = known(config()).parts
    assert parts["weights"] == parts["gradients"] == 4 * GPT2_PADDED
    assert parts["optimizer state"] == 8 * GPT2_PADDED
    assert parts["autocast copies"] == 2 * GPT2_PADDED
    # 4 x 64 tokens: 36 bytes per block, token and channel, and the final norm's and the head's inputs
    assert parts["activations"] == 4 * 64 * 768 * (36 * 12 + 6)
    assert parts["logits"] == 4 * 64 * 50_304 * 12
    assert parts["CUDA context"] == CUDA_CONTEXT_BYTES


def test_fp32_on_a_cpu_has_no_copies_and_no_context() -> None:
    result = known(config(), "cpu")
    assert result.parts["autocast copies"] == result.parts["CUDA context"] == 0
    assert result.parts["activations"] == 4 * 64 * 768 * (64 * 12 + 8)
    assert result.host_bytes == result.total_bytes + CPU_PROCESS_BYTES


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("preset", ["quickstart", "rtx5080_1b", "rtx4090_gpt2_small"])
def test_parts_are_complete_and_sum_up(preset: str, kind: str) -> None:
    result = known(config(preset), kind)
    assert tuple(result.parts) == PARTS
    assert sum(result.parts.values()) == result.total_bytes
    assert result.disk_bytes >= 3 * 12 * result.n_params


def test_the_state_of_the_flagship_is_sixteen_bytes_a_parameter() -> None:
    parts = known(config("rtx5080_1b")).parts
    state = parts["weights"] + parts["gradients"] + parts["optimizer state"]
    assert state == pytest.approx(16 * 985e6, rel=0.001)


def test_chunked_cross_entropy_keeps_one_chunk_and_the_gradients() -> None:
    rows, vocab, width = 8 * 1024, 50_304, 768
    sizes = {"train": {"micro_batch_size": 8, "seq_len": 1024}}
    plain = known(config(**sizes)).parts["logits"]
    chunked = known(config(**sizes, memory={"chunked_cross_entropy": True})).parts["logits"]
    assert plain == rows * vocab * 12
    assert chunked == 1024 * vocab * 8 + vocab * width * 6 + rows * width * 2
    assert plain - chunked > 3 * GIB


def test_a_chunk_is_no_larger_than_the_batch() -> None:
    made = config(memory={"chunked_cross_entropy": True, "cross_entropy_chunk_rows": 10**6})
    assert known(made).parts["logits"] == 256 * 50_304 * 8 + 50_304 * 768 * 6 + 256 * 768 * 2


def test_compiling_keeps_less_and_accumulation_changes_nothing() -> None:
    eager = known(config())
    compiled = known(config(device={"compile": "default"}))
    assert compiled.parts["activations"] == int(eager.parts["activations"] * COMPILED_SHARE)
    assert known(config(train={"grad_accum_steps": 16})) == eager


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
    made = config()
    times = []
    for _ in range(20):
        started = time.perf_counter()
        estimate(made, kind="cuda")
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-3
