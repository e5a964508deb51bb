"""Who may import whom. It keeps training alive when a screen dies, and the screen quick: torch takes seconds."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "gpuworkbench"

# Unit (a package, or a module at the top) -> the units it may import. The lowest first.
SHARED = {"text", "units", "errors", "registry", "io"}
GROUND = SHARED | {"config", "events"}
MIDDLE = GROUND | {"runs", "gpu", "data", "hf", "plan"}
TORCH = {"parts", "models", "memory", "hybrid", "training", "tools"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "text": set(),
    "units": set(),
    "errors": {"text"},
    "registry": {"errors"},
    "io": SHARED - {"io"},
    "config": SHARED,
    "events": SHARED,
    "runs": GROUND,
    "gpu": GROUND,
    "data": GROUND,
    "hf": GROUND,
    "plan": GROUND | {"gpu", "runs"},
    "state": MIDDLE,
    "launch": MIDDLE | {"state"},
    "headless": MIDDLE | {"state", "launch"},
    "tui": MIDDLE | {"state", "launch"},
    "commands": MIDDLE | {"state", "launch", "headless", "tui"},
    "cli": SHARED | {"commands", "gpu"},
    "__main__": {"cli"},
    "parts": {"errors"},
    "models": MIDDLE,
    "memory": MIDDLE | {"parts", "models"},
    "hybrid": MIDDLE | {"parts", "models", "memory"},
    "training": MIDDLE | {"parts", "models", "memory", "hybrid"},
    "tools": MIDDLE | {"parts", "models", "memory", "hybrid", "training"},
}
HEAVY = {"torch", "transformers", "peft", "huggingface_hub"}
SCREEN = {"textual", "plotext"}
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec"}


class Import(NamedTuple):
    """One import statement, wherever in the file it stands."""

    path: Path
    line: int
    module: str  # dotted name, as absolute
    is_for_types_only: bool


def modules(root: Path) -> list[Path]:
    return sorted(path for path in (root / PACKAGE).rglob("*.py") if "__pycache__" not in path.parts)


def unit_of(path: Path, root: Path) -> str:
    return path.relative_to(root / PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file: at its top, in functions, relative ones, and `importlib.import_module("name")`."""
    package = (root.name, *path.relative_to(root).with_suffix("").parts)[1:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [str(node.args[0].value)]
        for name in names:
            yield Import(path, getattr(node, "lineno", 0), name, id(node) in typing_only)


def layer_faults(root: Path, allowed: dict[str, set[str]]) -> list[str]:
    """Imports between units that the table does not allow, and units that the table does not know."""
    faults = []
    for path in modules(root):
        unit = unit_of(path, root)
        if unit not in allowed:
            faults.append(f"{path.relative_to(root)}: {unit} is in no layer")
            continue
        for found in imports(path, root):
            parts = found.module.split(".")
            if parts[0] != PACKAGE:
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in allowed else "__init__"  # the version, free to all
            if target not in (unit, "__init__") and target not in allowed[unit]:
                faults.append(f"{path.relative_to(root)}:{found.line}: {unit} imports {target}")
    return faults


def outside_faults(root: Path, units: set[str], banned: set[str]) -> list[str]:
    """Imports of `banned` third-party packages in `units`, function-level ones too."""
    return [
        f"{path.relative_to(root)}:{found.line}: imports {found.module}"
        for path in modules(root)
        if unit_of(path, root) in units
        for found in imports(path, root)
        if found.module.split(".")[0] in banned and not found.is_for_types_only
    ]


def danger_faults(root: Path) -> list[str]:
    """Whatever runs or unpickles what a file says."""
    faults = []
    for path in modules(root):
        where = path.relative_to(root)
        faults += [
            f"{where}:{found.line}: imports {found.module}"
            for found in imports(path, root)
            if found.module.split(".")[0] in BANNED_MODULES or found.module in ("torch.load", "torch.serialization")
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
                faults.append(f"{where}:{node.lineno}: calls {node.func.id}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.jit.load"):
                faults.append(f"{where}:{node.lineno}: uses {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                faults.append(f"{where}:{node.value.lineno}: allow_pickle")
    return sorted(faults)


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Units that can reach themselves."""
    found = []
    for start in sorted(graph):
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            unit = pending.pop()
            if unit == start:
                found.append(start)
                break
            if unit not in seen:
                seen.add(unit)
                pending += graph.get(unit, ())
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """The units' imports as they are, `__init__` (the version) left out."""
    known = {unit_of(path, root) for path in modules(root)}
    graph: dict[str, set[str]] = {unit: set() for unit in known}
    for path in modules(root):
        for found in imports(path, root):
            parts = found.module.split(".")
            if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in known:
                graph[unit_of(path, root)].add(parts[1])
    return {unit: targets - {unit, "__init__"} for unit, targets in graph.items()}


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


def import_all(units: set[str]) -> str:
    """A statement that imports every module of `units`."""
    names = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in modules(REPOSITORY)
        if unit_of(path, REPOSITORY) in units and path.name != "__main__.py"
    ]
    assert names
    return "import " + ", ".join(names)


PRESENT = {unit_of(path, REPOSITORY) for path in modules(REPOSITORY)}


def test_imports_follow_the_layers() -> None:
    assert layer_faults(REPOSITORY, ALLOWED) == []


def test_no_cycles_between_packages() -> None:
    assert cycles(ALLOWED) == []
    assert cycles(import_graph(REPOSITORY)) == []


def test_the_light_side_never_imports_torch() -> None:
    light = PRESENT - TORCH
    assert outside_faults(REPOSITORY, light, HEAVY) == []
    assert outside_faults(REPOSITORY, PRESENT - {"tui"}, SCREEN) == []
    loaded = loaded_after(import_all(light))
    assert loaded & HEAVY == set()
    assert "gpuworkbench" in loaded


def test_only_the_app_loads_the_screen() -> None:
    assert loaded_after(import_all(PRESENT - TORCH - {"tui"})) & SCREEN == set()


def test_the_trainer_loads_no_screen() -> None:
    loaded = loaded_after(import_all(PRESENT & TORCH) + "\nimport gpuworkbench.training.__main__")
    assert loaded & (SCREEN | {"transformers"}) == set()
    assert "torch" in loaded


def test_the_command_line_is_light() -> None:
    """`--help` and usage errors answer before anything but the standard library is loaded."""
    code = "import contextlib, io\nfrom gpuworkbench.cli import main\nwith contextlib.redirect_stdout(io.StringIO()):"
    loaded = loaded_after(f"{code}\n    assert main(['--help']) == 0")
    third_party = {"msgspec", "numpy", "torch", "psutil", "tomli_w", "platformdirs", "tokenizers", "tiktoken", "pynvml"}
    assert loaded & (third_party | SCREEN) == set()


def test_nothing_is_evaluated_or_unpickled() -> None:
    assert danger_faults(REPOSITORY) == []


@pytest.fixture
def bad_tree(tmp_path: Path) -> Path:
    """A package that breaks every rule once."""
    files = {
        "text.py": "def f():\n    from gpuworkbench import errors\n",
        "errors.py": "from gpuworkbench.text import safe_text\nimport pickle\n",
        "state/__init__.py": "",
        "state/a.py": "def f():\n    import torch.nn\n",
        "state/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "config/__init__.py": "from ..training import loop\n",
        "training/__init__.py": "import importlib\nimportlib.import_module('gpuworkbench.tui.app')\nimport textual\n",
        "training/loop.py": "import torch\nx = torch.load('a')\ny = eval('1')\nz = f(allow_pickle=True)\n",
        "tui/__init__.py": "",
        "stray.py": "",
    }
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_checks_find_what_is_wrong(bad_tree: Path) -> None:
    assert layer_faults(bad_tree, ALLOWED) == [
        "gpuworkbench/config/__init__.py:1: config imports training",
        "gpuworkbench/stray.py: stray is in no layer",
        "gpuworkbench/text.py:2: text imports errors",
        "gpuworkbench/training/__init__.py:2: training imports tui",
    ]
    assert outside_faults(bad_tree, {"state"}, HEAVY) == ["gpuworkbench/state/a.py:2: imports torch.nn"]
    assert outside_faults(bad_tree, {"training"}, SCREEN) == ["gpuworkbench/training/__init__.py:3: imports textual"]
    assert cycles(import_graph(bad_tree)) == ["errors", "text"]
    assert danger_faults(bad_tree) == [
        "gpuworkbench/errors.py:2: imports pickle",
        "gpuworkbench/training/loop.py:2: uses torch.load",
        "gpuworkbench/training/loop.py:3: calls eval",
        "gpuworkbench/training/loop.py:4: allow_pickle",
    ]


def test_loading_is_seen() -> None:
    assert "torch" not in loaded_after("import json")
    assert {"json", "sqlite3"} <= loaded_after("def f():\n    import json, sqlite3\nf()")
