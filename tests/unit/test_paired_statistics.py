"""Student's t against printed tables, closed forms and integrals; intervals against examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.plan.paired_statistics import (
    holm,
    incomplete_beta,
    mean_interval,
    t_probability,
    t_quantile,
)

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: upper critical values of Student's t distribution.
TABLE = {
    (0.975, 1): 12.706,
    (0.975, 2): 4.303,
    (0.975, 4): 2.776,
    (0.975, 7): 2.365,
    (0.975, 30): 2.042,
    (0.975, 100): 1.984,
    (0.95, 4): 2.132,
    (0.95, 10): 1.812,
    (0.995, 4): 4.604,
    (0.995, 7): 3.499,
    (0.90, 3): 1.638,
    (0.999, 5): 5.893,
}


@pytest.mark.parametrize(("probability", "freedom"), TABLE)
def test_quantiles_are_those_of_the_table(probability: float, freedom: int) -> None:
    # the table cuts or rounds its third digit
    assert t_quantile(probability, freedom) == pytest.approx(TABLE[probability, freedom], abs=1.1e-3)


@given(st.floats(-50, 50))
def test_one_and_two_degrees_of_freedom_have_closed_forms(t: float) -> None:
    assert t_probability(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
    assert t_probability(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)


@given(st.floats(0.51, 0.9999))
def test_quantiles_of_one_and_two_degrees_have_closed_forms(p: float) -> None:
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9, abs=1e-9)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("freedom", [3, 4, 7, 15, 60])
@pytest.mark.parametrize("t", [0.3, 1.0, 2.5, 6.0])
def test_the_distribution_is_the_integral_of_its_density(freedom: int, t: float) -> None:
    x, step = np.linspace(0, t, 200_001, retstep=True)
    density = (1 + x * x / freedom) ** (-(freedom + 1) / 2)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    integral = scale * step * (density.sum() - (density[0] + density[-1]) / 2)
    assert t_probability(t, freedom) == pytest.approx(0.5 + integral, abs=1e-10)
    assert t_probability(-t, freedom) == pytest.approx(0.5 - integral, abs=1e-10)


def test_the_incomplete_beta_function_where_it_is_a_polynomial() -> None:
    for x in np.linspace(0, 1, 21):
        assert incomplete_beta(1, 1, x) == pytest.approx(x, abs=1e-14)
        assert incomplete_beta(2, 3, x) == pytest.approx(x * x * (6 - 8 * x + 3 * x * x), abs=1e-13)


def test_a_mean_interval_worked_by_hand() -> None:
    """Gosset's own sleep data (Student 1908): ten paired differences, mean 1.58, t = 4.06, p = 0.0028."""
    differences = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = mean_interval(differences)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == (pytest.approx(0.700, abs=5e-4), pytest.approx(2.460, abs=5e-4))
    assert found.p_value == pytest.approx(0.00283, abs=1e-5)


def test_ratios_are_compared_by_their_logarithms() -> None:
    ratios = [1.1, 1.21, 1.331]
    found = mean_interval([math.log(r) for r in ratios]).exp()
    assert found.mean == pytest.approx(1.21)
    error = math.log(1.1) / math.sqrt(3)
    assert found.high / found.mean == pytest.approx(math.exp(4.302653 * error))
    assert found.mean / found.low == pytest.approx(found.high / found.mean)


def test_what_has_no_spread_and_what_is_alone() -> None:
    assert mean_interval([0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5, 0.0)
    alone = mean_interval([0.5]).exp()
    assert (alone.low, alone.high, alone.p_value) == (0.0, math.inf, 1.0)


@pytest.mark.parametrize("n", [5, 8])
def test_intervals_hold_what_they_promise(n: int) -> None:
    """95 % of the intervals of normal samples contain the true mean."""
    draws = np.random.default_rng(7).normal(0.3, 2.0, (4000, n))
    intervals = [mean_interval(row) for row in draws.tolist()]
    covered = sum(i.low <= 0.3 <= i.high for i in intervals) / len(intervals)
    assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_an_interval_and_its_p_value_agree() -> None:
    for row in np.random.default_rng(1).normal(0.6, 1.0, (300, 6)).tolist():
        found = mean_interval(row)
        assert (found.low > 0 or found.high < 0) == (found.p_value < 0.05)


def test_holm_of_the_textbook() -> None:
    """R's p.adjust(c(0.01, 0.02, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0), (math.nan, 3)])
def test_what_has_no_quantile(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError):
        t_quantile(probability, freedom)
