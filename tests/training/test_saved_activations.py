"""The planner's bytes per token against what autograd really keeps for backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.models.gpt2 import Gpt2

BATCH, SEQ_LEN = 4, 64


def saved_bytes(config: Gpt2Config, *, bf16: bool) -> int:
    """Bytes of all distinct storages that a forward pass keeps, without parameters and their autocast copies."""
    model = Gpt2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    shapes = {tuple(p.shape) for p in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in shapes:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens = torch.zeros((BATCH, SEQ_LEN), dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        torch.nn.functional.linear(model.hidden(tokens), model.head_weight)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("bf16", [False, True])
def test_bytes_per_token_are_those_that_autograd_keeps(bf16: bool) -> None:
    config = Gpt2Config(n_layer=3, n_head=2, n_embd=96, seq_len=SEQ_LEN, vocab_size=192)
    predicted = BATCH * SEQ_LEN * config.saved_bytes_per_token(2 if bf16 else 4)
    # What the formula leaves out: statistics of norms and attention, token ids.
    assert saved_bytes(config, bf16=bf16) == pytest.approx(predicted, rel=0.02)
