"""README.md of an exported folder: what was trained on what, and how to load it.

It may be published, so of paths only the last name is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from gpuworkbench import __version__
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.text import safe_text
from gpuworkbench.units import format_count, format_number

_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {title}

A {family} language model of {n_params:,} parameters, trained with gpuworkbench {version}.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("FOLDER")
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")

gpuworkbench trains on from it with `--set train.init_from=FOLDER --set data.tokenizer=FOLDER`.
"""
_WITHOUT_TOKENIZER = """
The tokenizer is not part of this folder: {reason}.
"""


def model_card(
    config: RunConfig,
    run_id: str,
    progress: Mapping[str, Any],
    *,
    step: int,
    dtype: str,
    missing_tokenizer: str | None = None,
) -> str:
    """Markdown. `progress` holds the counters of the exported checkpoint; what it lacks is left out."""
    head = _HEAD.format(
        title=_plain(run_id), family=config.model.family, n_params=config.model.n_params(), version=__version__
    )
    if missing_tokenizer is not None:
        head += _WITHOUT_TOKENIZER.format(reason=_plain(missing_tokenizer))
    rows = [f"| {name} | {value} |" for name, value in _facts(config, progress, step, dtype).items() if value]
    return "\n".join([head, "| fact | value |", "|---|---|", *rows, ""])


def _facts(config: RunConfig, progress: Mapping[str, Any], step: int, dtype: str) -> dict[str, str]:
    model, train, optimizer = config.model, config.train, config.optimizer
    tokens, best = progress.get("tokens_seen"), progress.get("best_val_loss")
    return {
        "preset": _code(config.label),
        "shape": f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, {model.seq_len} positions",
        "vocabulary": f"{model.vocab_size} tokens, tokenizer {_code(_last_name(config.data.tokenizer))}",
        "weights": dtype,
        "step": f"{step} of {train.max_steps}",
        "tokens seen": f"{format_count(tokens)}, {config.tokens_per_step} a step" if isinstance(tokens, int) else "",
        "best validation loss": (
            f"{format_number(best)} nats a token, at step {progress.get('best_step')}"
            if isinstance(best, int | float)
            else ""
        ),
        "started from": _code(_last_name(train.init_from)) if train.init_from else "random weights",
        "data": f"{_code(_last_name(config.data.source))}, tokens {_code((config.data.sha256 or '')[:16])}",
        "optimizer": f"{optimizer.name}, peak learning rate {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}",
        "schedule": f"{config.schedule.name}, {config.schedule.warmup_steps} warm-up steps",
        "precision": f"{config.memory.precision}, mode {train.mode}",
        "seeds": f"weights {train.seed}, data {config.data.seed}",
        "forked from": _code(config.forked_from) if config.forked_from else "",
    }


def _last_name(text: str) -> str:
    return PurePath(text).name or text


def _plain(text: str) -> str:
    return safe_text(" ".join(text.split()), max_chars=200).replace("|", "/")


def _code(text: str) -> str:
    return f"`{_plain(text).replace('`', chr(39))}`"
