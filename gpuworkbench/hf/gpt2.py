"""GPT-2's published form: the config.json and the tensor names of transformers' GPT2LMHeadModel.

Its matrices are those of a `Conv1D`, stored (in, out): the transpose of nn.Linear's. The head is the token table. Old
files hold causal masks as buffers (`attn.bias`, `attn.masked_bias`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.hf.layout import PublishedSize, TensorRule, published_int

_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
# The tanh form of GELU has three names.
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
# What config.json may leave open, and the only value of it that our model computes.
_FIXED: Mapping[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


class Gpt2Layout:
    """See `gpuworkbench.hf.layout.Layout`."""

    model_type = "gpt2"
    prefix = "transformer."

    def sizes(self, published: Mapping[str, Any]) -> list[PublishedSize]:
        """n_layer, n_head, n_embd, n_positions and vocab_size; ValueError for what changes the computation."""
        found = {
            "n_layer": published_int(published, ("n_layer", "num_hidden_layers"), 12),
            "n_head": published_int(published, ("n_head", "num_attention_heads"), 12),
            "n_embd": published_int(published, ("n_embd", "hidden_size"), 768),
            "seq_len": published_int(published, ("n_positions", "max_position_embeddings"), 1024),
            "vocab_size": published_int(published, ("vocab_size",), 50257),
        }
        _refuse_other_computations(published, found["n_embd"][1])
        return [PublishedSize(key, name, value) for key, (name, value) in found.items()]

    def tensors(self, model_config: Gpt2Config) -> list[TensorRule]:
        """12 tensors a block, two tables, the final norm; the head's second name may be absent."""
        width, vocab = model_config.n_embd, model_config.vocab_size
        rules = [
            TensorRule("wte.weight", "wte.weight", (vocab, width)),
            TensorRule("wpe.weight", "wpe.weight", (model_config.seq_len, width)),
        ]
        for layer in range(model_config.n_layer):
            rules += _block(f"h.{layer}.", width)
        rules += _norm("ln_f", width)
        return [*rules, TensorRule("wte.weight", "lm_head.weight", (vocab, width), is_copy=True)]

    def is_ignored(self, name: str) -> bool:
        """The causal masks of old files."""
        return _BUFFER.fullmatch(name) is not None

    def config_json(self, model_config: Gpt2Config, *, dtype: str, eot_id: int | None) -> dict[str, Any]:
        """As transformers writes it; everything that decides the computation is spelt out."""
        dropout = model_config.dropout
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.model_type,
            "n_layer": model_config.n_layer,
            "n_head": model_config.n_head,
            "n_embd": model_config.n_embd,
            "n_inner": None,
            "n_positions": model_config.seq_len,
            "vocab_size": model_config.vocab_size,
            "activation_function": "gelu_new",
            **_FIXED,
            "attn_pdrop": dropout,
            "embd_pdrop": dropout,
            "resid_pdrop": dropout,
            "initializer_range": 0.02,
            "bos_token_id": eot_id,
            "eos_token_id": eot_id,
            "use_cache": True,
            "torch_dtype": dtype,
        }


def _block(prefix: str, width: int) -> Iterator[TensorRule]:
    yield from _norm(f"{prefix}ln_1", width)
    yield from _matrix(f"{prefix}attn.c_attn", width, 3 * width)
    yield from _matrix(f"{prefix}attn.c_proj", width, width)
    yield from _norm(f"{prefix}ln_2", width)
    yield from _matrix(f"{prefix}mlp.c_fc", width, 4 * width)
    yield from _matrix(f"{prefix}mlp.c_proj", 4 * width, width)


def _norm(name: str, width: int) -> list[TensorRule]:
    return [TensorRule(f"{name}.{part}", f"{name}.{part}", (width,)) for part in ("weight", "bias")]


def _matrix(name: str, n_in: int, n_out: int) -> list[TensorRule]:
    weight = TensorRule(f"{name}.weight", f"{name}.weight", (n_in, n_out), is_transposed=True)
    return [weight, TensorRule(f"{name}.bias", f"{name}.bias", (n_out,))]


def _refuse_other_computations(published: Mapping[str, Any], width: int) -> None:
    """ValueError where config.json asks for something that our GPT-2 does not do."""
    activation = published.get("activation_function", _TANH_GELU[0])
    if activation not in _TANH_GELU:
        raise ValueError(f"activation_function = {activation!r} is not supported, only {', '.join(_TANH_GELU)}")
    inner = published.get("n_inner")
    if inner is not None and inner != 4 * width:
        raise ValueError(f"n_inner = {inner!r} is not supported, only 4 x n_embd = {4 * width}")
    if published.get("quantization_config") is not None:
        raise ValueError("quantization_config: quantised weights are not supported")
    for key, expected in _FIXED.items():
        value = published.get(key, expected)
        if value != expected or isinstance(value, bool) is not isinstance(expected, bool):
            raise ValueError(f"{key} = {value!r} is not supported, only {expected!r}")


LAYOUT = Gpt2Layout()
