"""Activation checkpointing: gradients bit for bit those of the plain pass, memory as the formulas say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.memory.activation_checkpointing import ActivationCheckpointing
from gpuworkbench.models.generate import generate
from gpuworkbench.models.gpt2 import Gpt2

MODES = ["all", "every_n", "selective"]
TOKENS = torch.randint(192, (2, 64), generator=torch.Generator().manual_seed(1))


def model_of(mode: str, dropout: float = 0.0, n_embd: int = 32) -> Gpt2:
    config = Gpt2Config(n_layer=3, n_head=2, n_embd=n_embd, seq_len=64, vocab_size=192, dropout=dropout)
    model = Gpt2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    if mode != "none":
        ActivationCheckpointing(mode, 2, has_dropout=dropout > 0).apply(model)
    return model


def gradients(model: Gpt2, *, bf16: bool = False, compiled: str = "") -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)
    network = torch.compile(model, backend=compiled) if compiled else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = network(TOKENS, TOKENS)
    loss.backward()
    drawn = torch.rand(2)  # the generator ends where it would without recomputation
    return torch.cat([loss.detach()[None], drawn]), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dropout", "bf16", "n_embd"),
    [(0.0, False, 160), (0.2, False, 32), (0.2, True, 32)],  # with 160 the products are oneDNN's where that is faster
)
def test_gradients_are_those_of_the_plain_pass(mode: str, dropout: float, bf16: bool, n_embd: int) -> None:
    loss, expected = gradients(model_of("none", dropout, n_embd), bf16=bf16)
    again, found = gradients(model_of(mode, dropout, n_embd), bf16=bf16)
    assert torch.equal(loss, again)
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())


@pytest.mark.parametrize("mode", ["all", "selective"])
def test_compiled(mode: str) -> None:
    loss, expected = gradients(model_of("none"), compiled="aot_eager")
    again, found = gradients(model_of(mode), compiled="aot_eager")
    assert torch.equal(loss, again)
    assert all(torch.allclose(found[name], grad, atol=1e-6) for name, grad in expected.items())
    torch._dynamo.reset()


def block_runs(model: Gpt2, work: Callable[[], object]) -> int:
    """How often a block's MLP starts while `work` runs."""
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    handles = [block.mlp.register_forward_pre_hook(count) for block in model.h]
    work()
    for handle in handles:
        handle.remove()
    return runs


@pytest.mark.parametrize(("mode", "expected"), [("none", 3), ("all", 6), ("every_n", 5), ("selective", 6)])
def test_which_blocks_are_recomputed(mode: str, expected: int) -> None:
    model = model_of(mode)
    assert block_runs(model, lambda: model(TOKENS, TOKENS).backward()) == expected
    assert model.config.n_layer + model.config.n_recomputed_blocks(mode, 2) == expected


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_recomputed_without_gradients_and_text_is_the_same(mode: str) -> None:
    model, plain = model_of(mode), model_of("none")

    def validate() -> None:
        with torch.no_grad():
            assert torch.equal(model(TOKENS, TOKENS), plain(TOKENS, TOKENS))

    assert block_runs(model, validate) == 3
    options = {"temperature": 0.0, "top_k": 0, "seed": 0, "stop_id": None}
    assert list(generate(model, [1, 2, 3], 8, **options)) == list(generate(plain, [1, 2, 3], 8, **options))


def test_an_unknown_mode_is_a_programmer_error() -> None:
    with pytest.raises(ValueError, match="none of all"):
        ActivationCheckpointing("some")
