"""Training under an answer mask: every scored token of a step weighs the same, whichever micro-batch it falls in."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gpuworkbench.data import TokenArray
from gpuworkbench.memory.chunked_cross_entropy import ChunkedCrossEntropy
from gpuworkbench.models.head import plain_cross_entropy
from gpuworkbench.training.batches import TrainBatches
from gpuworkbench.training.evaluate import evaluate
from gpuworkbench.training.loop import optimizer_step, train_one_step
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns

QUIET = {"model.dropout": 0.0, "eval.interval_steps": 0, "train.grad_clip_norm": 0.0}


def opened(local: LocalRuns, run_id: str, sets: dict[str, Any]) -> TrainingRun:
    run = local.open(local.create(run_id, {**QUIET, **sets}))
    run.model.train().double()
    return run


def masked(run: TrainingRun, mask: np.ndarray) -> None:
    """Give the run's training tokens an answer mask."""
    old = run.train_batches
    tokens = TokenArray([old.tokens.slice(0, len(old.tokens))], [mask])
    run.train_batches = TrainBatches(tokens, old.order.seq_len, old.order.seed, old.batch_size, old.device)


def rare_answers(n_tokens: int) -> np.ndarray:
    """Stretches of 3 to 40 scored tokens, many windows without any."""
    generator = np.random.default_rng(0)
    mask = np.zeros(n_tokens, dtype=np.uint8)
    for start in generator.integers(0, n_tokens, n_tokens // 60):
        mask[start : start + int(generator.integers(3, 40))] = 1
    return mask


@pytest.mark.parametrize(("micro_batch_size", "grad_accum_steps"), [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize("chunked", [False, True])
def test_accumulation_equals_the_mean_over_one_batch(
    local: LocalRuns, micro_batch_size: int, grad_accum_steps: int, chunked: bool
) -> None:
    sets = {
        "train.micro_batch_size": micro_batch_size,
        "train.grad_accum_steps": grad_accum_steps,
        "memory.chunked_cross_entropy": chunked,
        "memory.cross_entropy_chunk_rows": 5,
    }
    run = opened(local, f"masked-{micro_batch_size}-{chunked}", sets)
    masked(run, rare_answers(len(run.train_batches.tokens)))
    raw = copy.deepcopy(run.model)
    x, y = (torch.cat([run.train_batches.at(i)[side] for i in range(0, 8, micro_batch_size)]) for side in (0, 1))
    per_sequence = (y != -100).sum(1)
    assert (per_sequence == 0).any()
    assert per_sequence.unique().numel() > 2
    loss = F.cross_entropy(raw(x).flatten(0, 1), y.flatten())
    loss.backward()
    used: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        used.update({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})

    run.optimizer.step = keep  # type: ignore[method-assign, assignment]
    got, _, scored = optimizer_step(run)
    run.events.close()
    assert float(got) == pytest.approx(float(loss.detach()), rel=1e-10)
    assert scored is not None
    assert int(scored) == int(per_sequence.sum())
    for name, parameter in raw.named_parameters():
        torch.testing.assert_close(used[name], parameter.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("everything", [False, True])
def test_without_unscored_tokens_every_bit_is_as_before(local: LocalRuns, everything: bool) -> None:
    """Against the plain formula, mean of means; a mask of ones gives the same numbers, but for rounding."""
    run = opened(local, f"plain-{everything}", {})
    run.model.float()
    if everything:
        masked(run, np.ones(len(run.train_batches.tokens), dtype=np.uint8))
    raw = copy.deepcopy(run.model)
    losses = []
    for start in (0, 4):
        x, y = run.train_batches.at(start)
        loss = F.cross_entropy(_padded_logits(raw, x), y.flatten())
        (loss / 2).backward()
        losses.append(loss.detach())
    expected = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(p.grad) for p in raw.parameters() if p.grad is not None])
    )
    got, norm, scored = optimizer_step(run)
    run.events.close()
    assert (scored is None) == (not everything)
    assert float(got) == float((losses[0] + losses[1]) / 2)
    assert float(norm) == pytest.approx(float(expected), rel=1e-6)


def _padded_logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    """(B * T, V_padded), the padding at -inf: the logits as the model's own loss has them."""
    logits = F.linear(model.hidden(x).flatten(0, 1), model.head_weight)
    bias = torch.zeros(logits.shape[1])
    bias[model.vocab_size :] = -torch.inf
    return logits + bias


def test_a_step_without_answers_has_no_loss_and_no_gradient(local: LocalRuns) -> None:
    run = opened(local, "nothing", {"optimizer.weight_decay": 0.0})
    masked(run, np.zeros(len(run.train_batches.tokens), dtype=np.uint8))
    before = copy.deepcopy(run.model)
    assert train_one_step(run) is None
    run.telemetry.flush()
    run.events.close()
    for was, now in zip(before.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(was, now)
    (event,) = local.events(run.paths, "step")
    assert event["loss"] is None
    assert event["scored_tokens"] == 0
    assert event["tokens_seen"] == run.config.tokens_per_step
    assert "nonfinite" not in event
    assert not local.events(run.paths, "warning")


@pytest.mark.parametrize("loss_of", [plain_cross_entropy, ChunkedCrossEntropy(4)])
def test_loss_of_nothing_is_zero_and_finite(loss_of: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator, requires_grad=True)
    weight = torch.randn(64, 8, generator=generator, requires_grad=True)
    loss = loss_of(hidden, weight, torch.full((6,), -100), 50)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.count_nonzero(gradient) == 0


def test_validation_is_the_mean_over_scored_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 5, 11, generator=generator, dtype=torch.float64) for _ in range(3)]
    targets = [torch.randint(11, (2, 5), generator=generator) for _ in range(3)]
    targets[0][:, 1:] = -100
    targets[1][:] = -100
    by_batch = {y.data_ptr(): logit for y, logit in zip(targets, logits, strict=True)}

    def forward(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        mean = F.cross_entropy(by_batch[y.data_ptr()].flatten(0, 1), y.flatten())
        return torch.nan_to_num(mean)

    result = evaluate(forward, torch.nn.Module(), [(y, y) for y in targets])
    expected = F.cross_entropy(torch.cat(logits).flatten(0, 1), torch.cat(targets).flatten())
    assert result.loss == pytest.approx(float(expected), rel=1e-12)
    assert result.tokens == 2 + 10
    assert math.isnan(evaluate(forward, torch.nn.Module(), [(targets[1], targets[1])]).loss)
