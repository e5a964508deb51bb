"""Schedules against closed forms, torch's own schedulers and the edges."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench import registry
from gpuworkbench.config.schema import ScheduleConfig
from gpuworkbench.errors import ConfigError
from gpuworkbench.training.lr_schedule import lr_multiplier


def curve(max_steps: int, **keys) -> list[float]:
    config = ScheduleConfig(**keys)
    return [lr_multiplier(step, config, max_steps) for step in range(1, max_steps + 1)]


def torch_curve(make, steps: int) -> list[float]:
    """What a torch scheduler gives: its value before the n-th optimizer step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_constant_with_warm_up():
    assert curve(6, name="constant", warmup_steps=3) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_equals_torch(floor):
    expected = torch_curve(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50, eta_min=floor), 50)
    assert curve(50, name="cosine", min_lr_fraction=floor) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_linear_equals_torch(floor):
    expected = torch_curve(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=floor, total_iters=50), 50
    )
    assert curve(50, name="linear", min_lr_fraction=floor) == pytest.approx(expected, abs=1e-12)


def test_cosine_with_warm_up_equals_nanogpt():
    warmup, decay_steps, peak, low = 10, 100, 6e-4, 6e-5

    def nanogpt(it: int) -> float:
        if it < warmup:
            return peak * (it + 1) / (warmup + 1)
        ratio = (it - warmup) / (decay_steps - warmup)
        return low + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (peak - low)

    ours = [peak * x for x in curve(decay_steps, name="cosine", warmup_steps=warmup, min_lr_fraction=low / peak)]
    assert ours == pytest.approx([nanogpt(it) for it in range(decay_steps)], rel=1e-12)


# transformers counts from 0 and rises with step / W, so the two are compared from the peak on, one step apart.
WARMUP, STEPS = 10, 60
OF_TRANSFORMERS = {
    "polynomial": ({"power": 2.0}, "get_polynomial_decay_schedule_with_warmup", {"power": 2.0, "lr_end": 0.0}),
    "polynomial to a floor": (
        {"power": 3.0, "min_lr_fraction": 0.1},
        "get_polynomial_decay_schedule_with_warmup",
        {"power": 3.0, "lr_end": 0.1},
    ),
    "inverse_sqrt": ({}, "get_inverse_sqrt_schedule", {}),
    **{
        f"warmup_stable_decay {shape} {floor}": (
            {"warmdown_steps": 20, "warmdown_shape": shape, "min_lr_fraction": floor},
            "get_wsd_schedule",
            {"num_decay_steps": 20, "decay_type": shape, "min_lr_ratio": floor},
        )
        for shape in ("linear", "1-sqrt", "cosine")
        for floor in (0.0, 0.2)
    },
}


@pytest.mark.parametrize("case", OF_TRANSFORMERS)
def test_schedules_equal_those_of_transformers(case):
    keys, name, theirs = OF_TRANSFORMERS[case]
    make = getattr(pytest.importorskip("transformers.optimization"), name)
    steps = {} if name == "get_inverse_sqrt_schedule" else {"num_training_steps": STEPS}
    expected = torch_curve(lambda o: make(o, num_warmup_steps=WARMUP, **steps, **theirs), STEPS)
    ours = curve(STEPS, name=case.split()[0], warmup_steps=WARMUP, **keys)
    assert ours[WARMUP:] == pytest.approx(expected[WARMUP:], abs=1e-12)


def test_inverse_sqrt_without_a_warm_up_falls_over_ten_thousand_steps():
    config = ScheduleConfig(name="inverse_sqrt")
    assert [lr_multiplier(step, config, 10**6) for step in (1, 10_001, 30_001)] == pytest.approx([1, 0.5**0.5, 0.5])


def test_a_power_of_one_is_linear_and_two_is_the_default():
    assert curve(9, name="polynomial", power=1.0) == pytest.approx(curve(9, name="linear"))
    assert curve(9, name="polynomial") == pytest.approx([x * x for x in curve(9, name="linear")])


def test_warmup_stable_decay_closed_form():
    got = curve(10, name="warmup_stable_decay", warmup_steps=1, warmdown_steps=4)
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    floor = curve(10, name="warmup_stable_decay", warmdown_steps=2, min_lr_fraction=0.2)
    assert floor == pytest.approx([1.0] * 9 + [0.6])


@pytest.mark.parametrize("name", registry.SCHEDULES)
def test_too_long_a_warm_up_is_shortened_to_end_at_the_peak(name):
    assert curve(4, name=name, warmup_steps=1000) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_too_long_a_warm_up_and_warm_down_keep_their_proportion():
    got = curve(8, name="warmup_stable_decay", warmup_steps=100, warmdown_steps=300)
    assert got == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@given(
    name=st.sampled_from(sorted(registry.SCHEDULES)),
    warmup=st.integers(0, 50),
    warmdown=st.integers(0, 50),
    floor=st.floats(0, 1),
    max_steps=st.integers(1, 40),
)
def test_multipliers_are_in_range_rise_then_fall_and_reach_the_peak(name, warmup, warmdown, floor, max_steps):
    keys = {"warmup_steps": warmup, "warmdown_steps": warmdown, "min_lr_fraction": floor}
    values = curve(max_steps, name=name, **keys)
    assert all(0 < v <= 1 for v in values)
    assert max(values) == pytest.approx(1.0)
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top])
    tail = values[top:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(tail))


@pytest.mark.parametrize("name", ["cosine", "linear", "warmup_stable_decay"])
def test_beyond_the_end_is_the_floor(name):
    config = ScheduleConfig(name=name, warmup_steps=2, warmdown_steps=3, min_lr_fraction=0.1)
    assert lr_multiplier(21, config, 20) == pytest.approx(0.1)
    assert lr_multiplier(500, config, 20) == pytest.approx(0.1)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match=r"schedule\.name = 'cosin' is not known") as caught:
        lr_multiplier(1, ScheduleConfig(name="cosin"), 10)
    assert "did you mean 'cosine'" in caught.value.line()
