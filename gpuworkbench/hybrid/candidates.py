"""The predictors that a run holds: all watch the weights, one of them proposes, and the others hear of its jump."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpuworkbench import registry
from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.predictors import PredictorSpec, predictor_names, spec_of
from gpuworkbench.hybrid.acceptance import AcceptanceRate
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.predictors.base import Predictor
from gpuworkbench.parts import Stateful


@dataclass(eq=False)
class Candidate:
    """One predictor with its own record: how often its jumps stood, and how many predictions it has made.

    While it `rests` it is shown nothing, since it cannot jump before long: looking costs time, and copies of weights.
    """

    name: str
    spec: PredictorSpec
    predictor: Predictor
    acceptance: AcceptanceRate = field(default_factory=AcceptanceRate)
    predictions: int = 0
    rests: bool = False

    def observe(self, step: int, until_jump: int, *, rests: bool) -> None:
        """See Predictor.observe. After a rest the path begins where it looks again."""
        if self.rests and not rests:
            self.predictor.displaced()
        self.rests = rests
        if not rests:
            self.predictor.observe(step, until_jump)

    def blocked(self, step: int, max_steps: int) -> str:
        """Why it can propose nothing now; "": it can, or it rests and is refused for the reason that it rests for."""
        begin, end = self.spec.window
        if not begin <= step / max_steps <= end:
            return f"{self.name} is off outside of {begin:.0%} to {end:.0%} of the run"
        return "" if self.rests else self.predictor.ready()


class Candidates:
    """hybrid.predictor and, with the bandit, those of hybrid.bandit_predictors. `chosen` made the last jump, or makes
    the next one."""

    def __init__(self, body: Body, config: HybridConfig, seed: int) -> None:
        self.body, self.config, self.seed = body, config, seed
        self.all = tuple(self._made(name) for name in predictor_names(config))
        self.at = 0  # the chosen one's place

    @property
    def chosen(self) -> Candidate:
        """See the class."""
        return self.all[self.at]

    def _made(self, name: str) -> Candidate:
        """Each reads the section as if it were the only predictor."""
        make = registry.load(registry.PREDICTORS[name].implementation)
        own = msgspec.structs.replace(self.config, predictor=name)
        return Candidate(name, spec_of(name), make(self.body, own, self.seed))

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.all)

    def choose(self, name: str) -> None:
        """The coming prediction is this one's."""
        self.at = [candidate.name for candidate in self.all].index(name)

    def by(self) -> str:
        """Who predicts, where there is more than one that could."""
        return self.chosen.name if len(self.all) > 1 else ""

    def judged(self, *, accepted: bool) -> None:
        """The probe kept the jump, or it is undone: then the others have seen nothing of it."""
        self.chosen.acceptance.note(accepted)
        if not accepted:
            self.chosen.predictor.rejected()
            return
        self.chosen.predictor.accepted()
        self._displace_others()

    def rolled_back(self, *, stood: bool) -> None:
        """True steps are undone, and the jump before them where one `stood`."""
        if stood:
            self.chosen.acceptance.revoke()
        self.chosen.predictor.rejected()
        self._displace_others()

    def _displace_others(self) -> None:
        for candidate in self.all:
            if candidate is not self.chosen:
                candidate.predictor.displaced()

    def forget(self) -> None:
        """What they have seen, but not how often they were right."""
        for candidate in self.all:
            candidate.predictor.reset()

    def parts(self) -> dict[str, Stateful]:
        """The state of each; that of hybrid.predictor has no name of its own, as ever."""
        first, *others = self.all
        return {"predictor": first.predictor, **{f"predictor_{other.name}": other.predictor for other in others}}

    def reset(self) -> None:
        """Their records as at the beginning of a run; each predictor is a part of its own."""
        for candidate in self.all:
            candidate.acceptance, candidate.predictions, candidate.rests = AcceptanceRate(), 0, False
        self.at = 0

    def values(self) -> dict[str, Any]:
        """Their records as JSON can hold them."""
        records = {c.name: {**c.acceptance.values(), "predictions": c.predictions, "rests": c.rests} for c in self.all}
        return {"chosen": self.chosen.name, "records": records}

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore; a fork may have other predictors, which begin without a record."""
        self.reset()
        for candidate in self.all:
            record = values["records"].get(candidate.name)
            if record is not None:
                candidate.acceptance.load(record)
                candidate.predictions = int(record["predictions"])
                candidate.rests = bool(record["rests"])
            if candidate.name == values["chosen"]:
                self.choose(candidate.name)
