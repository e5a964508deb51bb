"""The index: the same run from index and rest as from the whole log, and no trust in files that may be damaged."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.events import index, schema
from gpuworkbench.events.codec import encode
from gpuworkbench.events.fold import Fold
from gpuworkbench.events.fold_state import RING_SIZES
from gpuworkbench.events.index import (
    INDEX_NAME,
    IndexKeeper,
    best_index,
    cached_index_path,
    load_index,
    save_cached_index,
    save_index,
)
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.io import Files
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.state.run_state import RunState
from tests.fixtures.event_logs import LogBuilder, random_history


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "events.jsonl"


def write(path: Path, events: list[AnyEvent]) -> None:
    path.write_bytes(b"".join(encode(event) for event in events))


def full_replay(events: list[AnyEvent]) -> RunState:
    reducer = Reducer()
    for event in events:
        reducer.apply([event])
    return reducer.snapshot()


def folded(events: list[AnyEvent]) -> Fold:
    fold = Fold()
    fold.add(events)
    return fold


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 1500), cuts=st.lists(st.integers(0, 1500), max_size=3))
def test_index_and_rest_equal_the_whole_log(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    log, path = folder / "events.jsonl", folder / INDEX_NAME
    events = random_history(seed, n)
    write(log, events)
    sizes = [0]
    for event in events:
        sizes.append(sizes[-1] + len(encode(event)))
    fold, done = Fold(), 0
    for cut in sorted({min(cut, len(events)) for cut in cuts}):  # index, restart, index again
        fold.add(events[done:cut])
        fold.settle()  # a snapshot in between must not matter
        save_index(path, log, fold, sizes[cut])
        loaded = load_index(path, log)
        assert loaded is not None
        fold, done = loaded[0], cut
        assert loaded[1] == sizes[cut]
    reducer = Reducer(fold)
    reducer.apply(events[done:])
    assert reducer.snapshot() == full_replay(events)


def test_a_long_log_opens_equal_too(log: Path) -> None:
    events = random_history(seed=5, n=20_000)
    write(log, events[:15_000])
    IndexKeeper(log).finish()
    write(log, events)
    assert LiveLog(log).catch_up() == full_replay(events) == LiveLog(log, use_index=False).catch_up()


def test_the_keeper_works_in_small_steps_and_saves_when_due(log: Path) -> None:
    builder = LogBuilder().start()
    for step in range(1, 200):
        builder.step(step)
    builder.write(log)
    now = [0.0]
    keeper = IndexKeeper(log, chunk_bytes=10_000, interval_s=30.0, clock=lambda: now[0])
    for _ in range(20):
        keeper.tick()
    assert not log.with_name(INDEX_NAME).exists()
    now[0] = 31.0
    keeper.tick()
    loaded = load_index(log.with_name(INDEX_NAME), log)
    assert loaded is not None
    assert loaded[1] == log.stat().st_size
    builder.step(200).write(log)
    keeper.tick()
    now[0] = 62.0
    keeper.tick()
    assert best_index(log)[1] == log.stat().st_size
    # A new attempt goes on where the index ends.
    second = IndexKeeper(log)
    assert second._reader.offset == log.stat().st_size
    builder.resume(150).step(151).write(log)
    second.finish()
    assert LiveLog(log).catch_up() == full_replay(builder.events)


def test_a_keeper_that_cannot_write_disturbs_no_one(log: Path) -> None:
    class ReadOnly(Files):
        def open_write(self, path: Path) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

    LogBuilder().start().step(1).write(log)
    keeper = IndexKeeper(log, ReadOnly(), interval_s=0.0)
    keeper.tick()
    keeper.tick()
    keeper.finish()
    assert sorted(entry.name for entry in log.parent.iterdir()) == [log.name]


def test_readers_keep_their_index_in_the_cache_and_never_in_the_run(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = random_history(seed=8, n=3000)
    write(log, events)
    monkeypatch.setattr("gpuworkbench.state.live_log.CACHE_AFTER_BYTES", 1000)
    first = LiveLog(log).catch_up()
    assert [entry.name for entry in log.parent.iterdir()] == [log.name]
    assert best_index(log)[1] == log.stat().st_size
    assert LiveLog(log).catch_up() == first
    assert cached_index_path(log).is_relative_to(os.environ["GPUWORKBENCH_CACHE_DIR"])


def test_the_cache_does_not_grow_without_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_CACHED_INDEXES", 3)
    for name in "abcdef":
        path = log.with_name(name)
        write(path, random_history(seed=1, n=10))
        assert save_cached_index(path, Fold(), 0)
    assert len(list(cached_index_path(log).parent.iterdir())) == 3
    assert cached_index_path(log.with_name("f")).exists()


def test_an_unusable_cache_is_not_an_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(log, random_history(seed=1, n=10))
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(log))
    assert not save_cached_index(log, Fold(), 0)
    assert best_index(log)[1] == 0


def test_an_index_of_another_log_is_ignored(log: Path) -> None:
    events = random_history(seed=1, n=500)
    write(log, events)
    path = log.with_name(INDEX_NAME)
    save_index(path, log, folded(events), log.stat().st_size)
    assert load_index(path, log) is not None
    size = log.stat().st_size
    write(log, random_history(seed=2, n=800))
    assert load_index(path, log) is None
    write(log, events[:100])  # truncated
    assert load_index(path, log) is None
    write(log, events)
    data = bytearray(log.read_bytes())
    data[-10] ^= 1  # the same length, another end
    log.write_bytes(data)
    assert log.stat().st_size == size
    assert load_index(path, log) is None
    log.unlink()
    assert load_index(path, log) is None


def test_a_damaged_index_is_ignored(log: Path) -> None:
    events = random_history(seed=4, n=300)
    write(log, events)
    path = log.with_name(INDEX_NAME)
    save_index(path, log, folded(events), log.stat().st_size)
    good = path.read_bytes()
    for at in range(0, len(good), max(len(good) // 200, 1)):
        path.write_bytes(good[:at])
        assert load_index(path, log) is None
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert load_index(path, log) is None
    assert best_index(log)[1] == 0
    assert LiveLog(log).catch_up() == full_replay(events)


def test_a_forged_index_is_ignored(log: Path) -> None:
    """Right checksum and fingerprint, impossible content: bounds are checked on loading too."""
    events = random_history(seed=4, n=300)
    write(log, events)
    path = log.with_name(INDEX_NAME)
    size = log.stat().st_size
    too_many = folded(events)
    too_many.state.warnings = [event for event in events if type(event).__name__ == "Warning"][:1] * 2000
    assert len(too_many.state.warnings) > 2 * RING_SIZES["warnings"]
    renamed = folded(events)
    renamed.settle()
    renamed.series = {"loss": renamed.series["loss"]}
    for fold in (too_many, renamed):
        save_index(path, log, fold, size)
        assert load_index(path, log) is None
    path.unlink()
    os.mkfifo(path)
    started = time.monotonic()
    assert load_index(path, log) is None
    assert time.monotonic() - started < 1.0


def test_the_fold_is_bounded(log: Path) -> None:
    fold = Fold()
    builder = LogBuilder().start()
    for step in range(3000):
        builder.step(step, phase=f"phase {step}").checkpoint(step).eval(step, 10_000.0 - step)
        builder.add(schema.Warning, step, code="c", message="m")
    fold.add(builder.events)
    saved = fold.save()
    assert len(saved.state.phase_tallies) <= 65
    for name, size in RING_SIZES.items():
        assert len(getattr(saved.state, name)) <= size
    write(log, builder.events)
    save_index(log.with_name(INDEX_NAME), log, fold, log.stat().st_size)
    assert log.with_name(INDEX_NAME).stat().st_size < 1_000_000
    assert saved.state.counts["warning"] == 3000
