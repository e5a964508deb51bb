"""What models read: corpora, token shards, tokenizers, previews and the order of batches. Numpy only, no torch.

`prepare` turns a run's configuration into memory-mapped tokens in the user's cache; `SampleOrder` and `batch` read
them in an order that is a pure function of (seed, epoch, index).
"""

from gpuworkbench.data.checks import check_eval_tokens, load_same_tokens
from gpuworkbench.data.encoding import absolute_paths
from gpuworkbench.data.location import absolute_source, cache_root
from gpuworkbench.data.order import SampleOrder, batch, validation_batch
from gpuworkbench.data.prepare import prepare
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.preview import Preview, preview
from gpuworkbench.data.shards.token_array import TokenArray
from gpuworkbench.data.tokenization.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "PreparedData",
    "Preview",
    "SampleOrder",
    "TokenArray",
    "Tokenizer",
    "absolute_paths",
    "absolute_source",
    "batch",
    "cache_root",
    "check_eval_tokens",
    "load_same_tokens",
    "load_tokenizer",
    "prepare",
    "preview",
    "validation_batch",
]
