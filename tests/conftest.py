"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that; these tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from tests.fixtures.local_run import LocalRuns


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRuns]:
    """A workspace for runs in this process, shared by a module so that its data is prepared once."""
    from tests.fixtures.local_run import LocalRuns, torch_settings

    root = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch, torch_settings():
        patch.setenv("GPUWORKBENCH_CACHE_DIR", str(root / "cache"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield LocalRuns(root)


@pytest.fixture(scope="session", autouse=True)
def _state_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests take turns among themselves, not with the runs of whoever starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_trainer_outlives_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A trainer has a session of its own, so a test that fails midway leaves it training: end it here."""
    yield
    from gpuworkbench.runs.lock import probe_lock

    for lock in tmp_path_factory.getbasetemp().glob("**/runs/*/lock"):
        pid = probe_lock(lock)
        if pid:
            os.kill(pid, signal.SIGKILL)
