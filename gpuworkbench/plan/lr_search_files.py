"""A learning-rate search on disk: its plan, the configuration of its trials, and one file for each finished trial.

plan.json  config.toml  range.json  trial-<lr>-<seed>.json  lock
"""

from __future__ import annotations

from pathlib import Path

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import RunError
from gpuworkbench.plan.lr_search import RangeTest, SearchPlan, Trial
from gpuworkbench.plan.trial_directory import TrialDirectory, open_directory, place_of, require_same


class SearchFiles(TrialDirectory):
    """A search's directory. `config`: a trial's, but for its rate and seed."""

    @property
    def plan(self) -> Path:
        """What is searched for."""
        return self.root / "plan.json"

    @property
    def range_test(self) -> Path:
        """Stage one."""
        return self.root / "range.json"

    def trial(self, lr: float, seed: int) -> Path:
        """One trial of stage two."""
        return self.root / f"trial-{lr!r}-{seed}.json"

    def read_plan(self) -> SearchPlan:
        """Raises RunError where it is missing or malformed."""
        plan: SearchPlan | None = self.read(self.plan, SearchPlan)
        if plan is None:
            raise RunError(f"{self.plan} cannot be read", "remove the directory and search anew")
        return plan

    def read_range_test(self) -> RangeTest | None:
        """None where there is none yet, or it is damaged."""
        test: RangeTest | None = self.read(self.range_test, RangeTest)
        return test if test is not None and test.lrs and len(test.lrs) == len(test.losses) else None

    def read_trials(self) -> list[Trial]:
        """Every finished trial."""
        return self.read_named(Trial, lambda trial: self.trial(trial.lr, trial.seed))


def default_directory(plan: SearchPlan, config: RunConfig) -> Path:
    """Where a search is kept unless a person says so."""
    return place_of("lr", plan.preset, plan, config)


def open_search(root: Path, plan: SearchPlan, config: RunConfig) -> SearchFiles:
    """Make the directory of a search, or find it as it was left.

    Raises UsageError where `root` holds another search or something else, RunError where it cannot be written.
    """
    files = SearchFiles(root)

    def check() -> None:
        require_same(files, plan, config, files.read_plan(), what="search", flag="--out")

    open_directory(files, config, what="search", flag="--out", first=(files.plan, lambda: plan), check=check)
    return files
