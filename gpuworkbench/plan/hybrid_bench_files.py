"""A comparison on disk: what was decided beforehand, the preset, and one file for each finished trial.

    preregistration.json  config.toml  machine.json  trial-<arm>-<steps>-<lr>-<seed>.json  lock

The preregistration is written before the first trial and never again; its hash stands in the result.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gpuworkbench import __version__
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.errors import RunError
from gpuworkbench.io import read_regular_file
from gpuworkbench.plan.hybrid_bench import BenchPlan, Trial
from gpuworkbench.plan.trial_directory import MAX_FILE_BYTES, TrialDirectory, open_directory, place_of, require_same

ANALYSIS = (
    "Tuning: for every schedule the rates of the grid (grown at its ends and refined around its best where adapts) at "
    "the reference budget, on the tuning seeds, which no measured trial uses; the baseline is the schedule and rate "
    "with the lowest mean validation loss. Every other tuned arm takes that schedule and rate.",
    "Budgets: every trial has its whole schedule in its own steps; warm-up, warm-down and the start of the hybrid "
    "trainer keep their share of the run. The seed decides initial weights and data order; all arms share them, and "
    "the split.",
    "L*: for each seed, the baseline's final validation loss at the reference budget. T(L*): the smallest work at "
    "which a completed schedule reaches L*, interpolated between budgets in the logarithm of the work, for both sides "
    "alike.",
    "Speed-up: T_baseline / T_arm for each seed; geometric mean and 95 % t-interval of the log ratios over the seeds.",
    "Work: cost_steps, the deterministic cost in units of one optimizer step: every true step (those that a rollback "
    "took back too) plus a third of a step for as many tokens of probe forwards, rejected jumps included. Wall and CPU "
    "seconds of training, in which element-wise arithmetic and copies show too, are reported beside it; where "
    "train.mode is fast the claim is in wall seconds.",
    "Bounds: L* not reached within the largest budget takes that budget's work, an overestimate of the arm, and the "
    "arm cannot claim a benefit; L* reached below the smallest takes the smallest's, an underestimate.",
    'Verdict: "no measurable benefit" when the interval includes 1.0, or ends above it while a seed did not reach L*. '
    "p-values are shown adjusted for the number of arms (Holm) too. A claim needs 5 seeds.",
    "Beside it: paired differences of the loss at equal tokens, equal cost and equal time, with 95 % t-intervals.",
)


class Preregistration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was decided before the first trial."""

    written_utc: str
    version: str
    plan: BenchPlan
    config_sha256: str
    analysis: tuple[str, ...]


class BenchFiles(TrialDirectory):
    """A comparison's directory. `config`: the preset's, which every arm begins from."""

    @property
    def preregistration(self) -> Path:
        """What is compared, and how it will be analysed."""
        return self.root / "preregistration.json"

    @property
    def machine(self) -> Path:
        """On what the trials ran, as their process saw it."""
        return self.root / "machine.json"

    def trial(self, stem: str) -> Path:
        """One trial."""
        return self.root / f"trial-{stem}.json"

    def read_preregistration(self) -> Preregistration:
        """Raises RunError where it is missing or malformed."""
        found: Preregistration | None = self.read(self.preregistration, Preregistration)
        if found is None:
            raise RunError(f"{self.preregistration} cannot be read", "remove the directory and compare anew")
        return found

    def preregistration_sha256(self) -> str:
        """Of the file as it is. Raises RunError."""
        try:
            return hashlib.sha256(read_regular_file(self.preregistration, MAX_FILE_BYTES)).hexdigest()
        except OSError as error:
            raise RunError(f"{self.preregistration} cannot be read: {error.strerror}", "compare anew") from None

    def read_machine(self) -> dict[str, Any]:
        """Empty before the first trial."""
        return self.read(self.machine, dict[str, Any]) or {}

    def read_trials(self) -> list[Trial]:
        """Every finished trial."""
        return self.read_named(Trial, lambda trial: self.trial(stem_of(trial)))


def stem_of(trial: Trial) -> str:
    """As `Work.stem` of the work that the trial did."""
    return f"{trial.arm}-{trial.steps}-{trial.lr!r}-{trial.seed}"


def default_directory(plan: BenchPlan, config: RunConfig) -> Path:
    """Where a comparison is kept unless a person says so."""
    return place_of("hybrid", plan.preset, plan, config)


def open_bench(root: Path, plan: BenchPlan, config: RunConfig) -> BenchFiles:
    """Make the directory of a comparison, or find it as it was left.

    Raises UsageError where `root` holds another comparison or something else, RunError where it cannot be written.
    """
    files = BenchFiles(root)

    def registered() -> Preregistration:
        return Preregistration(
            written_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            plan=plan,
            config_sha256=hashlib.sha256(dump_toml(config)).hexdigest(),
            analysis=ANALYSIS,
        )

    def check() -> None:
        require_same(files, plan, config, files.read_preregistration().plan, what="comparison", flag="--dir")

    first = (files.preregistration, registered)
    open_directory(files, config, what="comparison", flag="--dir", first=first, check=check)
    return files
