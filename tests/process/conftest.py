"""The workspace that tests with real trainers share within a module."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.fixtures.local_run import LocalRuns
from tests.fixtures.processes import no_orphans
from tests.fixtures.tiny_run import Workspace


@pytest.fixture(scope="module")
def workspace(local: LocalRuns) -> Iterator[Workspace]:
    """The workspace of the runs in this process, so that real trainers find the data prepared."""
    with no_orphans(local.workspace.root):
        yield local.workspace


@pytest.fixture(scope="module", autouse=True)
def hang_up_ends() -> Iterator[None]:
    """As in a terminal: under nohup every process here would inherit that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
