"""The refusal of a run that will not fit what is free now, before anything of it is made: one line, and a way out."""

from __future__ import annotations

import shlex
from pathlib import Path

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import DoesNotFitError
from gpuworkbench.gpu.fit import DeviceChoice
from gpuworkbench.gpu.host import Host
from gpuworkbench.plan.analytic import Verdict, estimate
from gpuworkbench.plan.calibration import calibrate, read_records
from gpuworkbench.plan.fit_me import alternatives
from gpuworkbench.plan.judge import judge, shortages
from gpuworkbench.plan.report import calibrated
from gpuworkbench.plan.targets import Target, here
from gpuworkbench.units import format_bytes


def refuse_unfit(
    config: RunConfig, choice: DeviceChoice, host: Host, directory: Path, *, is_free_only: bool = True
) -> None:
    """DoesNotFitError (exit 4) where card, host memory or disk is predicted to be short; silent while the vocabulary
    is unknown.

    `is_free_only`: what is free now counts, not what there is (a queued run starts when others are gone).
    """
    predicted = estimate(config, kind=choice.kind)
    if predicted is None:
        return
    target = here(config, choice.card, host, directory, is_free_only=is_free_only)
    if target.card is not None:
        learnt = calibrate(
            config,
            "cuda",
            target.card.name or "",
            read_records(),
            simulated=config.device.memory_limit_gib is not None,
        )
        predicted = predicted if learnt is None else calibrated(predicted, learnt, "cuda")
    short = shortages(predicted, target)
    if judge(predicted, target) is not Verdict.DOES_NOT_FIT or not short:
        return
    first = short[0]
    free = " free now" if is_free_only and first.what != "pinned memory" else ""
    raise DoesNotFitError(
        f"{config.label} is predicted to need {format_bytes(first.needed_bytes)} of {first.what}; "
        f"here: {format_bytes(first.limit_bytes)}{free}",
        f"{way_out(config, target)}, or try it all the same with --force",
    )


def way_out(config: RunConfig, target: Target) -> str:
    """The best other way, as flags and what it takes."""
    best = next((each for each in alternatives(config, target, 1) if each.verdict is not Verdict.DOES_NOT_FIT), None)
    if best is None:
        return "choose a smaller model, batch or train.seq_len"
    flags = " ".join(f"--set {shlex.quote(text)}" for text in best.sets)
    size = best.total_bytes if target.kind == "cuda" else best.host_bytes
    return f"this fits: {flags} ({format_bytes(size)}, predicted step time x{best.slowdown:.2f})"
