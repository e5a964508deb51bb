"""The workspace that tests with real trainers share within a module."""

from __future__ import annotations

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
