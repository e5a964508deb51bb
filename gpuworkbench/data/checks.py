"""Does the data fit the model and the loop? Refusals name both sides."""

from __future__ import annotations

from pathlib import Path

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.validate import eval_fix
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.split import Split
from gpuworkbench.data.tokenization.ids_tokenizer import NAME as IDS
from gpuworkbench.data.tokenization.same_tokenizer import check_same_tokenizer
from gpuworkbench.errors import ConfigError, DataError

MAX_RESERVED_SHARE = 0.5  # of the training tokens: more than that is a slip of the pen


def check_vocabulary(config: RunConfig, name: str, vocab_size: int) -> None:
    """DataError if the model's vocabulary is too small for the tokenizer `name` of that many tokens."""
    wanted = config.model.vocab_size
    if wanted and vocab_size > wanted:
        raise DataError(
            f"model.vocab_size is {wanted}, the tokenizer {name!r} has {vocab_size} tokens",
            "choose the tokenizer that belongs to the weights"
            if config.train.init_from
            else "set model.vocab_size to 0 (the tokenizer's) or to at least that many",
        )


def check_fits(config: RunConfig, prepared: PreparedData) -> None:
    """DataError as `check_vocabulary`, or if there is not one training sequence."""
    check_vocabulary(config, prepared.tokenizer_name, prepared.vocab_size)
    if prepared.tokenizer_name == IDS and config.sample.interval_steps:
        prepared.tokenizer().encode(config.sample.prompt)  # now, not at the first sample
    needed = config.train_seq_len + 1
    if prepared.n_train_tokens < needed:
        raise DataError(
            f"{prepared.description}: {prepared.n_train_tokens} training tokens, "
            f"one sequence of train.seq_len + 1 needs {needed}",
            "use more text or a smaller train.seq_len",
        )
    if prepared.n_train_tokens < needed + config.reserved_tokens:
        raise DataError(
            f"{prepared.description}: {prepared.n_train_tokens} training tokens, "
            f"one sequence and hybrid.probe_sequences = {config.hybrid.probe_sequences} need "
            f"{needed + config.reserved_tokens}",
            "use more text, or a smaller hybrid.probe_sequences or train.seq_len",
        )
    if config.reserved_tokens > prepared.n_train_tokens * MAX_RESERVED_SHARE:
        raise DataError(
            f"{prepared.description}: hybrid.probe_sequences = {config.hybrid.probe_sequences} keep "
            f"{config.reserved_tokens} of {prepared.n_train_tokens} training tokens out of training",
            "set a smaller hybrid.probe_sequences",
        )


def check_scored(config: RunConfig, prepared: PreparedData) -> None:
    """DataError where an answer mask leaves nothing to learn from, or nothing to validate on."""
    splits: tuple[Split, ...] = ("train", "val") if config.eval.interval_steps else ("train",)
    for split in splits:
        tokens = prepared.tokens(split)
        if tokens.has_mask and tokens.count_scored() == 0:
            raise DataError(
                f"{prepared.description}: not one of the {len(tokens)} {split} tokens is scored: no answers there",
                "give the data answers, or set data.loss_on=all",
            )
    _check_probe_scored(config, prepared)


def _check_probe_scored(config: RunConfig, prepared: PreparedData) -> None:
    """DataError where an answer mask leaves nothing of the reserved slice to compare a jump by."""
    tokens, reserved = prepared.tokens("train"), config.reserved_tokens
    if not reserved or not tokens.has_mask:
        return
    scored = tokens.scored(len(tokens) - reserved + 1, reserved - 1)
    if scored is not None and not scored.any():
        raise DataError(
            f"{prepared.description}: none of the last {reserved - 1} training tokens is scored, and jumps are judged "
            "by them",
            "raise hybrid.probe_sequences",
        )


def check_eval_tokens(config: RunConfig, n_val_tokens: int) -> tuple[int, str | None]:
    """Validation batches per validation, and a warning where the split is smaller than `eval.tokens`.

    (0, None) where validation is off. ConfigError if `eval.tokens` does not divide by batch x seq_len; DataError if
    the split does not hold a single batch.
    """
    if config.eval.interval_steps == 0:
        return 0, None
    size, seq_len = config.eval_micro_batch_size, config.train_seq_len
    per_batch, wanted = size * seq_len, config.eval.tokens
    if wanted % per_batch:
        raise ConfigError(
            f"eval.tokens = {wanted} is not a multiple of {size} sequences x {seq_len} tokens = {per_batch}",
            eval_fix(wanted, size, seq_len),
        )
    held = max(n_val_tokens - 1, 0) // per_batch  # the last target needs one token more
    if held == 0:
        raise DataError(
            f"the validation split has {n_val_tokens} tokens, one batch of {size} x {seq_len} needs {per_batch + 1}",
            "use more text, a larger data.val_fraction, a smaller eval.micro_batch_size, or eval.interval_steps=0",
        )
    n_batches = wanted // per_batch
    if held >= n_batches:
        return n_batches, None
    return held, f"validation uses {held * per_batch} tokens, not eval.tokens = {wanted}: the split has {n_val_tokens}"


def load_same_tokens(config: RunConfig, kept_tokenizer: Path | None = None) -> PreparedData:
    """The tokens of a run that was made before; refuses other ones than it began with. Raises DataError.

    `kept_tokenizer` is the folder of the run's own tokenizer: it stands in for a path that is gone.
    """
    from gpuworkbench.data.prepare import prepare

    data = prepare(config, kept_tokenizer=kept_tokenizer)
    check_same_tokenizer(config.data, data, kept_tokenizer)
    if config.data.sha256 is not None and data.sha256 != config.data.sha256:
        raise DataError(
            f"data.source = {config.data.source!r} gives other tokens than this run was made with "
            f"({data.sha256[:12]} now, {config.data.sha256[:12]} then)",
            "restore the data, or train on with --resume RUN --fork",
        )
    return data
