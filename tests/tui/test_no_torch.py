"""The app never loads torch, and needs a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fixtures.recorded_run import completed_run
from tests.fixtures.tiny_run import Workspace

OPEN_EVERYTHING = """
import asyncio, sys
from pathlib import Path
from gpuworkbench.cli import main
from gpuworkbench.commands.app import open_app
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.services import Services
import gpuworkbench.data, gpuworkbench.launch.create

async def look():
    runs = Path(sys.argv[1])
    app = WorkbenchApp(Services(runs_dir=runs), RunPaths(runs / sys.argv[2]))
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.pause(0.7)
        await pilot.press("escape")
        await pilot.pause(0.7)
        app.open_preset("quickstart", None, cpu_twin=False)
        await pilot.pause(0.7)
        await pilot.press("escape")
        await pilot.pause(0.1)
        await pilot.press("q")
    return app.return_code

code = asyncio.run(look())
print(code, sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "transformers")))
"""


def test_the_app_never_loads_torch(tmp_path: Path) -> None:
    paths = completed_run(tmp_path / "runs")
    command = [sys.executable, "-c", OPEN_EVERYTHING, str(paths.root.parent), paths.run_id]
    result = subprocess.run(command, env=Workspace(tmp_path).environ, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "0 []", result.stderr


def test_without_a_terminal_it_says_what_to_do(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for arguments in ((), ("--preset", str(workspace.preset))):
        result = workspace.call(*arguments)
        assert result.returncode == 2
        assert result.stderr.splitlines() == [
            "gpuworkbench: the app needs a terminal; add --headless, or --detach to start a run and return"
        ]
    assert not workspace.runs.exists()


def test_flags_without_a_run_are_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for arguments in (("--headless",), ("--detach",), ("--steps", "3"), ("--set", "train.seed=1"), ("--cpu-twin",)):
        result = workspace.call(*arguments)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert f"{arguments[0]} needs a run" in result.stderr
