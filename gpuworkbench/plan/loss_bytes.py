"""Bytes that head and cross-entropy take beside what the blocks keep: all logits at once, or a chunk of them.

Counted from the code of gpuworkbench.models.head and gpuworkbench.memory.chunked_cross_entropy, tensor by tensor;
the trace tier runs that code and finds the same (benchmarks/plan_accuracy.py). Sizes are R rows of a chunk, N rows of
the micro-batch, V padded vocabulary, C channels.
"""

from __future__ import annotations

from gpuworkbench.config.schema import RunConfig

FP32_BYTES = 4
# log-probabilities, their gradient and the logits' gradient, each fp32
PLAIN_LOGITS_BYTES = 12


def loss_bytes(config: RunConfig, n_rows: int, width: int, grad_width: int, *, is_training: bool = True) -> int:
    """The most that head and loss hold at once. `width`: bytes of an element of the products; `grad_width`: of the
    table's gradient. Without gradients (validation) the logits, their fp32 copy and the log-probabilities."""
    model = config.model
    vocab, channels = model.padded_vocab_size, model.n_embd
    if not config.memory.chunked_cross_entropy:
        per_logit = PLAIN_LOGITS_BYTES if is_training else width + (2 if width < FP32_BYTES else 1) * FP32_BYTES
        return n_rows * vocab * per_logit
    chunk = min(n_rows, config.memory.cross_entropy_chunk_rows)
    has_weight_copy = width < FP32_BYTES and config.memory.weights == "fp32"
    copies = (vocab * channels * width if has_weight_copy else 0) + (n_rows * channels * width if width < 4 else 0)
    # While a chunk's softmax is taken: its logits, in fp32 where they are not (a copy), and the log-probabilities.
    softmax = chunk * vocab * (width + (2 if width < FP32_BYTES else 1) * FP32_BYTES)
    if not is_training:
        return softmax + copies
    # While the table's gradient is added up: logits and log-probabilities still there, and the product where the
    # gradient is wider than it.
    held = chunk * vocab * (width + FP32_BYTES)
    product = vocab * channels * width if grad_width > width else 0
    table = vocab * channels * grad_width
    rows = n_rows * channels * width
    during = max(softmax + (table if n_rows > chunk else 0), held + product + table) + rows
    # Last, the chunks' gradients of the hidden states are joined, and scaled: three of them, and one in fp32.
    joined = table + 3 * rows + (n_rows * channels * FP32_BYTES if width < FP32_BYTES else 0)
    return copies + max(during, joined)


def logits_block_bytes(config: RunConfig) -> int:
    """The logits of a micro-batch, or of a chunk of it, in fp32."""
    n_rows = config.train.micro_batch_size * config.train_seq_len
    if config.memory.chunked_cross_entropy:
        n_rows = min(n_rows, config.memory.cross_entropy_chunk_rows)
    return n_rows * config.model.padded_vocab_size * FP32_BYTES
