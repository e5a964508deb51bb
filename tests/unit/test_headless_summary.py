"""The summary's exact lines."""

from __future__ import annotations

import pytest

from gpuworkbench.events import schema
from gpuworkbench.headless.summary import summary_lines
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.state.run_state import RunState
from tests.fixtures.event_logs import LogBuilder


def summary_of(log: LogBuilder) -> list[str]:
    reducer = Reducer()
    reducer.apply(log.events)
    return summary_lines(reducer.snapshot())


def test_a_completed_run() -> None:
    log = LogBuilder().start(max_steps=3, is_cpu_twin=True)
    log.tick(1.0).add(schema.PhaseChanged, 0, from_phase=None, to_phase="warmup", reason="start")
    log.tick(60.0).step(1, 5.0, phase="warmup").add(
        schema.PhaseChanged, 1, from_phase="warmup", to_phase="full", reason=""
    )
    log.tick(5.0).step(2, None).eval(2, 3.0).tick(5.0).step(3, 2.0).eval(3, 3.5).checkpoint(3)
    log.add(schema.Memory, 3, host_rss_bytes=2**30, allocated_bytes=2**31, peak_allocated_bytes=3 * 2**30)
    log.add(schema.Offload, 3, op="offload", target="o", phase="full", num_bytes=2**30, freed_bytes=1, duration_s=2.0,
            overlapped_s=1.5)  # fmt: skip
    log.add(schema.Prediction, 3, predictor="linear", exploration=False, horizon_steps=1, confidence=None,
            predicted_loss=1.0, probe_before=1.0, probe_after=1.0, accepted=True, duration_s=0.71)  # fmt: skip
    log.add(schema.Warning, 3, code="c", message="m").add(schema.Sample, 3, prompt="it's", text="t")
    log.add(schema.RunFinished, 3, status="completed", exit_code=0, reason="")
    assert summary_of(log) == [
        "run         20250101-000000-quick-abcd, CPU twin: completed at step 3/3",
        "loss        5.0000 -> 2.0000 (perplexity 7.4)",
        "            1 step without a finite loss",
        "val loss    best 3.0000 (perplexity 20.1) at step 2, last 3.5000 (perplexity 33.1) at step 3",
        "tokens      3.0k, 10.0k tok/s lately",
        "time        1 min 11 s: warmup 1 min 00 s (1 step), full 10 s (2 steps)",
        "peak memory card 3.00 GiB, host 1.00 GiB",
        "transfers   1.00 GiB in 2.00 s, 1.50 s of it hidden behind compute",
        "predictions 1 accepted, 0 rejected, 0 rolled back",
        "            jumps and probes took 0.71 s (1.0% of the time); a speed-up was not measured",
        "checkpoints 1 written, last checkpoints/step-00000003",
        "warnings    1",
        "sample      gpuworkbench sample 20250101-000000-quick-abcd --prompt 'it'\"'\"'s'",
        "go on       gpuworkbench --resume 20250101-000000-quick-abcd --headless --steps 6",
    ]


@pytest.mark.parametrize(("true_steps", "did"), [(0, "2 jumps"), (1, "2 jumps and 1 step")])
def test_a_predicted_phase_is_counted_in_jumps(true_steps: int, did: str) -> None:
    log = LogBuilder().start(max_steps=9).step(1, 5.0, phase="full")
    log.add(schema.PhaseChanged, 1, from_phase="full", to_phase="predict", reason="")
    for accepted in (True, False):
        log.add(schema.Prediction, 1, predictor="linear", exploration=False, horizon_steps=2, confidence=None,
                predicted_loss=1.0, probe_before=1.0, probe_after=1.0, accepted=accepted, duration_s=0.5)  # fmt: skip
    for number in range(true_steps):
        log.tick(1.0).step(2 + number, 4.0, phase="predict")
    log.tick(1.0).add(schema.PhaseChanged, 1 + true_steps, from_phase="predict", to_phase="full", reason="")
    (line,) = [line for line in summary_of(log) if line.startswith("time ")]
    assert f" ({did})" in line


def test_a_stopped_run_says_how_to_go_on() -> None:
    log = LogBuilder().start().step(1, 5.0).checkpoint(1).step(2, 4.0)
    log.add(schema.RunFinished, 2, status="stopped", exit_code=75, reason="SIGINT")
    lines = summary_of(log)
    assert lines[0] == "run         20250101-000000-quick-abcd: stopped (SIGINT) at step 2/100"
    assert lines[-3] == "checkpoints 1 written, last checkpoints/step-00000001; unsaved since step 1"
    assert lines[-1] == "go on       gpuworkbench --resume 20250101-000000-quick-abcd --headless"


def test_a_run_that_never_began() -> None:
    assert summary_lines(RunState()) == [
        "run         unknown: not finished at step 0",
        "time        0.00 s",
        "checkpoints none",
    ]
