"""Generation: cached equals uncached, own randomness, limits of the window, hostile prompts."""

import pytest
import torch

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.errors import UserError, WorkbenchError
from gpuworkbench.models import build_model
from gpuworkbench.models.generate import generate, pick_token

CONFIG = Gpt2Config(n_layer=2, n_head=2, n_embd=32, seq_len=16, vocab_size=100, dropout=0.3)


@pytest.fixture
def model():
    model = build_model(CONFIG, seed=2)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # at initialisation a tied model repeats its last token
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return model.double()


def test_cached_hidden_states_equal_the_uncached(model):
    model.eval()
    idx = torch.randint(100, (3, 16), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    parts = [model.hidden(idx[:, :5], cache), *(model.hidden(idx[:, t : t + 1], cache) for t in range(5, 16))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(idx), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="17 tokens"):
        model.hidden(idx[:, :1], cache)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prompt", [[1], list(range(15)), list(range(60))])
def test_cached_tokens_equal_the_uncached_beyond_the_window_too(model, temperature, prompt):
    arguments = {"temperature": temperature, "top_k": 7, "seed": 3}
    cached = list(generate(model, prompt, 25, **arguments))
    assert cached == list(generate(model, prompt, 25, use_cache=False, **arguments))
    assert len(cached) == 25
    assert len(set(cached)) > 5
    assert all(0 <= token < 100 for token in cached)


def test_greedy_follows_the_logits(model):
    model.eval()
    expected, context = [], [4, 7]
    for _ in range(30):
        token = int(model(torch.tensor([context[-16:]]))[0, -1].argmax())
        expected.append(token)
        context.append(token)
    assert list(generate(model, [4, 7], 30, temperature=0.0)) == expected


def test_it_stops_before_the_end_of_text(model):
    tokens = list(generate(model, [4, 7], 30, seed=2))
    stop_id = tokens[11]
    until = tokens[: tokens.index(stop_id)]
    assert list(generate(model, [4, 7], 30, seed=2, stop_id=stop_id)) == until
    assert list(generate(model, [4, 7], 30, seed=2, stop_id=min(set(range(100)) - set(tokens)))) == tokens


def test_sampling_leaves_training_as_it_was(model):
    model.train()
    model.h[1].eval()  # a frozen part stays frozen
    before = torch.get_rng_state()
    tokens = generate(model, [1, 2], 5, seed=1)
    next(tokens)
    assert model.training  # between two tokens as well
    list(tokens)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.h[0].training
    assert not model.h[1].training
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_decides(model):
    a, b = (list(generate(model, [1], 12, seed=4)) for _ in range(2))
    assert a == b
    assert a != list(generate(model, [1], 12, seed=5))
    assert a == list(generate(model, [1], 12, generator=torch.Generator().manual_seed(4)))


def test_draws_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0])
    generator = torch.Generator().manual_seed(0)
    n = 4000
    counts = torch.zeros(4)
    for _ in range(n):
        counts[pick_token(logits, temperature=0.7, top_k=3, generator=generator)] += 1
    expected = n * torch.where(torch.arange(4) < 3, (logits / 0.7).exp(), 0.0) / (logits[:3] / 0.7).exp().sum()
    assert counts[3] == 0
    chi_squared = ((counts - expected)[:3] ** 2 / expected[:3]).sum()
    assert chi_squared < 13.8  # 2 degrees of freedom, p = 0.001; the generator is seeded, so this cannot flicker


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 100.0])
def test_extreme_temperatures(temperature):
    generator = torch.Generator().manual_seed(0)
    token = pick_token(torch.tensor([-1e30, 5.0, 4.0]), temperature=temperature, top_k=0, generator=generator)
    assert token == 1 if temperature < 1 else token in (1, 2)


def test_top_k_larger_than_the_vocabulary_is_all_of_it(model):
    assert list(generate(model, [1], 8, top_k=5000)) == list(generate(model, [1], 8, top_k=0))


@pytest.mark.parametrize("prompt", [[], [100], [-1], [3, 10**12]])
def test_bad_prompts_are_one_line(model, prompt):
    with pytest.raises(UserError) as caught:
        generate(model, prompt, 3)
    assert "\n" not in caught.value.line()


def test_logits_that_are_not_numbers_are_named(model):
    with torch.no_grad():
        model.ln_f.weight[0] = torch.nan
    with pytest.raises(WorkbenchError, match="not finite"):
        next(generate(model, [1], 1))


def test_no_tokens_wanted(model):
    assert list(generate(model, [1], 0)) == []
