"""Rooms (folders of lite_c2f): imports run one way, rooms and files stay small, and the package is cheap to import."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lite_c2f"
# A room may import from itself and from rooms before it.
ORDER = (
    "errors", "config", "runtime", "storage", "ops", "data", "toy", "smollm", "gguf", "memory", "backbone", "sampling",
    "runs", "reward", "actors", "coarse", "fine", "evaluation", "pipeline", "chat", "ui", "cli", "__main__",
)  # fmt: skip
APART = {("coarse", "fine"), ("fine", "coarse"), ("toy", "backbone"), ("evaluation", "coarse")}  # stages meet on disk


def imports_of(file: Path):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "lite_c2f" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1], node.lineno


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


LOOPS = {"train_coarse"}  # the PPO loop: numbered steps that are read from top to bottom
FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_run_one_way(file):
    room = room_of(file)
    assert room in ORDER, f"where does the room '{room}' stand?"
    for imported, line in imports_of(file):
        place = f"{file.name}:{line} imports {imported}"
        assert ORDER.index(imported) <= ORDER.index(room), place
        assert (room, imported) not in APART, place


OUTSIDE = sorted(file for folder in ("benchmarks", "examples") for file in (ROOT.parent / folder).rglob("*.py"))


@pytest.mark.parametrize("file", [*FILES, *OUTSIDE], ids=lambda file: str(file.relative_to(ROOT.parent)))
def test_every_name_that_is_imported_is_there(file):
    """Also within functions, and in scripts that no test runs."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lite_c2f":
            module = importlib.import_module(node.module)
            for alias in node.names:
                there = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert there, f"{file.name}:{node.lineno}: {node.module}.{alias.name}"


def arrows() -> set[tuple[str, str]]:
    return {
        (room_of(file), imported) for file in FILES for imported, _ in imports_of(file) if imported != room_of(file)
    }


def test_there_are_few_rooms_and_arrows():
    """Limits of our own: with more than these nobody remembers where something is."""
    assert {room_of(file) for file in FILES} <= set(ORDER) and len(ORDER) <= 28
    assert len(arrows()) <= 150


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name not in LOOPS:
            assert node.end_lineno - node.lineno < 80, f"{file.name}:{node.lineno} {node.name}"


def test_a_class_name_stands_for_one_class():
    names = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_importing_the_package_loads_no_heavy_library():
    heavy = "('torch', 'transformers', 'gradio', 'datasets', 'lm_eval')"
    store = ", ".join(f"lite_c2f.ui.store.{name}" for name in ("conversations", "votes"))
    light = f"lite_c2f, lite_c2f.cli, lite_c2f.config.settings, lite_c2f.evaluation.overlap, {store}"
    code = f"import sys, {light}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_page_is_there_before_torch():
    """Nothing that `ui/` imports may import a library of models: the page is served before they are loaded."""
    code = "import sys, lite_c2f.ui.app; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")]
)
def test_openmp_threads_wait_for_less_long_unless_told_otherwise(given, expected):
    """GOMP_SPINCOUNT would take precedence over OMP_WAIT_POLICY."""
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, lite_c2f; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_every_public_name_is_there():
    import lite_c2f

    for name in lite_c2f.__all__:
        assert getattr(lite_c2f, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lite_c2f.nonsense  # noqa: B018


def test_test_files_have_names_of_their_own():
    """pytest imports them by name alone: of two with one name, in different folders, the second is not collected."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
