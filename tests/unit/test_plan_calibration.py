"""Records of finished runs: kept in one write each, read whatever is between them, used for the same device only."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.plan.calibration import (
    FACTOR_LIMITS,
    MAX_LINES,
    USED_RUNS,
    Record,
    add_record,
    calibrate,
    read_records,
)
from gpuworkbench.plan.report import calibrated

CONFIG = configure(load_preset("quickstart"))
PACKED = configure(load_preset("rtx5080_1b"))


def record(ratio: float = 1.0, **changes: object) -> Record:
    fields = {
        "time_unix_s": 1.0, "kind": "cuda", "device": "card", "preset": "p", "storage": "fp32", "n_params": 1,
        "predicted_bytes": 10_000, "measured_bytes": round(10_000 * ratio),
    }  # fmt: skip
    return Record(**(fields | changes))  # type: ignore[arg-type]


def test_what_is_added_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "state" / "calibration.jsonl"
    for ratio in (1.0, 1.1, 1.2):
        add_record(record(ratio), path)
    assert [each.measured_bytes for each in read_records(path)] == [10_000, 11_000, 12_000]


def test_a_damaged_file_costs_its_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    good = msgspec.json.encode(record())
    odd = [b"{", b"[" * 3000, b"null", b'{"v": 9}', msgspec.json.encode(record(predicted_bytes=0)), b"\xff" * 50]
    path.write_bytes(b"\n".join([*odd, good, b"x" * 100_000, good[:20]]))
    assert read_records(path) == [record()]
    assert read_records(tmp_path / "missing") == []


@pytest.mark.parametrize("rate", [0.0, -1e12, 999_999.0, 1.01e17, 1e300, None, 1e6, 1e17])
def test_a_rate_that_no_device_has_says_nothing(rate: float | None, tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    add_record(record(flops_per_s=rate), path)
    assert len(read_records(path)) == (rate is None or 1e6 <= rate <= 1e17)


@pytest.mark.parametrize("changes", [{"measured_bytes": 0}, {"measured_bytes": -5}, {"predicted_bytes": 2**51}])
def test_bytes_that_no_run_takes_say_nothing(changes: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    add_record(record(**changes), path)
    assert read_records(path) == []


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    line = msgspec.json.encode(record()) + b"\n"
    path.write_bytes(line * (2 * MAX_LINES))
    add_record(record(1.3), path)
    assert path.read_bytes().count(b"\n") == MAX_LINES
    assert read_records(path)[-1] == record(1.3)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("x")
    (tmp_path / "calibration.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        add_record(record(), tmp_path / "calibration.jsonl")
    assert (tmp_path / "victim").read_text() == "x"


def test_only_the_same_device_counts_and_the_same_storage_first() -> None:
    records = [
        record(1.10),
        record(1.20, storage="packed"),
        record(1.90, device="other"),
        record(1.90, kind="cpu"),
        record(1.90, simulated=True),
    ]
    plain, packed = (calibrate(config, "cuda", "card", records) for config in (CONFIG, PACKED))
    assert plain is not None
    assert packed is not None
    assert (plain.factor, plain.is_same_storage) == (1.1, True)
    assert packed.factor == 1.2
    other = calibrate(PACKED, "cuda", "card", records[:1])
    assert other is not None
    assert (other.factor, other.is_same_storage) == (1.1, False)
    assert calibrate(CONFIG, "cuda", "nobody's", records) is None


def test_the_median_of_the_newest_within_limits() -> None:
    old = [record(0.8)] * 50
    new = [record(1.0), record(1.2), record(1.4)] * USED_RUNS
    found = calibrate(CONFIG, "cuda", "card", old + new)
    assert found is not None
    assert found.factor == 1.2
    wild = calibrate(CONFIG, "cuda", "card", [record(40.0)])
    assert wild is not None
    assert wild.factor == FACTOR_LIMITS[1]


def test_rates_are_a_range() -> None:
    found = calibrate(CONFIG, "cuda", "card", [record(flops_per_s=2e12), record(), record(flops_per_s=1e12)])
    assert found is not None
    assert found.flops_per_s == (1e12, 2e12)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.07, 1.4])
def test_a_corrected_estimate_still_sums_up_and_leaves_the_context(ratio: float) -> None:
    plain = estimate(PACKED, kind="cuda")
    learnt = calibrate(PACKED, "cuda", "card", [record(ratio)])
    assert plain is not None
    assert learnt is not None
    found = calibrated(plain, learnt, "cuda")
    assert found.allocator_bytes == pytest.approx(plain.allocator_bytes * ratio, rel=1e-6)
    assert sum(found.parts.values()) == found.total_bytes
    assert min(found.parts.values()) >= 0
    assert found.parts["CUDA context"] == plain.parts["CUDA context"]
