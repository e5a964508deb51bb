"""The configuration of a run: every section, every key, its range, its default and what it does.

All structs are frozen and refuse unknown keys. `None` means "chosen when the run is created": the launcher resolves
it and stores the choice in run.toml, so that a resume never has to choose again.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import field

from gpuworkbench import registry
from gpuworkbench.config.fields import MAX_COUNT, MAX_SEED, MAX_STEPS, MAX_TOKENS, Section, doc
from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.units import simulated_card_name

if TYPE_CHECKING:
    from gpuworkbench.config.families.gpt2 import Gpt2Config

    ModelConfig = Gpt2Config
else:
    # One struct a family, told apart by `model.family`; the registry is the list.
    ModelConfig = reduce(or_, (registry.load(entry.spec) for entry in registry.MODELS.values()))

SCHEMA_VERSION = 1


class CardConfig(Section, frozen=True, kw_only=True):
    """The card a preset is meant for."""

    name: Annotated[str, doc("the card in words, as shown in lists", max_length=80)]
    compute_capability: Annotated[str, doc("lowest CUDA compute capability, as major.minor", pattern=r"^\d{1,2}\.\d$")]
    memory_gib: Annotated[float, doc("device memory the preset needs, in GiB as the driver reports it", gt=0.0, le=1e6)]


class DataConfig(Section, frozen=True, kw_only=True):
    """What the model reads."""

    source: Annotated[
        str,
        doc("stdlib, synthetic, fineweb10B, or a path: text, .jsonl, .parquet or token shard .bin file, or a folder"),
    ] = "stdlib"
    tokenizer: Annotated[
        str,
        doc("byte, bpe-N, a tiktoken name such as gpt2, ids (shards), a tokenizer.json, hf:OWNER/NAME"),
    ] = "bpe-8192"
    eot_token: (
        Annotated[
            str,
            doc(
                "token that ends a text, where the files beside a tokenizer.json do not say",
                min_length=1,
                max_length=200,
            ),
        ]
        | None
    ) = None
    seed: Annotated[int, doc("seed of the sample order and of the split", ge=0, le=MAX_SEED)] = 0
    sha256: Annotated[str, doc("identity of the prepared tokens (stored, never set by hand)")] | None = None
    tokenizer_sha256: Annotated[str, doc("identity of the tokenizer (stored, never set by hand)")] | None = None
    shards: (
        Annotated[
            int,
            doc(
                "training shards, the first ones; default: 1 (100M tokens, 200 MB) of a downloaded set, else all",
                ge=1,
                le=100_000,
            ),
        ]
        | None
    ) = None
    val_fraction: Annotated[
        float,
        doc("share of the documents held out for validation, where the source has no split", gt=0.0, lt=0.5),
    ] = 0.05
    loss_on: Annotated[
        Literal["auto", "all", "answers"],
        doc("tokens that are scored; auto: answers in conversations and after prompts, all of other text"),
    ] = "auto"
    bin_vocab_size: (
        Annotated[
            int,
            doc(
                "tokens in the vocabulary of .bin files: allows ones without a header (nanoGPT's) and tokenizer ids",
                ge=2,
                le=2**24,
            ),
        ]
        | None
    ) = None
    synthetic_tokens: Annotated[int, doc("tokens the synthetic source generates", ge=1_000, le=10**9)] = 1_000_000
    documents: Annotated[
        Literal["file", "paragraph", "line"],
        doc("what a document is in a text file; a JSONL or parquet record always is one"),
    ] = "file"
    clean: Annotated[
        bool, doc("make line ends newlines and no-break spaces spaces; remove control characters and soft hyphens")
    ] = False
    normalize: Annotated[Literal["none", "nfc", "nfkc"], doc("Unicode normalisation of the text")] = "none"
    min_chars: Annotated[
        int, doc("documents with fewer characters, without the white space around them, are dropped", ge=0, le=10**9)
    ] = 0
    dedup: Annotated[bool, doc("drop documents whose cleaned text was there before; 16 bytes of memory each")] = False


class TrainConfig(Section, frozen=True, kw_only=True):
    """The loop: how much per step, how many steps, how exactly."""

    seq_len: (
        Annotated[int, doc("tokens per training sequence; default and upper bound: model.seq_len", ge=1, le=MAX_COUNT)]
        | None
    ) = None
    micro_batch_size: Annotated[int, doc("sequences per forward and backward pass", ge=1, le=MAX_COUNT)] = 8
    grad_accum_steps: Annotated[
        int, doc("micro-batches per optimizer step; gradients are averaged", ge=1, le=MAX_COUNT)
    ] = 1
    max_steps: Annotated[int, doc("total optimizer steps of the run", ge=1, le=MAX_STEPS)] | None = None
    max_epochs: (
        Annotated[float, doc("passes over the training tokens, as an alternative to max_steps", gt=0.0, le=1e9)] | None
    ) = None
    seed: Annotated[int, doc("seed of the initial weights and of dropout", ge=0, le=MAX_SEED)] = 1337
    grad_clip_norm: Annotated[float, doc("global gradient norm is clipped to this; 0 turns clipping off", ge=0.0)] = 1.0
    log_interval_steps: Annotated[
        int,
        doc(
            "on CUDA, steps between two reads of the scalars from the card (hybrid in exact mode: 1)",
            ge=1,
            le=MAX_STEPS,
        ),
    ] = 1
    mode: (
        Annotated[Literal["exact", "fast"], doc("exact: resume is bit-identical; fast: fastest kernels. CPU: exact")]
        | None
    ) = None
    threads: Annotated[int, doc("CPU threads of the trainer; default: the physical cores", ge=1, le=4096)] | None = None
    init_from: Annotated[
        str,
        doc("weights to start from: a folder with config.json and safetensors, or hf:OWNER/NAME; empty: random ones"),
    ] = ""
    init_sha256: Annotated[str, doc("identity of those weights (stored, never set by hand)")] | None = None
    on_nonfinite: Annotated[
        Literal["stop", "rollback"],
        doc("a NaN or Inf loss or gradient: stop the run, or go back to the last checkpoint and skip that data"),
    ] = "stop"


class OptimizerConfig(Section, frozen=True, kw_only=True):
    """The optimizer. Weight decay acts on matrices only, not on biases and norms.

    Keys without a default here belong to some optimizers only, and have each one's own default
    (config/optimizers.py); set for another optimizer they are refused.
    """

    name: Annotated[str, doc("adamw, muon, lion, adafactor or sgd")] = "adamw"
    lr: Annotated[float, doc("peak learning rate", gt=0.0)] = 6e-4
    weight_decay: Annotated[
        float, doc("weight decay of matrices, decoupled from the gradient (sgd: added to it)", ge=0.0)
    ] = 0.1
    beta1: Annotated[float, doc("adamw, muon, lion: decay of the first moment (0.9)", ge=0.0, lt=1.0)] | None = None
    beta2: (
        Annotated[float, doc("adamw, muon: decay of the second moment (0.95); lion: 0.99", ge=0.0, lt=1.0)] | None
    ) = None
    eps: Annotated[float, doc("adamw, muon: added to the root of the second moment (1e-8)", gt=0.0)] | None = None
    momentum: Annotated[float, doc("decay of the gradient's sum; muon 0.95, sgd 0.9", ge=0.0, lt=1.0)] | None = None
    nesterov: Annotated[bool, doc("look ahead along the momentum; muon true, sgd false")] | None = None
    ns_steps: (
        Annotated[int, doc("muon: Newton-Schulz iterations that make the update orthogonal (5)", ge=1, le=99)] | None
    ) = None
    lr_adjust: (
        Annotated[
            Literal["match_rms_adamw", "original"],
            doc("muon: match_rms_adamw takes AdamW's rates; original is Jordan's scaling by the matrix's shape"),
        ]
        | None
    ) = None
    adamw_lr_ratio: (
        Annotated[float, doc("muon: the rate of its AdamW part as a multiple of optimizer.lr (1)", gt=0.0, le=1e4)]
        | None
    ) = None
    beta2_decay: Annotated[float, doc("adafactor: beta2 at step t is 1 - t^this (-0.8)", ge=-10.0, lt=0.0)] | None = (
        None
    )
    clip_threshold: (
        Annotated[float, doc("adafactor: the update's root mean square is clipped to this (1)", gt=0.0)] | None
    ) = None
    relative_step: (
        Annotated[bool, doc("adafactor: lr is relative to each tensor's root mean square, at least 1e-3 (false)")]
        | None
    ) = None


class ScheduleConfig(Section, frozen=True, kw_only=True):
    """The learning rate over the run, as a multiple of optimizer.lr; and how sequences and batches grow."""

    name: Annotated[str, doc("constant, cosine, linear, polynomial, inverse_sqrt or warmup_stable_decay")] = "cosine"
    warmup_steps: Annotated[
        int, doc("steps of linear rise to the peak; shortened when the run is shorter", ge=0, le=MAX_STEPS)
    ] = 0
    warmdown_steps: Annotated[int, doc("steps of the fall at the end of warmup_stable_decay", ge=0, le=MAX_STEPS)] = 0
    warmdown_shape: (
        Annotated[Literal["linear", "1-sqrt", "cosine"], doc("warmup_stable_decay: how its rate falls (linear)")] | None
    ) = None
    power: Annotated[float, doc("polynomial: the power of the remaining share (2)", gt=0.0, le=100.0)] | None = None
    min_lr_fraction: Annotated[float, doc("lowest multiple of the peak that the decay reaches", ge=0.0, le=1.0)] = 0.0
    seq_len_start: Annotated[
        int, doc("tokens per sequence at first, rising to train.seq_len, which it divides; 0: off", ge=0, le=MAX_COUNT)
    ] = 0
    seq_len_warmup_tokens: Annotated[
        int, doc("training tokens over which sequences grow from seq_len_start; 0: off", ge=0, le=MAX_TOKENS)
    ] = 0
    batch_start_sequences: Annotated[
        int,
        doc("sequences a step at first, rising to micro_batch_size x grad_accum_steps; 0: off", ge=0, le=MAX_COUNT),
    ] = 0
    batch_warmup_tokens: Annotated[
        int, doc("training tokens over which the batch grows from batch_start_sequences; 0: off", ge=0, le=MAX_TOKENS)
    ] = 0
    batch_lr_scaling: Annotated[
        Literal["none", "sqrt", "linear"],
        doc("learning rate while the batch is smaller: unchanged, times the root of its share, times its share"),
    ] = "none"


class CheckpointConfig(Section, frozen=True, kw_only=True):
    """When state is saved, and how much of it is kept. The last step is always saved."""

    interval_steps: Annotated[
        int, doc("steps between checkpoints; 0: only at the end or when stopped", ge=0, le=MAX_STEPS)
    ] = 100
    keep_last: Annotated[int, doc("how many of the newest checkpoints are kept", ge=2, le=10_000)] = 2
    keep_best: Annotated[bool, doc("also keep the checkpoint with the lowest validation loss")] = True
    in_background: Annotated[
        bool,
        doc("copy the state to host memory and write behind training; false: no copy, training waits for the write"),
    ] = True


class EvalConfig(Section, frozen=True, kw_only=True):
    """Validation during the run."""

    interval_steps: Annotated[int, doc("steps between validations; 0 turns them off", ge=0, le=MAX_STEPS)] = 100
    tokens: Annotated[int, doc("validation tokens per validation; a multiple of batch x seq_len", ge=1, le=10**15)] = (
        32_768
    )
    micro_batch_size: (
        Annotated[int, doc("sequences per validation batch; default: train.micro_batch_size", ge=1, le=MAX_COUNT)]
        | None
    ) = None


class SampleConfig(Section, frozen=True, kw_only=True):
    """Text written during the run."""

    interval_steps: Annotated[int, doc("steps between samples; 0 turns them off", ge=0, le=MAX_STEPS)] = 0
    prompt: Annotated[str, doc("the text that samples continue", max_length=10_000)] = "\n"
    tokens: Annotated[int, doc("tokens per sample; fewer where the model ends its text", ge=1, le=100_000)] = 64
    temperature: Annotated[float, doc("softmax temperature; 0 is greedy", ge=0.0, le=100.0)] = 0.8
    top_k: Annotated[int, doc("sample from the k most likely tokens; 0: from all", ge=0, le=MAX_COUNT)] = 50
    seed: Annotated[int, doc("seed of the sampler", ge=0, le=MAX_SEED)] = 1337


class EarlyStoppingConfig(Section, frozen=True, kw_only=True):
    """Ends a run whose validation loss no longer falls."""

    patience: Annotated[
        int, doc("validations without improvement before the run completes; 0: never", ge=0, le=MAX_STEPS)
    ] = 0
    min_delta: Annotated[
        float, doc("a lower validation loss counts when it is lower by more than this (nats)", ge=0.0)
    ] = 0.0


class DeviceConfig(Section, frozen=True, kw_only=True):
    """Where the run computes."""

    kind: Annotated[Literal["auto", "cuda", "cpu"], doc("auto takes the card the preset is for, else refuses")] = "auto"
    index: (
        Annotated[int, doc("which CUDA device, counted as CUDA_VISIBLE_DEVICES leaves them", ge=0, le=1023)] | None
    ) = None
    uuid: Annotated[str, doc("the card chosen when the run was created (stored, seldom set by hand)")] | None = None
    memory_limit_gib: (
        Annotated[float, doc("caps the CUDA allocator: a simulated smaller card", gt=0.0, le=1e6)] | None
    ) = None
    compile: Annotated[
        Literal["off", "default", "max-autotune-no-cudagraphs"],
        doc("torch.compile of the model, and its mode"),
    ] = "off"


class RunConfig(Section, frozen=True, kw_only=True):
    """Everything a trainer needs to know. A preset is this plus `cpu_twin`; run.toml is this, resolved."""

    schema_version: Annotated[int, doc("version of this file's format", ge=1, le=SCHEMA_VERSION)]
    description: Annotated[str, doc("what the preset is for, in a line", max_length=400)] = ""
    preset: Annotated[str, doc("name of the preset the run was made from (the file's stem)")] = ""
    is_cpu_twin: Annotated[bool, doc("this is a card preset's small stand-in for CPUs")] = False
    card: CardConfig | None = None
    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    memory: MemoryConfig = MemoryConfig()
    hybrid: HybridConfig = HybridConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    sample: SampleConfig = SampleConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    device: DeviceConfig = DeviceConfig()
    forked_from: Annotated[str, doc("run and step this run was forked from (stored, never set by hand)")] = ""
    cpu_twin: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def train_seq_len(self) -> int:
        """Tokens per training sequence (`train.seq_len`, else `model.seq_len`)."""
        return self.train.seq_len or self.model.seq_len

    @property
    def has_open_sizes(self) -> bool:
        """Whether model sizes are still to be read from the weights that the run starts from."""
        return bool(self.train.init_from) and self.train.init_sha256 is None

    @property
    def eval_micro_batch_size(self) -> int:
        """Sequences per validation batch."""
        return self.eval.micro_batch_size or self.train.micro_batch_size

    @property
    def tokens_per_step(self) -> int:
        """Training tokens one optimizer step consumes."""
        return self.train.micro_batch_size * self.train.grad_accum_steps * self.train_seq_len

    @property
    def steps_between_reads(self) -> int:
        """Steps after which a card's losses and norms are read and logged.

        In mode `exact` each one where the hybrid trainer is on: its advisers decide by what was read, and a stop or a
        command reads early, so that a resumed run would decide otherwise than one that was left alone.
        """
        return 1 if self.hybrid.enabled and self.train.mode == "exact" else self.train.log_interval_steps

    @property
    def reserved_tokens(self) -> int:
        """Tokens at the end of the training data that are never trained on: the hybrid trainer's probe."""
        return self.hybrid.probe_sequences * self.train_seq_len + 1 if self.hybrid.enabled else 0

    @property
    def simulated_card(self) -> str | None:
        """How a card that is smaller than the real one is called everywhere; None where nothing is simulated."""
        limit_gib = self.device.memory_limit_gib
        return None if limit_gib is None or self.is_cpu_twin else simulated_card_name(limit_gib)

    @property
    def label(self) -> str:
        """The preset's name as people see it, marked where it is a CPU twin or its card is simulated."""
        mark = "CPU twin" if self.is_cpu_twin else self.simulated_card
        return self.preset if mark is None else f"{self.preset} ({mark})"
