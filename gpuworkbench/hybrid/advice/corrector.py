"""The corrector beside a training: it notes what would be predicted now and then, and learns what that missed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.hybrid.corrector import Corrector
from gpuworkbench.hybrid.dynamics.features import SCALES, Features
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.signals import StepSignals

EVERY = 5  # steps between two notes
HORIZONS = (5, 10, 20)
AVERAGED = 5  # losses whose mean is the truth at a horizon
N_INPUTS = len(SCALES) + 2


class CorrectorAdvice(PlainState, NoAdvice):
    """Corrects `predict(steps)`, the loss predicted without it, in logarithms. One corrector a horizon; between them
    the correction is interpolated."""

    NAMES = ("notes", "recent")
    CHILDREN = ("features", "at_5", "at_10", "at_20")
    wants_moments = True

    def __init__(self, predict: Callable[[int], float | None]) -> None:
        self.predict = predict
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.features = Features()
        self.at_5, self.at_10, self.at_20 = (Corrector(N_INPUTS) for _ in HORIZONS)
        self.notes: list[Any] = []  # [step, inputs, log of the predicted loss at each horizon]
        self.recent: list[float] = []  # log-losses of the last steps

    @property
    def correctors(self) -> tuple[Corrector, ...]:
        """In the order of HORIZONS."""
        return self.at_5, self.at_10, self.at_20

    def observe(self, signals: StepSignals) -> None:
        """A true step: notes that have come of age teach, and every EVERY steps there is a new one."""
        if not (math.isfinite(signals.loss) and signals.loss > 0.0 and math.isfinite(signals.grad_norm)):
            return
        self.features.observe(signals)
        self.recent = [*self.recent, math.log(signals.loss)][-AVERAGED:]
        truth = sum(self.recent) / len(self.recent)
        for step, inputs, predictions in self.notes:
            for horizon, corrector, predicted in zip(HORIZONS, self.correctors, predictions, strict=True):
                if signals.step - step == horizon and predicted is not None:
                    corrector.learn(inputs, [truth - predicted])
        self.notes = [note for note in self.notes if signals.step - note[0] < HORIZONS[-1]]
        if signals.step % EVERY == 0:
            # The truth is the mean of AVERAGED losses, so the prediction is that of their middle.
            predictions = [self._log(horizon - (AVERAGED - 1) // 2) for horizon in HORIZONS]
            self.notes.append([signals.step, self.inputs(), predictions])

    def corrected_loss(self, predicted: float, steps: int) -> float:
        """`predicted` times exp(correction)."""
        if not (predicted > 0.0 and math.isfinite(predicted)) or not self.features.count:
            return predicted
        inputs = self.inputs()
        corrections = [0.0, *(float(corrector.correction(inputs)[0]) for corrector in self.correctors)]
        correction = float(np.interp(steps, (0, *HORIZONS), corrections))
        return predicted * math.exp(max(-0.5, min(0.5, correction)))

    def _log(self, steps: int) -> float | None:
        predicted = self.predict(steps)
        return math.log(predicted) if predicted is not None and predicted > 0.0 else None

    def inputs(self) -> list[float]:
        """Scales, progress, and how far the prediction is from the damped trend's, in deviations of the loss."""
        count = len(SCALES) + 1
        vector = self.features.normalized(self.features.latest.numpy())[:count].tolist()
        predicted = self._log(HORIZONS[0])
        spread = max(self.features.loss.sd, 1e-6)
        off = 0.0 if predicted is None else (self.features.trend.forecast(HORIZONS[0]) - predicted) / spread
        return [*vector, max(-3.0, min(3.0, off))]
