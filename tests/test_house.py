"""The arrows between rooms run one way, and the package is cheap to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lite_c2f"
# A room may import from itself and from rooms before it.
ORDER = (
    "errors", "config", "runtime", "storage", "ops", "data", "toy", "memory", "backbone", "sampling", "runs",
    "reward", "actors", "coarse", "fine", "evaluation", "pipeline", "chat", "ui", "cli", "__main__",
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


FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_run_one_way(file):
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert room in ORDER, f"where does the room '{room}' stand?"
    for imported, line in imports_of(file):
        place = f"{file.name}:{line} imports {imported}"
        assert ORDER.index(imported) <= ORDER.index(room), place
        assert (room, imported) not in APART, place


def test_importing_the_package_loads_no_heavy_library():
    heavy = "('torch', 'transformers', 'gradio', 'datasets', 'lm_eval')"
    store = ", ".join(f"lite_c2f.ui.store.{name}" for name in ("overlap", "conversations", "votes"))
    light = f"lite_c2f, lite_c2f.cli, lite_c2f.config.settings, {store}"
    code = f"import sys, {light}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import lite_c2f

    for name in lite_c2f.__all__:
        assert getattr(lite_c2f, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lite_c2f.nonsense  # noqa: B018
