"""The largest micro-batch of a configuration on the device it would get: searched for by probes, or remembered."""

from __future__ import annotations

from collections.abc import Callable

from gpuworkbench.config.loader import Override, parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError, WorkbenchError
from gpuworkbench.gpu.fit import select_device
from gpuworkbench.gpu.host import probe_host
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.launch.create import LaunchRequest
from gpuworkbench.launch.planner import probed
from gpuworkbench.plan.analytic import Estimate, Verdict, estimate, verdict
from gpuworkbench.plan.micro_batch import (
    MicroBatch,
    largest_that_fits,
    micro_batch_path,
    read_micro_batch,
    sizes,
    with_micro_batch,
)
from gpuworkbench.plan.remembered import write
from gpuworkbench.plan.targets import Target, here
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import format_bytes

HOPELESS = 2  # times the limit: what formulas put beyond it is not tried
Probing = Callable[[RunConfig, Estimate, Target, Callable[[str], None]], Estimate]


def largest_micro_batch(
    config: RunConfig,
    target: Target,
    say: Callable[[str], None],
    *,
    within_bytes: int | None = None,
    probing: Probing = probed,
) -> MicroBatch:
    """The remembered one, else what a search by probes in processes of their own finds, which is then remembered.

    `config` has a known vocabulary. The limit is `within_bytes`, else the target's. A size fits where two real steps,
    and what a prediction keeps beside them, stay within what the planner calls fitting (92 %).
    Raises DoesNotFitError where no size fits or the card is not here, WorkbenchError where a probe fails otherwise.
    """
    known = read_micro_batch(config, target, within_bytes)
    if known is not None:
        return known
    if target.kind == "cuda" and target.card is None:
        only = " (--within is for a device that is here)" if within_bytes is not None else ""
        raise DoesNotFitError(
            f"a search needs the card, and it is not here{only}",
            "search where it is, without --card SIZE; here it works with --cpu-twin, for a preset's stand-in",
        )
    limit = within_bytes or target.limit_bytes
    if limit is None:
        raise DoesNotFitError("how much memory the device has is not known", "give one with --within")
    beyond = HOPELESS * limit
    if target.kind == "cpu" and target.limit_bytes is not None:  # more than there is may end any process of this host
        beyond = min(beyond, target.limit_bytes)
    needed: dict[int, int] = {}
    asked = 0

    def fits(size: int) -> bool:
        nonlocal asked
        candidate = with_micro_batch(config, size)
        predicted = estimate(candidate, kind=target.kind)
        assert predicted is not None
        if needed_bytes(predicted, target) > beyond:
            say(f"micro-batch {size}: beyond the memory by the formulas, not tried")
            return False
        asked += 1
        try:
            needed[size] = needed_bytes(probing(candidate, predicted, target, lambda _: None), target)
        except DoesNotFitError:
            say(f"micro-batch {size}: out of memory")
            return False
        found = verdict(needed[size], limit)
        say(f"micro-batch {size}: {format_bytes(needed[size])}, {found.label}")
        return found is Verdict.FITS

    say(f"searching for the largest micro-batch within {format_bytes(limit)}, by two real steps each")
    best = largest_that_fits(sizes(config), config.train.micro_batch_size, fits)
    if best is None:
        raise DoesNotFitError(
            f"not even the smallest micro-batch fits {format_bytes(limit)}", "see `gpuworkbench plan --fit`"
        )
    accum = with_micro_batch(config, best).train.grad_accum_steps
    found = MicroBatch(
        micro_batch_size=best,
        grad_accum_steps=accum,
        needed_bytes=needed[best],
        limit_bytes=limit,
        n_probes=asked,
    )
    write(micro_batch_path(config, target, within_bytes), found)
    return found


def needed_bytes(predicted: Estimate, target: Target) -> int:
    """Where the run computes: the card's, or the whole process's."""
    return predicted.total_bytes if target.kind == "cuda" else predicted.host_bytes


def remembered_line(config: RunConfig, target: Target) -> str | None:
    """What a search on this device found, where it is not the micro-batch that `config` has; None else."""
    known = read_micro_batch(config, target)
    if known is None or known.micro_batch_size == config.train.micro_batch_size:
        return None
    return (
        f"the largest micro-batch that fits here is {known.micro_batch_size} (measured; this one has "
        f"{config.train.micro_batch_size}): {known.flags}"
    )


def sets_for_launch(request: LaunchRequest, say: Callable[[str], None], *, is_asked_for: bool) -> tuple[Override, ...]:
    """What to set so that a new run has the largest micro-batch that fits; where it is not asked for nothing, but a
    remembered one that differs is told.

    Raises what the search does, and ConfigErrors; unasked it raises nothing, since the launch itself will.
    """
    try:
        preset = load_preset(request.preset)
        config = configure(
            preset, sets=request.sets, environ=request.environ, cpu_twin=request.cpu_twin, steps=request.steps
        )
        choice = select_device(config, probe_cards(), request.preset, force=request.force)
        known = with_known_vocabulary(config)
        if known is None:
            raise ConfigError(
                "the vocabulary is known once the data is prepared", "set model.vocab_size, or leave the search out"
            )
        target = here(known, choice.card, probe_host(), request.runs_dir)
    except WorkbenchError:
        if is_asked_for:
            raise
        return ()
    if not is_asked_for:
        line = remembered_line(known, target)
        if line is not None:
            say(line)
        return ()
    found = largest_micro_batch(known, target, say)
    say(f"largest micro-batch that fits: {found.micro_batch_size} ({found.flags})")
    return tuple(parse_set(text) for text in found.sets)
