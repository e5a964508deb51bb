"""GPT-2: parity with transformers, exact parameter counts, initialisation, padding, causality."""

import math
import time

import msgspec
import pytest
import torch
from torch.nn import functional as F

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.models import build_model, build_on_meta, count_parameters

TINY = Gpt2Config(n_layer=2, n_head=2, n_embd=32, seq_len=16, vocab_size=100)
SIZES = {
    "tiny": TINY,
    "small": Gpt2Config(vocab_size=50257),
    "medium": Gpt2Config(n_layer=24, n_head=16, n_embd=1024, vocab_size=50257),
    "xl": Gpt2Config(n_layer=48, n_head=25, n_embd=1600, vocab_size=50257),
    "985M": Gpt2Config(n_layer=32, n_head=12, n_embd=1536, vocab_size=50304),
}
PUBLISHED = {"small": 124_439_808, "medium": 354_823_168, "xl": 1_557_611_200}


def batch(config: Gpt2Config, b: int = 3, t: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (b, t + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def randomised(config: Gpt2Config, seed: int = 1) -> torch.nn.Module:
    """Every parameter random (biases, norms and padding rows too), so that nothing is tested only at 0 or 1."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_equal_the_formulas(name):
    config = SIZES[name]
    assert count_parameters(config) == config.n_allocated_params()
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    assert count_parameters(config) - padding == config.n_params()
    assert config.n_params() == PUBLISHED.get(name, config.n_params())


def test_the_flagship_has_985_million_parameters():
    assert round(SIZES["985M"].n_params() / 1e6) == 985


def test_tied_table_is_one_parameter():
    model = build_model(TINY, seed=0)
    assert model.head_weight.data_ptr() == model.wte.weight.data_ptr()
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))


def test_logits_and_loss_equal_transformers():
    transformers = pytest.importorskip("transformers")
    config = TINY
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.seq_len,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            attn_implementation="eager",
        )
    ).eval()
    model = randomised(config).eval()
    ours = model.state_dict()
    renamed = {}
    for name, target in reference.transformer.state_dict().items():
        value = ours[name]
        if name == "wte.weight":
            value = value[: config.vocab_size]
        elif name.endswith("weight") and ".c_" in name:
            value = value.t()  # the published model stores (in, out)
        assert value.shape == target.shape, name
        renamed[name] = value
    reference.transformer.load_state_dict(renamed)
    idx, targets = batch(config)
    with torch.no_grad():
        expected = reference(idx).logits
        torch.testing.assert_close(model(idx), expected, rtol=1e-5, atol=1e-5)
        expected_loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
        torch.testing.assert_close(model(idx, targets), expected_loss, rtol=1e-5, atol=1e-6)


def test_initial_loss_is_about_ln_v():
    config = Gpt2Config(n_layer=4, n_head=4, n_embd=64, seq_len=64, vocab_size=5000)
    idx, targets = batch(config, 4, 64)
    loss = build_model(config, seed=3)(idx, targets)
    assert abs(loss.item() - math.log(config.vocab_size)) < 0.1


def test_initialisation_follows_gpt2():
    config = Gpt2Config(n_layer=8, n_head=4, n_embd=128, seq_len=256, vocab_size=1000)
    model = build_model(config, seed=0)
    for name, parameter in model.named_parameters():
        values = parameter[: config.vocab_size] if name == "wte.weight" else parameter
        if parameter.dim() == 1:
            assert torch.all(values == (0.0 if name.endswith("bias") else 1.0)), name
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert abs(values.std().item() / expected - 1) < 0.03, name
            assert abs(values.mean().item()) < 0.1 * expected, name


def test_weights_depend_on_the_seed_alone_and_leave_the_global_state():
    before = torch.get_rng_state()
    a = build_model(TINY, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    b, other = build_model(TINY, seed=5), build_model(TINY, seed=6)
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.dim() == 1 or not torch.equal(p, r), name


def test_every_tensor_of_the_model_is_given_a_value():
    """`to_empty` leaves memory as it was; a parameter or buffer that init_weights forgets would show here."""
    model = build_on_meta(TINY).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(torch.nan)
    model.init_weights(torch.Generator().manual_seed(0))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_padding_has_no_probability():
    model = randomised(TINY)
    assert model.head_weight.shape[0] == 128
    with torch.no_grad():
        model.head_weight[TINY.vocab_size :] = 100.0  # would win every softmax
    idx, targets = batch(TINY)
    logits = model(idx)
    assert logits.shape == (3, 9, 100)
    loss = model(idx, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    loss.backward()
    assert torch.count_nonzero(model.wte.weight.grad[TINY.vocab_size :]) == 0


def test_the_future_does_not_reach_the_past():
    model = randomised(TINY).double().eval()
    idx, _ = batch(TINY, 2, 16)
    for t in (1, 8, 15):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % TINY.vocab_size
        difference = (model(idx) - model(changed)).abs().amax(dim=(0, 2))
        assert difference[:t].max() < 1e-12
        assert difference[t:].min() > 1e-6


def test_dropout_acts_in_training_only():
    model = build_model(msgspec.structs.replace(TINY, dropout=0.5), seed=0)
    idx, _ = batch(TINY)
    torch.manual_seed(0)
    assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="17 tokens are more than the 16 positions"):
        build_model(TINY, seed=0)(torch.zeros(1, 17, dtype=torch.int64))


def test_building_is_fast_enough_for_the_flagship():
    """985M is 30 times this; the bound leaves a busy machine a factor of ten."""
    start = time.perf_counter()
    build_model(Gpt2Config(n_layer=2, n_head=12, n_embd=768, seq_len=1024, vocab_size=24_000), seed=0)
    assert time.perf_counter() - start < 5
