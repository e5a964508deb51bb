"""What `gpuworkbench sample` asks its subprocess for: prompts as ids, and text up to the end of text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.data.tokenization.ids_tokenizer import IdsTokenizer
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer, end_of_text
from gpuworkbench.errors import DataError
from gpuworkbench.models import build_model
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.tools.sample import SampleRequest, encode_prompt, write_text

EOT = ByteTokenizer().eot_id


def model_that_writes(token: int) -> LanguageModel:
    """Greedily always `token`: the last norm's output does not depend on the text, and points at it."""
    model = build_model(Gpt2Config(n_layer=1, n_head=1, n_embd=8, seq_len=16, vocab_size=257), seed=0)
    with torch.no_grad():
        direction = torch.ones(8)
        model.head_weight[token] = direction
        model.ln_f.weight.zero_()  # type: ignore[union-attr, operator]
        model.ln_f.bias.copy_(direction)  # type: ignore[union-attr, operator, arg-type]
    return model.eval()


def request(**changes: Any) -> SampleRequest:
    fixed: dict[str, Any] = {"run": "", "prompt": None, "tokens": 5, "temperature": 0.0, "top_k": 0, "seed": 1}
    return SampleRequest(**{**fixed, **changes})


@pytest.mark.parametrize(
    ("token", "ignore_eot", "n_tokens", "text"),
    [
        (EOT, False, 0, ""),
        (EOT, True, 5, "<|endoftext|>" * 5),
        (ord("a"), False, 5, "aaaaa"),
        (0xD1, False, 5, "\ufffd" * 5),  # half a character: held back, and told in the end
    ],
)
def test_text_ends_where_the_model_ends_it(
    token: int, ignore_eot: bool, n_tokens: int, text: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    model = model_that_writes(token)
    assert write_text(model, ByteTokenizer(), [1], request(ignore_eot=ignore_eot)) == n_tokens
    lines = capfdbinary.readouterr().out.splitlines()
    assert "".join(msgspec.json.decode(line)["text"] for line in lines) == text


def test_ids_have_no_end_of_text(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """`ids` begins samples with id 0, which may be any token: it ends nothing."""
    tokenizer = IdsTokenizer(257)
    assert end_of_text(tokenizer) is None
    assert write_text(model_that_writes(0), tokenizer, [1], request()) == 5


def test_a_prompt_begins_a_text_only_where_asked() -> None:
    byte, ids = ByteTokenizer(), IdsTokenizer(9)
    assert encode_prompt(byte, "ab", begins_text=False) == [97, 98]
    assert encode_prompt(byte, "ab", begins_text=True) == [EOT, 97, 98]
    assert encode_prompt(byte, "", begins_text=False) == encode_prompt(byte, "", begins_text=True) == [EOT]
    assert encode_prompt(ids, "", begins_text=False) == [0]
    assert encode_prompt(ids, "5 7", begins_text=True) == [5, 7]
    with pytest.raises(DataError, match="'User:' is not a token id"):
        encode_prompt(ids, "User: hello", begins_text=True)
