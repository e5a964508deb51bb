"""Text generation, token by token, that leaves the model and every random state but its own as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gpuworkbench.errors import UserError, WorkbenchError
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.models.head import head_logits


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that continue `prompt_ids`; none from the first `stop_id` on.

    `temperature` 0 is greedy; `top_k` 0 samples from all tokens. Draws come from a CPU generator of this call's own
    (`seed`), or from `generator`, so they are the same on every device and never touch the training's. Between two
    tokens the model is in the mode it was found in. Contexts longer than `model.seq_len` are cut to their end.
    Raises UserError for an empty prompt or foreign ids, WorkbenchError when the logits are not numbers.
    """
    context = _checked_prompt(prompt_ids, model.vocab_size)
    draws = generator or torch.Generator(device="cpu").manual_seed(seed)

    def tokens() -> Iterator[int]:
        window = _Window(model, context, use_cache)
        for _ in range(max_new_tokens):
            token = pick_token(window.next_logits(), temperature=temperature, top_k=top_k, generator=draws)
            if token == stop_id:
                return
            window.append(token)
            yield token

    return tokens()


class _Window:
    """The last `model.seq_len` tokens, and the cache of what was computed for them, while that is valid."""

    def __init__(self, model: LanguageModel, tokens: list[int], use_cache: bool) -> None:
        self.model = model
        self.tokens = tokens[-model.seq_len :]
        self.pending = self.tokens  # not in the cache yet
        self.cache = model.new_cache() if use_cache else None

    def append(self, token: int) -> None:
        self.tokens = [*self.tokens, token][-self.model.seq_len :]
        self.pending = [token]

    def next_logits(self) -> Tensor:
        """(vocab_size,) for the token that follows."""
        model = self.model
        if self.cache is not None and self.cache.length + len(self.pending) > self.cache.capacity:
            self.cache = None  # positions move with a full window: nothing computed before can be used again
        ids = self.tokens if self.cache is None else self.pending
        idx = torch.tensor([ids], dtype=torch.int64, device=model.head_weight.device)
        with _evaluating(model), torch.no_grad():
            hidden = model.hidden(idx) if self.cache is None else model.hidden(idx, self.cache)
            return head_logits(hidden[0, -1], model.head_weight, model.vocab_size)


def pick_token(logits: Tensor, *, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One token id from `logits` (vocab_size,). Raises WorkbenchError when no probabilities can be made of them."""
    logits = logits.float().cpu()
    if not torch.isfinite(logits).all():
        raise WorkbenchError("the model's logits are not finite numbers", "sample from an earlier checkpoint")
    if temperature == 0.0:
        return int(logits.argmax())
    # relative to the largest, so that a very small temperature drives the others to -inf, not to overflow
    logits = (logits - logits.max()) / temperature
    if 0 < top_k < logits.numel():
        values, ids = logits.topk(top_k)
        return int(ids[_draw(values, generator)])
    return _draw(logits, generator)


def _draw(logits: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))


def _checked_prompt(prompt_ids: Sequence[int], vocab_size: int) -> list[int]:
    ids = [int(token) for token in prompt_ids]
    if not ids:
        raise UserError("the prompt has no tokens", "give at least one character")
    foreign = [token for token in ids if not 0 <= token < vocab_size]
    if foreign:
        raise UserError(
            f"prompt token {foreign[0]} is outside of the model's vocabulary of {vocab_size}",
            "encode the prompt with the tokenizer of the run",
        )
    return ids


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    """Evaluation mode, undone for exactly those modules that were training."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
